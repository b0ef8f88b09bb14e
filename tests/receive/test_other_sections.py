"""Collaboration: machines with more than RAM and VFIO devices, in virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trio_vfio import open_incoming
from trio_vfio._wire._main_events import SectionType
from trio_vfio._wire._return_path import SWITCHOVER_ACK, pong
from trio_vfio.testing import ScriptedSource, SimulatedSink, link, state_packets

from ..streams import (
    ATTRIBUTES,
    DIRTY_BITMAP,
    HTAB,
    IDSTR,
    RAM,
    VIRTIO_MEM,
    Handler,
    state_of,
    stream_of_all,
)


async def send_cut(stream: trio.abc.SendStream, data: bytes, size: int) -> None:
    for at in range(0, len(data), size):
        await stream.send_all(data[at : at + size])


@pytest.mark.parametrize("size", [1 << 20, 7])
async def test_all_that_we_can_read_past(autojump_clock: MockClock, size: int) -> None:
    """The device is loaded as if it were alone, and no other is asked for."""
    device = SimulatedSink(seconds_per_call=2)
    connect, there = link()
    async with open_incoming(there, {IDSTR: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.packets(0, *state_packets(IDSTR, [b", after"], b"blob"))
        await send_cut(source.main, bytes(stream_of_all().data), size)
        await source.close()
        result = await incoming.wait_complete()
    assert (device.loaded, device.config) == (b"before, after", b"blob")
    assert result.status == "completed"
    (loaded,) = result.devices
    assert (loaded.transfer, loaded.precopy_bytes) == ("multifd", 6)
    assert trio.current_time() == 2 * 4


@pytest.mark.parametrize("handler", [DIRTY_BITMAP, HTAB, ATTRIBUTES])
async def test_only_rounds_over_ram_count_for_the_ack(
    autojump_clock: MockClock, handler: Handler
) -> None:
    """A device that may take pre-copy data is waited for until the second of them."""
    device = SimulatedSink(precopy=None)
    connect, there = link()
    async with open_incoming(there, {IDSTR: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(return_path=True)
        await source.main.send_all(state_of(VIRTIO_MEM, SectionType.FULL))
        for each in (RAM, handler):
            await source.main.send_all(state_of(each, SectionType.START))
        await source.announce(IDSTR)
        await source.main.send_all(state_of(RAM, SectionType.PART))
        for _ in range(3):
            await source.main.send_all(state_of(handler, SectionType.PART))
        assert await source.main.receive_some() == pong(1).encode()
        with trio.move_on_after(10) as nothing_more:
            await source.main.receive_some()
        assert nothing_more.cancelled_caught
        await source.main.send_all(state_of(RAM, SectionType.PART))
        assert await source.main.receive_some() == SWITCHOVER_ACK.encode()
        await source.switch_over()
        await source.packets(0, *state_packets(IDSTR, [b"x"]))
        for each in (RAM, handler):
            await source.main.send_all(state_of(each, SectionType.END))
        await source.end()
        await incoming.wait_complete()
    assert device.loaded == b"x"
