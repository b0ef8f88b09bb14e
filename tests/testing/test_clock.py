"""Collaboration: threads in real time, and a mock clock that waits for them."""

from __future__ import annotations

import math
import threading

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vfio.testing import autojump_held


async def test_without_it_a_thread_outlives_a_virtual_deadline(
    autojump_clock: MockClock,
) -> None:
    """The hazard: the clock jumps as soon as nothing but the thread is waited for."""
    ends = threading.Event()

    async def end_the_thread() -> None:
        # The thread cannot end before the virtual minute is over.
        await trio.sleep(60)
        ends.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_the_thread)
        with trio.move_on_after(30) as deadline:
            await trio.to_thread.run_sync(ends.wait)
    assert deadline.cancel_called
    assert trio.current_time() == 60


async def test_with_it_the_thread_takes_no_virtual_time(
    autojump_clock: MockClock,
) -> None:
    slept: list[float] = []

    async def sleep() -> None:
        await trio.sleep(1)
        slept.append(trio.current_time())

    # Real time, and little of it: the clock has every chance to jump.
    work = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        with trio.fail_after(0.5):
            with autojump_held():
                await trio.to_thread.run_sync(work.wait, 0.05)
        assert (trio.current_time(), slept) == (0, [])
    assert slept == [1]


async def test_it_jumps_again_when_the_last_of_two_blocks_has_ended(
    autojump_clock: MockClock,
) -> None:
    """Two tasks, whose blocks overlap without one being inside the other."""
    first, second = trio.Event(), trio.Event()

    async def hold(until: trio.Event) -> None:
        with autojump_held():
            await until.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, first)
        nursery.start_soon(hold, second)
        await wait_all_tasks_blocked()
        assert autojump_clock.autojump_threshold == math.inf
        first.set()
        await wait_all_tasks_blocked()
        assert autojump_clock.autojump_threshold == math.inf
        second.set()
    assert autojump_clock.autojump_threshold == 0
    await trio.sleep(10)
    assert trio.current_time() == 10


async def test_blocks_inside_each_other(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.01
    with autojump_held():
        with autojump_held():
            pass
        assert autojump_clock.autojump_threshold == math.inf
    assert autojump_clock.autojump_threshold == 0.01


async def test_it_jumps_again_after_an_exception(autojump_clock: MockClock) -> None:
    with pytest.raises(ZeroDivisionError):
        with autojump_held():
            raise ZeroDivisionError
    await trio.sleep(5)
    assert trio.current_time() == 5


async def test_it_jumps_again_after_a_cancel(autojump_clock: MockClock) -> None:
    with trio.CancelScope() as scope:
        with autojump_held():
            scope.cancel()
            await trio.sleep_forever()
    await trio.sleep(5)
    assert trio.current_time() == 5


def test_it_does_nothing_on_the_clock_of_trio() -> None:
    async def main() -> str:
        with autojump_held():
            return "done"

    assert trio.run(main) == "done"


def test_it_wants_trio() -> None:
    with pytest.raises(RuntimeError), autojump_held():
        pass
