"""Play the source's part of a capture to a destination.

Each connection sends its file on its own, as a source does, but for what
`_parts` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from io import BufferedReader
from pathlib import Path
from typing import Final, final

import attrs
import trio

from .._errors import PeerProtocolError
from .._types import Connect
from .._wire._limits import KIB
from .._wire._return_path import ReturnPathDecoder, ReturnPathFrame, ReturnPathType
from ._channel_scan import ChannelScan
from ._parts import (
    Awaits,
    answers_before_switchover,
    count_answers,
    parts_of_channel,
    parts_of_main,
)
from ._report import CaptureScan, scan_capture

_PIECE: Final = 64 * KIB


async def play(
    path: Path,
    connect: Connect,
    *,
    piece: int = _PIECE,
    pause: float = 0,
    hold_state: bool = True,
    leave: bool = False,
) -> bytes:
    """Send what the source of a capture sent, each file over its own connection.

    All connections are made before the first byte of any is sent. They stay
    open until the destination said SHUT or left or, if the capture has no
    return path, until all was sent. A destination that leaves early ends the
    play; that is no error here.

    Cancellation: all connections are closed.

    Args:
      connect: makes a connection to the destination. Called once for the main
        connection, then once for each multifd channel, in order of their ids.
      piece: how many bytes to send at a time.
      pause: how many seconds to wait between two pieces.
      hold_state: keep the first device-state packet of each channel, and all
        behind it, until SWITCHOVER_START was sent.
      leave: end all connections as soon as all was sent. Always so if the main
        stream is not whole: that source left, too.

    Returns: what came on the return path.

    Raises:
      ValueError: if there is no capture at *path*.
      OSError: if it cannot be read, or *connect* raises it.
    """
    scan = scan_capture(path)
    player = _Player(scan, piece, pause, hold_state, answers_before_switchover(scan))
    async with AsyncExitStack() as stack:
        main = await stack.enter_async_context(await connect())
        channels = [
            (await stack.enter_async_context(await connect()), channel)
            for channel in scan.channels
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(player.listen, main, nursery.cancel_scope)
            async with trio.open_nursery() as sending:
                sending.start_soon(player.send_main, main)
                for stream, channel in channels:
                    sending.start_soon(player.send_channel, stream, channel)
            if leave or scan.main.fault is not None:
                for stream in (main, *(stream for stream, _ in channels)):
                    await _end(stream)
            if not scan.main.return_path:
                nursery.cancel_scope.cancel(reason="all was sent")
    return bytes(player.answers)


@final
@attrs.define(eq=False)
class _Player:
    scan: CaptureScan
    piece: int
    pause: float
    hold_state: bool
    answers_wanted: int
    """How many PONG and SWITCHOVER_ACK to wait for before SWITCHOVER_START."""
    answers: bytearray = attrs.field(factory=bytearray, init=False)
    _answered: trio.Event = attrs.field(factory=trio.Event, init=False)
    _switched_over: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def listen(self, main: trio.abc.Stream, play: trio.CancelScope) -> None:
        """Take what the destination says; end *play* at its last word."""
        decoder = ReturnPathDecoder()
        self._count(())
        try:
            async for data in main:
                self.answers += data
                if self._count(decoder.received(bytes(data))):
                    break
        except (trio.BrokenResourceError, PeerProtocolError):
            pass
        play.cancel(reason="the destination has said its last word")

    def _count(self, frames: Iterable[ReturnPathFrame]) -> bool:
        """Take note of *frames*. Returns whether SHUT is among them."""
        frames = list(frames)
        self.answers_wanted -= count_answers(frames)
        if self.answers_wanted <= 0:
            self._answered.set()
        return ReturnPathType.SHUT in (frame.type for frame in frames)

    async def send_main(self, stream: trio.abc.Stream) -> None:
        """Send the main stream, and wait in it for what a source waits for."""
        if not self.scan.capture.main.exists():
            return
        with self.scan.capture.main.open("rb") as file:
            for part in parts_of_main(self.scan):
                if part.awaits is Awaits.ANSWERS:
                    await self._answered.wait()
                taken = await self._send(stream, file, part.size)
                if part.awaits is Awaits.ANSWERS:
                    self._switched_over.set()
                if not taken:
                    return

    async def send_channel(self, stream: trio.abc.Stream, channel: ChannelScan) -> None:
        """Send the file of one channel; end it if it was cut."""
        with self.scan.capture.channel(channel.result.id).open("rb") as file:
            for part in parts_of_channel(self.scan, channel):
                if part.awaits is Awaits.SWITCHOVER and self.hold_state:
                    await self._switched_over.wait()
                if not await self._send(stream, file, part.size):
                    return
        if channel.fault is not None and channel.fault.cut:
            await _end(stream)

    async def _send(
        self, stream: trio.abc.Stream, file: BufferedReader, count: int
    ) -> bool:
        """Send the next *count* bytes. Returns whether the destination took them."""
        # From the page cache, as a rule: a thread would cost more than the read.
        while data := file.read(min(count, self.piece)):  # noqa: ASYNC232
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                # It left. Its last word may still be on the main connection.
                return False
            count -= len(data)
            await trio.sleep(self.pause)
        return True


async def _end(stream: trio.abc.Stream) -> None:
    """Say that nothing more will come; keep listening where that is possible."""
    if not isinstance(stream, trio.abc.HalfCloseableStream):
        await stream.aclose()
        return
    with suppress(trio.BrokenResourceError):
        await stream.send_eof()
