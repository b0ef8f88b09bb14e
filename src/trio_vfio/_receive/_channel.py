"""One task per multifd channel: stream to decoder to router."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from .._errors import ConnectionLost, PeerProtocolError
from .._link._stream import fill, plain_stream, receive_exactly
from .._wire._channel_decoder import ChannelDecoder
from .._wire._multifd import RamPacket, StateHeader, StatePacket
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
        if first := await _first_byte(stream):
            channel.decoder = ChannelDecoder(await page_size())
            await _receive(stream, first, channel.decoder, channel, router)
    except PeerProtocolError as error:
        if error.channel is None and error.offset is not None:
            error.channel = channel.name
        raise
    # Not after a cancel, lest it looked as if the channel had come to its end.
    router.end_channel(channel)
    router.check_progress()
    router.check_main()


async def _first_byte(stream: trio.abc.Stream) -> bytes:
    try:
        return await receive_exactly(stream, 1)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


async def _receive(
    stream: trio.abc.Stream,
    first: bytes,
    decoder: ChannelDecoder,
    channel: Channel,
    router: Router,
) -> None:
    decoder.buffers()[0][: len(first)] = first
    decoder.received(len(first))
    while True:
        try:
            count = await fill(stream, decoder.buffers())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if decoder.inside_packet:
                reason = f"broke inside a packet: {error}"
                raise ConnectionLost(reason, channel=channel.name) from error
            if plain_stream(stream) is not stream:
                # Only the close alert tells an end from a cut, and QEMU sends it.
                reason = "TLS ended without a close alert"
                raise ConnectionLost(reason, channel=channel.name) from error
            return
        if not count:
            decoder.received_eof()
            return
        router.activity.touch()
        for event in decoder.received(count):
            match event:
                case StatePacket():
                    await router.device(event.header).put(event)
                case StateHeader():
                    channel.packets += 1
                    channel.device_state_packets += 1
                    memory = await router.admit(channel, event)
                    if (whole := decoder.accept(memory)) is not None:
                        await router.device(event).put(whole)
                case RamPacket():
                    channel.packets += 1
