"""`play` against a destination that a test drives, in memory. Collaboration."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_vfio._capture._player import play
from trio_vfio._wire._main_encode import encode_command
from trio_vfio._wire._main_events import CommandType
from trio_vfio._wire._return_path import SWITCHOVER_ACK, pong, shut

from .build import SWITCHOVER, config_packet, main_stream, packet, write_capture

OPEN = encode_command(CommandType.OPEN_RETURN_PATH)
PING = encode_command(CommandType.PING, bytes(4))
LATE_PING = encode_command(CommandType.PING, b"late")
PONG, ACK, SHUT = (frame.encode() for frame in (pong(0), SWITCHOVER_ACK, shut(0)))


@attrs.define(eq=False)
class Destination:
    """The other ends of all connections, the main one first."""

    streams: list[trio.abc.Stream] = attrs.field(factory=list[trio.abc.Stream])
    received: list[bytearray] = attrs.field(factory=list[bytearray])
    ended: list[int] = attrs.field(factory=list[int])
    """Which connections the source has ended."""
    answers: bytes | None = None
    """What `play` returned."""

    async def connect(self) -> trio.abc.Stream:
        """Take a connection of the source's."""
        here, there = trio.testing.memory_stream_pair()
        self.streams.append(here)
        self.received.append(bytearray())
        return there

    async def read(self, number: int) -> None:
        """Read one connection to its end."""
        try:
            async for data in self.streams[number]:
                self.received[number] += data
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.ended.append(number)


@asynccontextmanager
async def playing(
    capture: Path, connections: int, **options: Any
) -> AsyncGenerator[Destination, None]:
    """Play *capture* to a destination that reads all, while the block runs."""
    destination = Destination()

    async def source() -> None:
        destination.answers = await play(capture, destination.connect, **options)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(source)
        await trio.testing.wait_all_tasks_blocked()
        assert len(destination.streams) == connections
        for number in range(connections):
            nursery.start_soon(destination.read, number)
        await trio.testing.wait_all_tasks_blocked()
        yield destination


async def test_without_return_path(tmp_path: Path) -> None:
    """Each file over its own connection; when all was sent, the source leaves."""
    write_capture(
        tmp_path, main_stream(), {0: [packet(0, b"a")], 3: [config_packet(1)]}
    )
    async with playing(tmp_path, 3, piece=10) as destination:
        assert sorted(destination.ended) == [0, 1, 2]
    assert destination.received == [
        (tmp_path / name).read_bytes()
        for name in ("main.bin", "multifd0.bin", "multifd3.bin")
    ]
    assert destination.answers == b""


async def test_waits_for_the_answers(tmp_path: Path) -> None:
    """SWITCHOVER_START waits for PONG and ACK, device state waits for it, and the
    connections stay until SHUT."""
    main = main_stream(switchover=OPEN + PING + SWITCHOVER + LATE_PING)
    answers = PONG + ACK + pong(0x6C617465).encode() + SHUT
    channels = {0: [packet(0, b"a")], 1: [config_packet(1)]}
    write_capture(tmp_path, main, channels, return_path=answers)
    before = main.index(SWITCHOVER)
    async with playing(tmp_path, 3) as destination:
        for answer in (PONG, ACK[:1], ACK[1:]):
            assert destination.received[0] == main[:before]
            assert [len(raw) for raw in destination.received[1:]] == [64, 64]
            await destination.streams[0].send_all(answer)
            await trio.testing.wait_all_tasks_blocked()
        assert destination.received[0] == main
        assert destination.received[2] == (tmp_path / "multifd1.bin").read_bytes()
        await destination.streams[0].send_all(pong(0x6C617465).encode())
        await trio.testing.wait_all_tasks_blocked()
        assert not destination.ended
        await destination.streams[0].send_all(SHUT)
    assert destination.answers == answers


async def test_state_may_come_early(tmp_path: Path) -> None:
    """A test may want what no QEMU does."""
    main = main_stream(switchover=OPEN + PING + SWITCHOVER)
    write_capture(tmp_path, main, {0: [config_packet(0)]}, return_path=PONG + SHUT)
    async with playing(tmp_path, 2, hold_state=False) as destination:
        assert len(destination.received[1]) > 64
        assert SWITCHOVER not in destination.received[0]
        await destination.streams[0].send_all(SHUT)


