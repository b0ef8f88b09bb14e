"""Collaboration: rounds of pre-copy, and when they end."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_vfio import Pending, open_outgoing
from trio_vfio.testing import ScriptedDestination, link

A, B = "0000:00:04.0/vfio", "0000:00:05.0/vfio"
INIT_DATA_SENT = bytes.fromhex("ffffffffef100005")


@attrs.define(eq=False)
class Restless:
    """A device whose guest goes on: some of it becomes dirty in every second."""

    initial: int = 0
    dirty: int = 0
    per_second: float = 0
    stop_copy: int | None = None
    """What it says there would be to read if it were stopped."""
    gives: bool = True
    """Whether it has what it says it has."""
    read: list[int] = attrs.field(factory=list[int], init=False)
    asked: int = attrs.field(default=0, init=False)
    _at: float = attrs.field(default=0, init=False)
    _stopped: bool = attrs.field(default=False, init=False)

    async def begin(self) -> bool:
        await trio.lowlevel.checkpoint()
        self._at = trio.current_time()
        return True

    async def pending(self) -> Pending:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        self._become_dirty()
        return Pending(self.initial, self.dirty, self.stop_copy)

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        await trio.lowlevel.checkpoint()
        if self._stopped:
            return [0]
        self._become_dirty()
        if not self.gives:
            return []
        count = min(len(buffers[0]), self.initial + self.dirty)
        from_initial = min(self.initial, count)
        self.initial -= from_initial
        self.dirty -= count - from_initial
        self.read.append(count)
        return [count]

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()
        self._stopped = True

    async def config(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return b""

    async def finish(self) -> None:
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        raise AssertionError("the migration has failed")

    def _become_dirty(self) -> None:
        now = trio.current_time()
        self.dirty += int((now - self._at) * self.per_second)
        self._at = now


async def migrate(
    *sources: Restless,
    max_rounds: int | None = 16,
    downtime: float = 0.3,
    switchover_ack: bool = False,
) -> ScriptedDestination:
    """Migrate *sources* over a main channel that carries 1000 bytes in a second."""
    here, there = link(bandwidth={"main": 1000})
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        devices = dict(zip((A, B), sources, strict=False))
        async with open_outgoing(
            here, devices, buffer_size=500, switchover_ack=switchover_ack
        ) as outgoing:
            await outgoing.migrate(max_rounds=max_rounds, downtime=downtime)
    return destination


@pytest.mark.parametrize("rounds", [1, 2, 5])
async def test_a_guest_that_is_faster_than_the_link(
    rounds: int, autojump_clock: MockClock
) -> None:
    """What is left grows from round to round; there is an end to it all the same."""
    source = Restless(dirty=1000, per_second=3000, stop_copy=1 << 40)
    await migrate(source, max_rounds=rounds)
    # Asked once to begin with, and once behind each round.
    assert source.asked == 1 + rounds


async def test_until_what_is_left_takes_no_longer_than_the_downtime(
    autojump_clock: MockClock,
) -> None:
    source = Restless(dirty=10_000, per_second=300)
    await migrate(source, max_rounds=None, downtime=0.5)
    assert source.asked > 3
    # At nearly 1000 bytes in a second.
    left = source.dirty
    assert 0 < left <= 500


async def test_a_device_that_says_how_much_stopping_would_leave(
    autojump_clock: MockClock,
) -> None:
    """That counts, and not what could go before."""
    calm = Restless(dirty=5000, per_second=100, stop_copy=100)
    await migrate(calm, max_rounds=None, downtime=0.2)
    assert calm.asked == 2
    big = Restless(dirty=5000, per_second=100, stop_copy=10_000)
    await migrate(big, max_rounds=4, downtime=0.2)
    assert big.asked == 5


async def test_a_device_that_has_less_than_it_says(autojump_clock: MockClock) -> None:
    """A read that gives nothing ends its round, whatever it estimates."""
    source = Restless(dirty=5000, gives=False)
    destination = await migrate(source, max_rounds=3, downtime=0)
    assert source.asked == 4
    assert destination.seen.count(f"PART {A}") == 3


async def test_each_device_has_its_turn(autojump_clock: MockClock) -> None:
    destination = await migrate(Restless(dirty=1000), Restless(dirty=1500))
    parts = [name for name in destination.seen if name.startswith("PART")]
    assert parts == [f"PART {x}" for x in (A, B, A, B, B)]


async def test_initial_data_comes_first_and_its_end_is_said_once(
    autojump_clock: MockClock,
) -> None:
    here, there = link()
    destination = ScriptedDestination(there)
    source = Restless(initial=1200, dirty=900, per_second=100, stop_copy=1 << 40)

    async def acknowledge(name: str) -> None:
        from trio_vfio._wire._return_path import SWITCHOVER_ACK

        if destination.seen.count(f"PART {A}") == 3:
            await destination.say(SWITCHOVER_ACK)

    destination.on = acknowledge
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(
            here, {A: source}, buffer_size=500, switchover_ack=True
        ) as outgoing:
            await outgoing.migrate(max_rounds=3)
    assert destination.main.count(INIT_DATA_SENT) == 1
    # In the third part: 500, 500, and the last 200 of it with 300 that are dirty.
    before, _ = destination.main.split(INIT_DATA_SENT)
    assert source.read[:3] == [500, 500, 500]
    assert len(before) > 1500


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"max_rounds": 0}, "max_rounds"),
        ({"downtime": -1}, "downtime cannot be -1"),
        ({"downtime": float("nan")}, "downtime cannot be nan"),
    ],
)
async def test_limits_that_make_no_sense(
    limits: dict[str, float], why: str, autojump_clock: MockClock
) -> None:
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(here, {A: Restless()}) as outgoing:
            with pytest.raises(ValueError, match=why):
                await outgoing.migrate(**limits)  # type: ignore[arg-type]
            # That was no attempt.
            await outgoing.migrate()
