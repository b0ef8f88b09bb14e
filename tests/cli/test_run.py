"""Signals to a command that runs: `run` in this process. Collaboration."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trio_vfio._cli._run import run


def test_to_its_own_end() -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()

    assert run(work) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_cancels(number: signal.Signals) -> None:
    """What is under way can still clean up."""
    cleaned_up = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await trio.sleep_forever()
        finally:
            cleaned_up.append(True)

    assert run(work) is number
    assert cleaned_up


def test_too_late() -> None:
    """Work that ends all the same was not cancelled."""

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)

    assert run(work) is None


def test_signal_before_the_loop_runs_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is cancelled at its first checkpoint."""
    loop = trio.run

    def interrupted(main: Callable[[], Awaitable[object]]) -> object:
        signal.raise_signal(signal.SIGINT)
        return loop(main)

    monkeypatch.setattr(trio, "run", interrupted)
    assert run(trio.lowlevel.checkpoint) is signal.SIGINT


def test_signal_raises_nothing_where_it_lands() -> None:
    """Code without a checkpoint is not torn apart, as by KeyboardInterrupt."""
    done = []

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(True)
        await trio.sleep_forever()

    assert run(work) is signal.SIGINT
    assert done


def test_signal_after_the_end_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command still has to show its result. A second signal ends the process."""
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    assert run(trio.lowlevel.checkpoint) is None
    signal.raise_signal(signal.SIGINT)
    assert exits == []
    signal.raise_signal(signal.SIGTERM)
    assert exits == [128 + signal.SIGTERM]


def test_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the first one still waits for."""
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)

    async def work() -> None:
        with trio.CancelScope(shield=True):
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
                await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.sleep_forever()

    assert run(work) is signal.SIGTERM
    assert exits == [128 + signal.SIGINT]


def test_failure_comes_as_it_is() -> None:
    """Not in a nursery's group."""

    async def work() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("bad")

    with pytest.raises(ValueError, match="^bad$"):
        run(work)