@pytest.mark.parametrize(
    "last_word", [shut(1).encode(), b"", b"nonsense"], ids=["shut", "eof", "nonsense"]
)
async def test_destination_gives_up(tmp_path: Path, last_word: bytes) -> None:
    """A destination that has had enough ends the play, whatever it was waiting for."""
    main = main_stream(switchover=OPEN + PING + SWITCHOVER)
    write_capture(tmp_path, main, {0: [config_packet(0)]}, return_path=PONG + SHUT)
    async with playing(tmp_path, 2) as destination:
        await destination.streams[0].send_all(last_word)
        if not last_word:
            await destination.streams[0].aclose()
    assert destination.answers == last_word


async def test_destination_breaks_off_a_channel(tmp_path: Path) -> None:
    """Its last word is on the main connection, and is still heard."""
    main = main_stream(switchover=OPEN + SWITCHOVER)
    write_capture(tmp_path, main, {0: [config_packet(0)]}, return_path=PONG + SHUT)
    async with playing(tmp_path, 2) as destination:
        await destination.streams[1].aclose()
        await destination.streams[0].send_all(PONG)
        await trio.testing.wait_all_tasks_blocked()
        assert destination.ended == [1]
        await destination.streams[0].send_all(shut(1).encode())
    assert destination.answers == PONG + shut(1).encode()


async def test_main_breaks_before_switchover(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """Without a return path a destination just goes; the source then goes, too."""
    write_capture(tmp_path, main_stream(), {0: [config_packet(0)]})
    async with playing(tmp_path, 2, pause=1, piece=40) as destination:
        await destination.streams[0].aclose()
    assert trio.current_time() == 0
    assert len(destination.received[1]) <= 80


@pytest.mark.parametrize("why", ["main cut", "channel cut", "told to"])
async def test_leaves(tmp_path: Path, why: str) -> None:
    """Where the recorded source left, so does the player; it still listens."""
    main = main_stream(switchover=OPEN + SWITCHOVER)
    write_capture(tmp_path, main, {0: [config_packet(0)]})
    for name in ["main.bin"] * (why == "main cut") + ["multifd0.bin"] * (
        why == "channel cut"
    ):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    async with playing(tmp_path, 2, leave=why == "told to") as destination:
        left = [1] if why == "channel cut" else [0, 1]
        assert sorted(destination.ended) == left
        await destination.streams[0].send_all(shut(1).encode())
    assert destination.answers == shut(1).encode()


async def test_pause(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    """A slow source takes a pause behind each piece."""
    write_capture(tmp_path, main_stream())
    before, after = map(len, main_stream().split(SWITCHOVER))
    async with playing(tmp_path, 1, pause=2, piece=40):
        pass
    pieces = math.ceil(before / 40) + 1 + math.ceil(after / 40)
    assert trio.current_time() == 2 * pieces


async def test_no_main(tmp_path: Path) -> None:
    """A source that has lost its main connection says nothing there."""
    write_capture(tmp_path, None, {0: [config_packet(0)]})
    async with playing(tmp_path, 2) as destination:
        pass
    assert destination.received[0] == b""
    assert len(destination.received[1]) > 64


async def test_nonsense_in_the_recorded_answers(tmp_path: Path) -> None:
    """What was to be expected cannot be known, so nothing is played."""
    write_capture(tmp_path, main_stream(), return_path=b"nonsense")
    with pytest.raises(ValueError, match=r"return\.bin: return path message"):
        await play(tmp_path, Destination().connect)


async def test_cancelled(tmp_path: Path) -> None:
    """A cancelled play leaves no connection open."""
    main = main_stream(switchover=OPEN + PING + SWITCHOVER)
    write_capture(tmp_path, main, {0: [config_packet(0)]}, return_path=PONG + SHUT)
    destination = Destination()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play, tmp_path, destination.connect)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="the test says so")
    for number in (0, 1):
        await destination.read(number)
    assert destination.ended == [0, 1]
