"""Hypothesis strategies for all that a source sends.

Not imported by `trio_vfio.testing`: it needs Hypothesis, which is for you to install.

A stream is what goes over all connections of one migration, whole and honest;
`damaged` makes it what no honest source sends. A schedule says in which pieces its
bytes arrive, in which order and when, and a `ScriptedPeer` plays it::

    @given(schedules())
    def test_any_order_loads_the_same_state(schedule: Schedule) -> None:
        async def migrate() -> None:
            connect, there = link()
            sinks = {idstr: MySink() for idstr in schedule.stream.devices}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ScriptedPeer(connect, schedule.script).run)
                async with open_incoming(there, sinks) as incoming:
                    await incoming.wait_complete()
            for idstr, state in schedule.stream.devices.items():
                assert sinks[idstr].content == state.data

        trio.run(migrate, clock=MockClock(autojump_threshold=0))
"""

from __future__ import annotations

import struct
from typing import Final

import attrs
from hypothesis import strategies as st

from .._wire._limits import MAX_IDSTR
from .._wire._multifd import (
    INITIAL_SIZE,
    MULTIFD_MAGIC,
    NO_INDEX,
    PacketFlag,
    StateFlag,
    StateHeader,
)
from .._wire._vfio_section import Mark
from ._faults import ConnectionName
from ._main_stream import MainStream
from ._script import Piece, short
from ._source import initial_packet, state_packets

__all__ = [
    "COMPRESSIONS",
    "PAGE_SIZES",
    "Packet",
    "Schedule",
    "State",
    "Stream",
    "changed",
    "changes",
    "damaged",
    "garbage",
    "headers",
    "idstrs",
    "packets",
    "ram_packets",
    "schedules",
    "streams",
]

PAGE_SIZES: Final = (4096, 8192, 16384, 32768, 65536)
"""Bytes of a page of RAM of the machines there are."""

COMPRESSIONS: Final = (0x00, 0x02, 0x04, 0x08, 0x10, 0x20)
"""Flags of RAM packets: none, zlib, zstd, QPL, UADK, QATzip."""

_U32: Final = st.integers(0, 0xFFFF_FFFF)
_PRINTABLE: Final = st.characters(min_codepoint=0x20, max_codepoint=0x7E)

_WORDS: Final = (
    b"QEVM",
    b"\0\0\0\3",
    struct.pack("!II", MULTIFD_MAGIC, 1),
    b"\x07\0\0\0\4pc-1",
    b"\x01\0\0\0\x2a\4vfio\0\0\0\0\0\0\0\1",
    b"\x04\0\0\0\x2a\4vfio\0\0\0\0\0\0\0\1",
    b"\x01\0\0\0\1\3ram\0\0\0\0\0\0\0\4",
    b"\x01\0\0\0\2\x0cdirty-bitmap\0\0\0\0\0\0\0\1",
    b"\x01\0\0\0\4\x0aspapr/htab\0\0\0\0\0\0\0\1",
    b"\x01\0\0\0\5\x17s390-storage_attributes\0\0\0\0\0\0\0\0",
    b"\x04\0\0\0\6\x17virtio-mem-device-early\0\0\0\0\0\0\0\1",
    *(bytes([type_, 0, 0, 0, id_]) for type_ in (2, 3) for id_ in (2, 4, 5)),
    *(bytes([0x7E, 0, 0, 0, id_]) for id_ in (2, 4, 5, 6)),
    b"\x02\0\0\0\x2a",
    b"\x03\0\0\0\x2a",
    b"\x7e\0\0\0\x2a",
    b"\x7e\0\0\0\1",
    b"\x08\0\x0b\0\0",
    b"\x00\x06\0\0\0\2{}",
    b"\0\0\0\x40",
    b"\x10\0",
    *(mark.encode() for mark in Mark),
)

_MOST: Final = 100
"""Bytes of a buffer in a stream: what matters is their order."""

_CHUNKS: Final = (1, 7, 64, 300, 1 << 30)
_PAUSES: Final = (0.0, 0.0, 0.0, 0.01, 1.0, 20.0)
"""Less than the `Deadlines` there are by default."""


@attrs.frozen
class Packet:
    """One packet of a channel as it travels, and what it means."""

    raw: bytes = attrs.field(repr=short)
    header: StateHeader | None = None
    """None for RAM."""
    data: bytes = b""


@attrs.frozen
class State:
    """What a device has to be given."""

    data: bytes = attrs.field(repr=short)
    """All of it in order, pre-copy data first."""
    config: bytes = attrs.field(repr=short)


