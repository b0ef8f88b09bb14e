"""Collaboration: a real migration, damaged on its way over real sockets.

Whatever is done to it, the session fails with one line that says which device
or channel and which index or offset, soon after the last byte, and the source
hears of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from trio_vfio import Deadlines, MigrationFailed, open_incoming
from trio_vfio._capture._player import play
from trio_vfio._capture._report import inspect_capture
from trio_vfio._link._address import connect, parse_address
from trio_vfio._wire._return_path import ReturnPathDecoder
from trio_vfio.testing import SimulatedSink

from ..captures_data import PADDED, capture

DEVICE = "0000:00:04.0/vfio"
Damage = Callable[[Path], None]


def change(name: str, at: int, value: int) -> Damage:
    """Change one byte of the file."""

    def damage(directory: Path) -> None:
        data = bytearray((directory / name).read_bytes())
        data[at] ^= value
        (directory / name).write_bytes(data)

    return damage


def header_byte(at: int) -> Damage:
    """Change one byte of the header of the packet with index 2."""
    (packet,) = [
        each
        for each in inspect_capture(capture(PADDED).directory).packets
        if each.idx == 2
    ]
    return change(f"multifd{packet.channel}.bin", packet.offset + at, 0x15)


def cut(name: str, count: int) -> Damage:
    """Leave out the last bytes of the file."""

    def damage(directory: Path) -> None:
        data = (directory / name).read_bytes()
        (directory / name).write_bytes(data[:-count])

    return damage


def copy_packet(idx: int, times: int) -> Damage:
    """Let the packet with that index be sent so many times, on its channel."""

    def damage(directory: Path) -> None:
        (packet,) = [
            each for each in inspect_capture(directory).packets if each.idx == idx
        ]
        path = directory / f"multifd{packet.channel}.bin"
        data, at = path.read_bytes(), packet.offset
        end = at + 288 + packet.bytes
        path.write_bytes(data[:at] + data[at:end] * times + data[end:])

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *(
            pytest.param(header_byte(at), words, id=f"header byte {at}")
            for at, words in {
                0: "channel 3: packet with magic",
                7: "channel 3: packet of unknown version",
                8: "channel 3: packet with unknown flags",
                11: "channel 3: device-state packet with flags 0x55",
                12: "%000:00:04.0/vfio",
                29: "channel 3: not a printable idstr",
                267: "bytes behind its idstr",
                271: f"channel 3: packet 2 of {DEVICE} (instance 21)",
                272: "with a payload of",
                275: "channel 3: channel ends inside",
                279: "unknown version 21",
                280: f"packet 352321538 of {DEVICE}",
                # The first, if packet 23 is there before the config; else the second.
                283: f"packet 5 of {DEVICE} is the config, but packet 23 is"
                f"|packet 23 of {DEVICE} is data beyond the config, 5",
                287: "unknown flags 0x15",
            }.items()
        ),
        pytest.param(
            cut("multifd0.bin", 100), "channel 0: channel ends inside", id="cut"
        ),
        pytest.param(
            copy_packet(3, 2),
            "packet 3 of 0000:00:04.0/vfio was sent twice",
            id="twice",
        ),
        pytest.param(copy_packet(3, 0), f"{DEVICE}: packet 3", id="missing"),
        pytest.param(copy_packet(5, 0), f"{DEVICE}: packet 5", id="no config"),
        pytest.param(cut("main.bin", 100), "main: ", id="main cut in its JSON"),
        pytest.param(cut("main.bin", 50_000), "main: stream ends in", id="main cut"),
    ],
)
async def test_what_is_damaged_fails(
    damage: Damage, words: str, tmp_path: Path
) -> None:
    directory = tmp_path / "capture"
    shutil.copytree(capture(PADDED).directory, directory)
    damage(directory)
    heard: list[bytes] = []
    device = SimulatedSink()

    async def source(address: str) -> None:
        connect_to_it = partial(connect, parse_address(address))
        heard.append(await play(directory, connect_to_it, hold_state=False))

    with pytest.raises(MigrationFailed) as failed, trio.fail_after(100):
        async with open_incoming(
            "tcp:127.0.0.1:0", {DEVICE: device}, deadlines=Deadlines(silence=3)
        ) as incoming:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source, incoming.addresses[0])
                await incoming.wait_complete()
    errors = [str(each) for each in failed.value.exceptions]
    assert any(word in error for word in words.split("|") for error in errors), errors
    assert not any("\n" in error for error in errors)
    assert device.aborted_at is not None
    for frames in heard:
        said = [frame.value for frame in ReturnPathDecoder().received(frames)[-1:]]
        assert said in ([], [1])


async def test_garbage_on_one_more_connection_does_no_harm() -> None:
    files = capture(PADDED)
    device = SimulatedSink()

    async def source(address: str) -> None:
        connect_to_it = partial(connect, parse_address(address))
        stranger = await connect_to_it()
        await stranger.send_all(b"garbage" * 100)
        heard = await play(files.directory, connect_to_it)
        assert heard == files.return_path
        await stranger.aclose()

    async with open_incoming(
        "tcp:127.0.0.1:0", {DEVICE: device}, digests=True
    ) as incoming:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source, incoming.addresses[0])
            await incoming.wait_complete()
    expected = json.loads((files.directory / "expected.json").read_bytes())
    assert incoming.result().devices[0].sha256 == expected["devices"][0]["sha256"]
