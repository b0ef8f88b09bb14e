"""Collaboration: what goes out, byte for byte, and what a reader makes of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from trio_vfio import StateSource, open_outgoing
from trio_vfio._capture._report import inspect_capture
from trio_vfio.testing import (
    ScriptedDestination,
    SimulatedSource,
    data_packet,
    link,
    state_packets,
)

A, B = "0000:00:04.0/vfio", "0000:00:05.0/vfio"

# Put together by hand from the layouts of QEMU's source: header, configuration,
# OPEN_RETURN_PATH, PING, START, SWITCHOVER_START, END, FULL and EOF of one device
# in section 42.
EXAMPLE = bytes.fromhex(
    "5145564d00000003"
    "070000000b70632d7133352d31302e30"
    "0800010000"
    "080002000400000001"
    "010000002a11303030303a30303a30342e302f7666696f0000000000000001"
    "ffffffffef100003ffffffffef1000017e0000002a"
    "08000b0000"
    "030000002affffffffef1000017e0000002a"
    "040000002a11303030303a30303a30342e302f7666696f0000000000000001"
    "ffffffffef1000017e0000002a"
    "00"
)


async def sent(
    devices: dict[str, StateSource],
    *,
    channels: int = 2,
    return_path: bool = True,
    buffer_size: int = 1 << 20,
    machine: str = "pc-q35-10.0",
) -> ScriptedDestination:
    """Send *devices*; return the destination, which has kept all that came."""
    here, there = link()
    destination = ScriptedDestination(there, channels=channels)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(
            here,
            devices,
            channels=channels,
            return_path=return_path,
            machine=machine,
            buffer_size=buffer_size,
        ) as outgoing:
            await outgoing.migrate()
    return destination


async def test_the_main_channel_is_the_example(autojump_clock: MockClock) -> None:
    assert (len(EXAMPLE), hashlib.sha256(EXAMPLE).hexdigest()[:16]) == (
        158,
        "aff0f796e6ebbb1f",
    )
    destination = await sent({A: SimulatedSource(size=16)})
    stream, text = destination.main[:158], destination.main[158:]
    assert stream == EXAMPLE
    # A destination of QEMU's waits for ever where there is no description.
    assert text[0] == 6
    assert int.from_bytes(text[1:5]) == len(text) - 5
    (entry,) = json.loads(text[5:])["devices"]
    assert (entry["name"], entry["instance_id"], entry["size"]) == (A, 0, 8)


async def test_without_a_return_path_nothing_is_asked(
    autojump_clock: MockClock,
) -> None:
    destination = await sent({A: SimulatedSource(size=16)}, return_path=False)
    asked = bytes.fromhex("0800010000080002000400000001")
    assert destination.main[:144] == EXAMPLE.replace(asked, b"")
    assert destination.said == b""


async def test_channels_hold_what_the_packets_say(autojump_clock: MockClock) -> None:
    source = SimulatedSource(size=16, config=b"blob")
    destination = await sent({A: source}, channels=1)
    packets = state_packets(A, [source.state], b"blob")
    assert destination.received[0][64:] == b"".join(packets)
    assert packets[0] == data_packet(A, 0, source.state)


async def test_a_device_without_data_sends_its_config_alone(
    autojump_clock: MockClock,
) -> None:
    destination = await sent({A: SimulatedSource(size=0, config=b"c")})
    assert [(p.idx, p.is_config) for p in destination.packets] == [(0, True)]


@pytest.mark.parametrize("channels", [1, 2, 16, 255])
async def test_a_recorded_stream_is_a_complete_capture(
    channels: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    devices = {
        A: SimulatedSource(size=5000, initial_bytes=700, dirty_bytes=300, seed=1),
        B: SimulatedSource(size=3000, config=b"registers", seed=2),
    }
    destination = await sent(dict(devices), channels=channels, buffer_size=256)
    (tmp_path / "main.bin").write_bytes(destination.main)
    (tmp_path / "return.bin").write_bytes(destination.said)
    for id_, data in destination.received.items():
        (tmp_path / f"multifd{id_}.bin").write_bytes(data)
    (tmp_path / "meta.json").write_text('{"format": 1}')
    report = inspect_capture(tmp_path)
    assert (report.status, report.reason) == ("complete", None)
    found = {each.idstr: each for each in report.devices}
    assert list(found) == [A, B]
    for idstr, source in devices.items():
        digest = hashlib.sha256(source.state).hexdigest()
        assert found[idstr].sha256 == digest
        assert found[idstr].data_bytes == source.size
        assert found[idstr].transfer == "multifd"
    assert found[A].precopy_bytes == 1000
    assert found[B].config_bytes == len(b"registers")


async def test_packets_of_a_device_are_handed_over_in_order(
    autojump_clock: MockClock,
) -> None:
    destination = await sent(
        {A: SimulatedSource(size=2000), B: SimulatedSource(size=2000)},
        channels=3,
        buffer_size=100,
    )
    for idstr in (A, B):
        packets = [each.idx for each in destination.packets if each.idstr == idstr]
        assert sorted(packets) == list(range(21))
    # Each channel keeps the order, for a receiver pauses what is too far ahead.
    for channel in destination.received.values():
        raw = bytes(channel)[64:]
        places: dict[bytes, int] = {}
        while raw:
            name, idx = raw[12:268], int.from_bytes(raw[280:284])
            assert places.get(name, -1) < idx
            places[name] = idx
            raw = raw[276 + int.from_bytes(raw[272:276]) :]
