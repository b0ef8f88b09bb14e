"""One multifd channel: stream to decoder to router, in a task and, for much, a thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import final

import attrs
import trio

from .._batch import as_batch
from .._errors import ConnectionLost, PeerProtocolError
from .._link._reader import Reader, SocketReader, reader
from .._link._stream import receive_exactly
from .._link._tls import is_secure, why_broken
from .._wire._channel_decoder import ChannelDecoder
from .._wire._multifd import RamPacket, StateHeader, StatePacket
from ._loader import IncomingDevice
from ._reorder import PATIENCE
from ._router import Channel, Router


async def receive_channel(
    stream: trio.abc.Stream,
    channel: Channel,
    router: Router,
    page_size: Callable[[], Awaitable[int]],
) -> None:
    """Take the packets of *channel* to their devices until it ends.

    Waits where a packet may not have memory yet; the peer then waits with us.
    If cancelled, what has arrived of a packet is dropped.

    Args:
      page_size: waits until the size of a page of RAM is known.

    Raises:
      PeerProtocolError: if the peer breaks the protocol, or the channel ends
        inside a packet, or its end leaves a device without a packet.
      ConnectionLost: if the connection breaks inside a packet, or TLS is cut.
    """
    try:
        # Read before the page size is known, a byte shows if the channel ends.
        if first := await _first_byte(stream, channel):
            channel.decoder = ChannelDecoder(await page_size())
            await _Receiver(stream, channel, channel.decoder, router).receive(first)
    except PeerProtocolError as error:
        if error.channel is None and error.offset is not None:
            error.channel = channel.name
        raise
    # Not after a cancel, lest it looked as if the channel had come to its end.
    router.end_channel(channel)
    router.check_progress()
    router.check_main()


async def _first_byte(stream: trio.abc.Stream, channel: Channel) -> bytes:
    try:
        return await receive_exactly(stream, 1)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        _broke_between_packets(stream, channel, error)
        return b""


def _broke_between_packets(
    stream: trio.abc.Stream, channel: Channel, error: Exception
) -> None:
    """Raise ConnectionLost if that was no end of *channel*."""
    if is_secure(stream):
        # Only the close alert tells an end from a cut, and QEMU sends it.
        reason = "TLS ended without a close alert"
        raise ConnectionLost(reason, channel=channel.name) from error


@final
@attrs.define(eq=False)
class _Receiver:
    """Receives one channel.

    A task waits for its bytes, and for memory. As long as neither has to be waited
    for, a plain socket is read in a thread: channels are then copied side by side,
    and their packets do not wait for Trio's next turn.
    """

    _stream: trio.abc.Stream
    _channel: Channel
    _decoder: ChannelDecoder
    _router: Router
    _ended: bool = attrs.field(default=False, init=False)
    _whole: tuple[IncomingDevice, StatePacket] | None = attrs.field(
        default=None, init=False
    )
    """A packet that has come and is still to be handed over, and to whom."""
    _waiting: StateHeader | None = attrs.field(default=None, init=False)
    """A header whose packet had to wait for memory."""
    _limiter: trio.CapacityLimiter = attrs.field(
        factory=lambda: trio.CapacityLimiter(1), init=False
    )

    async def receive(self, first: bytes) -> None:
        """Take *first* and all that comes behind it."""
        self._decoder.buffers()[0][: len(first)] = first
        self._decoder.received(len(first))
        source = reader(self._stream)
        try:
            while not self._ended:
                await self._receive_some(source)
                if self._waiting is not None:
                    await self._wait_for_memory(self._waiting)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._broke(error)

    async def _receive_some(self, source: Reader) -> None:
        if isinstance(source, SocketReader):
            await source.wait()
            with source.blocking():
                await trio.to_thread.run_sync(
                    self._receive_much, source, limiter=self._limiter
                )
        else:
            count = await source.fill(self._decoder.buffers())
            try:
                self._received(count)
            finally:
                self._hand_over()

    @as_batch()
    def _receive_much(self, source: SocketReader) -> None:
        """Receive as long as there is something to receive, in a thread."""
        try:
            while not self._ended:
                trio.from_thread.check_cancelled()
                count = source.fill(self._decoder.buffers(), self._hand_over)
                if count is None:
                    return
                self._received(count)
                if not self._has_memory_soon():
                    return
        finally:
            self._hand_over()

    def _received(self, count: int) -> None:
        """Take note of *count* bytes, 0 if there are no more. In any thread.

        If they make a packet whole, the caller has to hand it over, whatever is
        wrong with the next: as late as it can, for that may wake a thread, which
        could not go on before this one waits and frees the interpreter's lock.
        """
        if not count:
            self._decoder.received_eof()
            self._ended = True
            return
        self._router.activity.touch()
        for event in self._decoder.received(count):
            match event:
                case StatePacket():
                    device = self._router.device(event.header)
                    if not device.write_at_once(event):
                        self._whole = device, event
                case StateHeader():
                    self._channel.packets += 1
                    self._channel.device_state_packets += 1
                    self._accept(event, self._router.admit_now(event))
                case RamPacket():
                    self._channel.packets += 1

    async def _wait_for_memory(self, header: StateHeader) -> None:
        self._accept(header, await self._router.admit(self._channel, header))
        self._hand_over()

    def _has_memory_soon(self) -> bool:
        """Whether the next packet has memory, waiting a while for it in a thread."""
        if (header := self._waiting) is not None:
            self._hand_over()
            self._accept(header, self._router.admit_now(header, PATIENCE))
        return self._waiting is None

    def _accept(self, header: StateHeader, memory: memoryview | None) -> None:
        self._waiting = header if memory is None else None
        if memory is not None and (empty := self._decoder.accept(memory)) is not None:
            # Not before the one that came before it.
            self._hand_over()
            self._whole = self._router.device(empty.header), empty

    def _hand_over(self) -> None:
        if self._whole is not None:
            device, packet = self._whole
            self._whole = None
            device.put(packet)

    def _broke(
        self, error: trio.BrokenResourceError | trio.ClosedResourceError
    ) -> None:
        if self._decoder.inside_packet:
            why = why_broken(error, "the source")
            reason = f"broke inside a packet: {why}"
            raise ConnectionLost(reason, channel=self._channel.name) from error
        _broke_between_packets(self._stream, self._channel, error)