@attrs.frozen
class Stream:
    """All that a source sends over its connections."""

    main: bytes = attrs.field(repr=short)
    channels: tuple[bytes, ...] = attrs.field(
        repr=lambda raws: f"<{', '.join(str(len(raw)) for raw in raws)} bytes>"
    )
    """From the first packet on, which says the channel's id."""
    devices: dict[str, State]
    """What it means, before any damage, by idstr."""

    @property
    def connections(self) -> dict[ConnectionName, bytes]:
        """What goes over each connection, main first."""
        return {"main": self.main, **dict(enumerate(self.channels))}


@attrs.frozen
class Schedule:
    """A stream, and the order and the times in which it arrives."""

    stream: Stream
    script: tuple[Piece, ...]
    """For a `ScriptedPeer`; joined, the pieces are the stream."""


def idstrs() -> st.SearchStrategy[str]:
    """Names of devices and other things, as long as they may be."""
    long = st.text(_PRINTABLE, min_size=MAX_IDSTR - 5, max_size=MAX_IDSTR)
    return st.text(_PRINTABLE, min_size=1, max_size=40) | long


def headers(*, max_size: int = 600) -> st.SearchStrategy[StateHeader]:
    """Headers of device-state packets, with any index there can be.

    Each has an ``idstr``, an ``idx``, a ``size``, an ``instance_id``, and ``encode``.
    """
    return st.builds(
        StateHeader,
        idstr=idstrs(),
        idx=st.integers(0, NO_INDEX - 1),
        size=st.integers(0, max_size),
        flags=st.sampled_from([StateFlag(0), StateFlag.CONFIG]),
        instance_id=_U32,
    )


@st.composite
def packets(draw: st.DrawFn, *, page_size: int | None = 4096) -> Packet:
    """Packets of a channel: device state, RAM and SYNC; their content is arbitrary.

    Args:
      draw: given by Hypothesis.
      page_size: of the machine; None: no RAM.
    """
    if page_size is not None and draw(st.booleans()):
        return draw(ram_packets(page_size))
    data = draw(st.binary(max_size=600))
    header = attrs.evolve(draw(headers()), size=len(data))
    return Packet(header.encode() + data, header, data)


@st.composite
def ram_packets(draw: st.DrawFn, page_size: int = 4096) -> Packet:
    """RAM and SYNC packets, compressed or not; the content is arbitrary."""
    pages = 512 * 1024 // page_size
    sync = draw(st.booleans())
    flags = PacketFlag.SYNC if sync else draw(st.sampled_from(COMPRESSIONS))
    allocated = 0 if sync else pages
    payload = draw(st.integers(0, 3000) | st.just(0))
    fixed = draw(st.binary(min_size=1, max_size=8)) * (8 * pages + 296)
    head = struct.pack("!IIIIII", MULTIFD_MAGIC, 1, flags, allocated, 1, payload)
    return Packet(head + fixed[: 8 * pages + 296] + bytes(payload))


def garbage() -> st.SearchStrategy[bytes]:
    """Bytes of any kind, among them such as look like the protocol for a while."""
    words = st.sampled_from(_WORDS) | st.binary(max_size=12)
    return st.binary(max_size=400) | st.lists(words, max_size=30).map(b"".join)


def changes() -> st.SearchStrategy[list[tuple[float, int]]]:
    """Where to change a byte, as a part of the whole, and to what; for `changed`."""
    where = st.floats(0, 1, exclude_max=True)
    return st.lists(st.tuples(where, st.integers(0, 255)), max_size=6)


def changed(raw: bytes, changes: list[tuple[float, int]]) -> bytes:
    """Return *raw* with some of its bytes changed."""
    copy = bytearray(raw)
    for where, value in changes:
        copy[int(where * len(copy))] = value
    return bytes(copy)


