"""Ways to feed a decoder: the same bytes, cut in many ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

from trio_vfio._wire._channel_decoder import ChannelDecoder, ChannelEvent
from trio_vfio._wire._main_decoder import MainDecoder
from trio_vfio._wire._main_events import MainEvent
from trio_vfio._wire._multifd import StateHeader, StatePacket


def cut(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Cut *data* into pieces of *sizes*, which begin anew when they run out."""
    at = 0
    for size in cycle(sizes):
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size


def drain(decoder: MainDecoder) -> Iterator[MainEvent]:
    """Return the events that are there."""
    while (event := decoder.next_event()) is not None:
        yield event


def main_events(
    pieces: Iterable[bytes], *, page_size: int | None = None, end: bool = True
) -> list[MainEvent]:
    """Decode a main stream that arrives in *pieces*, and then ends."""
    decoder = MainDecoder(page_size)
    events: list[MainEvent] = []
    for piece in pieces:
        decoder.received(piece)
        events += drain(decoder)
    if end:
        decoder.received_eof()
        events += drain(decoder)
        assert decoder.complete
        assert not decoder.inside_piece
    return events


def put(decoder: ChannelDecoder, data: bytes) -> list[ChannelEvent]:
    """Put *data* where the decoder wants it; it must have room for all."""
    left = data
    for buffer in decoder.buffers():
        count = min(len(buffer), len(left))
        buffer[:count] = left[:count]
        left = left[count:]
    assert not left
    return decoder.received(len(data))


def room(decoder: ChannelDecoder) -> int:
    """Return how many bytes the decoder can take at once."""
    return sum(map(len, decoder.buffers()))


def feed_channel(
    decoder: ChannelDecoder, data: bytes, sizes: Iterable[int]
) -> Iterator[ChannelEvent]:
    """Feed *data* in reads of at most *sizes*, and give memory where it is wanted."""
    at = 0
    for size in sizes:
        if at >= len(data):
            return
        piece = data[at : at + min(size, room(decoder))]
        at += len(piece)
        events = put(decoder, piece)
        yield from events
        if events and isinstance(events[-1], StateHeader):
            whole = decoder.accept(bytearray(events[-1].size))
            if whole is not None:
                yield whole


def channel_events(
    data: bytes, sizes: Sequence[int], page_size: int = 4096
) -> list[ChannelEvent]:
    """Decode a channel, from behind its initial packet to its end."""
    decoder = ChannelDecoder(page_size)
    events = list(feed_channel(decoder, data, cycle(sizes)))
    decoder.received_eof()
    return events


def state_packets(events: Iterable[ChannelEvent]) -> list[StatePacket]:
    """Return the packets that arrived whole."""
    return [event for event in events if isinstance(event, StatePacket)]
