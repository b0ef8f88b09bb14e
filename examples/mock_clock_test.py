"""A deterministic test of a slow migration, over in milliseconds.

Run it with pytest and pytest-trio, or as it is.
"""

from __future__ import annotations

import trio
from trio.testing import MockClock

from trio_vfio import open_incoming, open_outgoing
from trio_vfio.testing import SimulatedSink, SimulatedSource, link

DEVICE = "0000:00:04.0/vfio"
MIB = 1 << 20


async def test_a_late_channel_delays_only_the_load(autojump_clock: MockClock) -> None:
    source = SimulatedSource(size=4 * MIB, config=b"registers")
    sink = SimulatedSink(seconds_per_mib=2)
    # Channel 0, which brings the first packet, is ten seconds late.
    here, there = link(delay={0: 10})
    async with open_incoming(there, {DEVICE: sink}) as incoming:
        async with open_outgoing(here, {DEVICE: source}, channels=2) as outgoing:
            await outgoing.migrate()
        result = await incoming.wait_complete()
    assert sink.loaded == source.state
    assert sink.config == b"registers"
    assert trio.current_time() == 10 + 4 * 2
    assert result.devices[0].starved == 1


if __name__ == "__main__":
    clock = MockClock(autojump_threshold=0)
    trio.run(test_a_late_channel_delays_only_the_load, clock, clock=clock)
    print(f"{clock.current_time():.0f} virtual seconds have passed")
