"""A deterministic test of a migration that takes hours, over in milliseconds.

Run it with pytest and pytest-trio, or as it is.
"""

from __future__ import annotations

import trio
from trio.testing import MockClock

from trio_vfio import open_incoming
from trio_vfio.testing import ScriptedSource, SimulatedDevice, link, state_packets

DEVICE = "0000:00:04.0/vfio"
HOUR = 3600


async def test_a_late_packet_delays_only_the_load(autojump_clock: MockClock) -> None:
    device = SimulatedDevice(seconds_per_call=2 * HOUR)
    first, *others = state_packets(DEVICE, [b"one", b"two", b"three"], b"config")
    here, there = link()
    async with open_incoming(there, {DEVICE: device}) as incoming:
        source = await ScriptedSource.connect(here, channels=2)
        await source.begin(DEVICE)
        await source.switch_over()
        await source.packets(0, *others)
        await source.end()
        await trio.sleep(10)
        await source.packets(1, first)
        await source.close()
        result = await incoming.wait_complete()
    assert device.loaded == b"onetwothree"
    assert device.config == b"config"
    # Three buffers, the config, and the device's acceptance.
    assert trio.current_time() == 10 + 5 * 2 * HOUR
    assert result.devices[0].starved == 1


if __name__ == "__main__":
    clock = MockClock(autojump_threshold=0)
    trio.run(test_a_late_packet_delays_only_the_load, clock, clock=clock)
    print(f"{clock.current_time() / HOUR:.1f} virtual hours have passed")