@st.composite
def streams(draw: st.DrawFn, *, max_devices: int = 2, max_channels: int = 3) -> Stream:
    """Whole and honest migrations of VFIO devices, small ones.

    With and without a return path, pre-copy data, RAM on the channels; some devices
    send all their state over main. No device is sent twice, and the packets of each
    are handed out to the channels in order.
    """
    count = draw(st.integers(1, max_devices))
    names = [f"0000:00:{4 + number:02x}.0/vfio" for number in range(count)]
    main = MainStream()
    raw = main.begin(*names, return_path=draw(st.booleans()))
    data = dict.fromkeys(names, b"")
    for name in draw(st.lists(st.sampled_from(names), max_size=4)):
        piece = draw(st.none() | st.binary(min_size=1, max_size=_MOST))
        raw += main.precopy(name, piece, init_data_sent=draw(st.booleans()))
        data[name] += piece or b""
    raw += main.switch_over()
    devices: dict[str, State] = {}
    by_multifd: dict[str, list[bytes]] = {}
    for name in names:
        buffers = draw(st.lists(st.binary(max_size=_MOST), max_size=6))
        state = State(data[name] + b"".join(buffers), draw(st.binary(max_size=60)))
        devices[name] = state
        if draw(st.integers(0, 3)):
            by_multifd[name] = state_packets(name, buffers, state.config)
            raw += main.end_device(name)
        else:
            raw += main.end_device(name, filter(None, buffers), state.config)
    raw += main.end_stream()
    channels = draw(_handed_out(by_multifd, draw(st.integers(1, max_channels))))
    return Stream(raw, channels, devices)


@st.composite
def _handed_out(
    draw: st.DrawFn, by_device: dict[str, list[bytes]], channels: int
) -> tuple[bytes, ...]:
    """Give each packet to a channel, in the order in which each device makes them."""
    raws = [initial_packet(number) for number in range(channels)]
    if draw(st.booleans()):
        raws[0] += draw(ram_packets()).raw
    left = {name: list(packets) for name, packets in by_device.items()}
    while left:
        name = draw(st.sampled_from(sorted(left)))
        raws[draw(st.integers(0, channels - 1))] += left[name].pop(0)
        if not left[name]:
            del left[name]
    return tuple(raws)


@st.composite
def schedules(
    draw: st.DrawFn, streams: st.SearchStrategy[Stream] | None = None
) -> Schedule:
    """Any order, any cuts and any pauses in which the bytes of a stream may arrive.

    What each connection begins with comes within 10 seconds, and nothing is longer
    than 20 seconds in coming, so that no deadline of `Deadlines` passes.

    Args:
      draw: given by Hypothesis.
      streams: which streams; None: `streams`.
    """
    stream = draw(_streams() if streams is None else streams)
    left: dict[ConnectionName, bytes] = {}
    left |= {name: raw for name, raw in stream.connections.items() if raw}
    names: list[ConnectionName] = list(left)
    script: list[Piece] = []
    time = 0.0

    def send(name: ConnectionName, size: int, pause: float) -> None:
        nonlocal time
        time += pause
        script.append(Piece(time, name, left[name][:size]))
        left[name] = left[name][size:]
        if not left[name]:
            del left[name]

    for name in draw(st.permutations(names)):
        size, pause = (
            draw(st.sampled_from((1, INITIAL_SIZE))),
            draw(st.sampled_from(_PAUSES[:5])),
        )
        send(name, size, pause)
        if size < INITIAL_SIZE and name in left:
            send(name, INITIAL_SIZE - size, 0.5)
    for _ in range(draw(st.integers(0, 40))):
        if not left:
            break
        unsent: list[ConnectionName] = [name for name in names if name in left]
        name = draw(st.sampled_from(unsent))
        send(name, draw(st.sampled_from(_CHUNKS)), draw(st.sampled_from(_PAUSES)))
    for name in names:
        if name in left:
            send(name, len(left[name]), 0.0)
    return Schedule(stream, tuple(script))


# Where an argument has the same name.
_streams = streams


@st.composite
def damaged(draw: st.DrawFn, stream: Stream) -> Stream:
    """What is left of *stream* after one to three mishaps, or acts of malice.

    Bytes change, are lost, come twice, or are made up; a connection ends early. It may
    happen to mean the same as before. As a source of them: ``streams().flatmap(damaged)``.
    """
    raws = list(stream.connections.values())
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(raws) - 1))
        raws[number] = draw(_mishaps(raws[number]))
    return Stream(raws[0], tuple(raws[1:]), stream.devices)


@st.composite
def _mishaps(draw: st.DrawFn, raw: bytes) -> bytes:
    begin, end = sorted(int(draw(st.floats(0, 1)) * len(raw)) for _ in range(2))
    match draw(st.sampled_from(["change", "lose", "repeat", "make up", "cut"])):
        case "change":
            return changed(raw, draw(changes())) if raw else raw
        case "lose":
            return raw[:begin] + raw[end:]
        case "repeat":
            return raw[:end] + raw[begin:]
        case "make up":
            return raw[:begin] + draw(garbage()) + raw[begin:]
        case _:
            return raw[:begin]
