"""Collaboration: any order of arrival, found by Hypothesis, in virtual time."""

from __future__ import annotations

import trio
from hypothesis import given, settings, strategies as st
from trio.testing import MockClock

from tests.forms import form
from trio_vfio import open_incoming
from trio_vfio.testing import ScriptedSource, SimulatedSink, link, state_packets

DEVICES = ("0000:00:04.0/vfio", "0000:00:05.0/vfio")
CHANNELS = 3


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[int, float, bytes]]:
    """Give each packet of two devices a channel and a pause, in any order."""
    packets = [
        packet
        for idstr in DEVICES
        for packet in state_packets(
            idstr, draw(st.lists(st.binary(max_size=50), max_size=6)), idstr.encode()
        )
    ]
    return [
        (
            draw(st.integers(0, CHANNELS - 1)),
            draw(st.sampled_from([0, 0, 0.5, 3])),
            packet,
        )
        for packet in draw(st.permutations(packets))
    ]


@given(
    order=arrivals(),
    switchover_after=st.integers(0, 12),
    seconds=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=form(short=45, long=150))
def test_any_order_loads_the_same_state(
    order: list[tuple[int, float, bytes]], switchover_after: int, seconds: float
) -> None:
    """In the order of the indexes, config last, and only after SWITCHOVER_START."""

    async def migrate() -> None:
        devices = {idstr: SimulatedSink(seconds_per_call=seconds) for idstr in DEVICES}
        connect, there = link()
        async with open_incoming(there, devices) as incoming:
            source = await ScriptedSource.connect(connect, channels=CHANNELS)
            await source.begin(*DEVICES)
            for count, (channel, pause, packet) in enumerate(order):
                if count == switchover_after:
                    await trio.testing.wait_all_tasks_blocked()
                    assert not any(device.loaded for device in devices.values())
                    await source.switch_over()
                await source.packets(channel, packet)
                await trio.sleep(pause)
            if switchover_after >= len(order):
                await source.switch_over()
            await source.end()
            await source.close()
            await incoming.wait_complete()
        for idstr, device in devices.items():
            of_device = {
                int.from_bytes(packet[280:284]): packet
                for _, _, packet in order
                if packet[12:].startswith(idstr.encode())
            }
            state = [of_device[idx][288:] for idx in range(len(of_device) - 1)]
            assert device.loaded == b"".join(state)
            assert device.config == idstr.encode()

    trio.run(migrate, clock=MockClock(autojump_threshold=0))
