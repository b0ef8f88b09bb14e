"""A device of your own: its contract, and a migration over a link that fails it.

Run it with pytest and pytest-trio, or as it is. Hours pass in a moment.
"""

from __future__ import annotations

from collections.abc import Iterator

import trio
from trio.testing import MockClock

from trio_vfio import Deadlines
from trio_vfio.testing import (
    DevicePlan,
    FaultPlan,
    LinkFault,
    check_state_sink,
    simulate,
)


class Tape:
    """Takes state at its own pace: half a second for each buffer."""

    precopy = None

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    async def begin(self) -> None:
        await trio.lowlevel.checkpoint()

    async def write(self, buffers: Iterator[memoryview]) -> None:
        for buffer in buffers:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.5)
            self.blocks.append(bytes(buffer))
            await trio.lowlevel.checkpoint()

    async def load_config(self, blob: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        self.blocks.clear()
        await trio.lowlevel.checkpoint()


async def test_a_tape_keeps_to_the_contract(autojump_clock: MockClock) -> None:
    await check_state_sink(Tape)


def test_a_tape_gets_all_of_its_state_however_late() -> None:
    plan = FaultPlan(
        devices=(DevicePlan(size=500_000, config=b"registers"),),
        buffer_size=1000,
        jitter={0: 60, 1: 60},
        deadlines=Deadlines(handshake=None, silence=None),
        patience=24 * 3600,
        faults=(LinkFault(1, "stall", at_byte=9000, seconds=7200),),
    )
    result = simulate(plan, sink=lambda _: Tape())
    assert result.violations == ()
    assert (result.source, result.destination) == ("completed", "completed")
    print(f"{result.seconds / 3600:.1f} hours of virtual time")


if __name__ == "__main__":
    clock = MockClock(autojump_threshold=0)
    trio.run(test_a_tape_keeps_to_the_contract, clock, clock=clock)
    test_a_tape_gets_all_of_its_state_however_late()
