"""Pure tests: the packets of a multifd channel, however they are cut."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import cycle, repeat
from typing import Final

import attrs
import pytest
from hypothesis import given, strategies as st

from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire._channel_decoder import ChannelDecoder, ChannelEvent
from trio_vfio._wire._limits import KIB, MAX_DEVICES, MAX_PACKET_PAYLOAD, MIB
from trio_vfio._wire._multifd import (
    INITIAL_SIZE,
    STATE_FIXED_SIZE,
    STATE_HEADER_SIZE,
    DeviceNames,
    InitialPacket,
    PacketFlag,
    RamPacket,
    StateFlag,
    StateHeader,
    StatePacket,
)
from trio_vfio.testing.strategies import (
    COMPRESSIONS,
    PAGE_SIZES,
    Packet,
    changed,
    changes,
    garbage,
)

from ..strategies import channels, initial_packets, splits
from ..streams import IDSTR
from .feeding import channel_events, feed_channel, put, room

HEADER: Final = StateHeader(IDSTR, 3, 16)
DATA: Final = bytes(range(16))
PACKET: Final = HEADER.encode() + DATA

_WHOLE: Final = 1 << 30


def placed(header: StateHeader, offset: int = INITIAL_SIZE) -> StateHeader:
    return attrs.evolve(header, offset=offset)


# The initial packet


@given(initial_packets)
def test_initial_packet_round_trip(packet: InitialPacket) -> None:
    assert InitialPacket.decode_untrusted(packet.encode()) == packet


@given(st.binary(max_size=80) | st.binary(min_size=64, max_size=64))
def test_initial_packet_of_garbage(raw: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        InitialPacket.decode_untrusted(raw)


@given(initial_packets, changes())
def test_initial_packet_with_changes(
    packet: InitialPacket, where: list[tuple[float, int]]
) -> None:
    """A changed one is refused, or is another one; what is unused does not count."""
    raw = changed(packet.encode(), where)
    try:
        found = InitialPacket.decode_untrusted(raw)
    except PeerProtocolError:
        return
    assert found.encode()[:25] == raw[:25]


def initial(magic: int, version: int, channel_id: int) -> bytes:
    return struct.pack("!II16xB39x", magic, version, channel_id)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "initial packet of 0 bytes"),
        (bytes(63), "initial packet of 63 bytes"),
        (bytes(65), "initial packet of 65 bytes"),
        (initial(0x5145564D, 1, 0), "initial packet with magic 0x5145564d"),
        (initial(0, 1, 0), "initial packet with magic 0x00000000"),
        (initial(0x11223344, 2, 0), "initial packet of unknown version 2"),
        (initial(0x11223344, 1, 255), "channel id 255 of at most 255 channels"),
    ],
)
def test_initial_packet_refused(raw: bytes, words: str) -> None:
    with pytest.raises(PeerProtocolError) as caught:
        InitialPacket.decode_untrusted(raw)
    assert caught.value.reason == words


# Refusals, by how many bytes are needed to see them


def common(magic: int = 0x11223344, version: int = 1, flags: int = 0x40) -> bytes:
    return struct.pack("!III", magic, version, flags)


def state(idstr: bytes = IDSTR.encode(), payload: int = 28) -> bytes:
    return common() + struct.pack("!256sII", idstr, 0, payload)


def vfio(version: int = 0, idx: int = 0, flags: int = 0) -> bytes:
    return state() + struct.pack("!III", version, idx, flags)


def ram(flags: int = 0, allocated: int = 128, payload: int = 0) -> bytes:
    return common(flags=flags) + struct.pack("!III", allocated, 0, payload)


REFUSALS: Final = [
    (common(magic=0x11223345), "packet with magic 0x11223345"),
    (b"QEVM\0\0\0\3\7\0\0\0", "packet with magic 0x5145564d"),
    (common(version=0), "packet of unknown version 0"),
    (common(version=0xFFFFFFFF), "packet of unknown version 4294967295"),
    *(
        (common(flags=flags), f"packet with unknown flags {flags:#x}")
        for flags in (0x80, 0x81, 0xC0, 0x100, 0x8000_0000, 0xFFFF_FFFF)
    ),
    *(
        (common(flags=flags), f"device-state packet with flags {flags:#x}")
        for flags in (0x41, 0x42, 0x60, 0x7F)
    ),
    (
        state(b"a" * 256),
        f"device-state packet with an unterminated idstr: {b'a' * 64!r}",
    ),
    *(
        (state(name), "device-state packet with bytes behind its idstr: b'vfio'")
        for name in (b"vfio" + bytes(251) + b"x", b"vfio\0x")
    ),
    (state(b""), "not a printable idstr: b''"),
    (state(b"vf\x1bio"), r"not a printable idstr: b'vf\x1bio'"),
    (state("vfiö".encode()), r"not a printable idstr: b'vfi\xc3\xb6'"),
    *(
        (
            state(payload=size),
            f"device-state packet of {IDSTR} with a payload of {size} bytes",
        )
        for size in (0, 11, MAX_PACKET_PAYLOAD + 1, 0xFFFF_FFFF)
    ),
    (vfio(version=1), f"device-state packet of {IDSTR} of unknown version 1"),
    (vfio(idx=0xFFFF_FFFF), f"device-state packet of {IDSTR} without an index"),
    *(
        (
            vfio(idx=7, flags=flags),
            f"device-state packet of {IDSTR}, idx 7, with unknown flags {flags:#x}",
        )
        for flags in (2, 3, 0x8000_0000, 0xFFFF_FFFF)
    ),
    *(
        (
            ram(allocated=allocated),
            f"RAM packet for {allocated} pages where a page size of 4096 makes it 128;"
            " if the machine has another page size, say so",
        )
        for allocated in (1, 64, 127, 129, 0xFFFF_FFFF)
    ),
    (ram(payload=MAX_PACKET_PAYLOAD + 1), "RAM packet of 16777217 bytes"),
    (ram(flags=1, allocated=0, payload=0xFFFF_FFFF), "RAM packet of 4294967295 bytes"),
]


@pytest.mark.parametrize(("raw", "reason"), REFUSALS)
@pytest.mark.parametrize("before", [b"", PACKET, ram() + bytes(1320)])
def test_refused_as_soon_as_possible(raw: bytes, reason: str, before: bytes) -> None:
    """With the byte that shows it, and with an offset to where its packet begins.

    A peer cannot hide nonsense by not sending the rest of it.
    """
    offset = INITIAL_SIZE + len(before)
    for sizes in ([1], [_WHOLE], [5]):
        decoder = ChannelDecoder(4096)
        list(feed_channel(decoder, before + raw[:-1], cycle(sizes)))
        with pytest.raises(PeerProtocolError) as caught:
            put(decoder, raw[-1:])
        assert caught.value.reason == reason
        assert caught.value.offset == offset
    with pytest.raises(PeerProtocolError) as caught:
        channel_events(before + raw + bytes(2000), [_WHOLE])
    assert caught.value.reason == reason
    assert caught.value.offset == offset


def test_sizes_at_the_limit() -> None:
    """16 MiB of payload and 255 characters of name are fine."""
    size = MAX_PACKET_PAYLOAD - 12
    header = StateHeader("v" * 255, 0xFFFF_FFFE, size, instance_id=0xFFFF_FFFF)
    decoder = ChannelDecoder(4096)
    assert put(decoder, header.encode()) == [placed(header)]
    assert decoder.accept(bytearray(size)) is None
    assert room(decoder) == size + STATE_HEADER_SIZE
    decoder = ChannelDecoder(4096)
    (packet,) = put(decoder, ram(payload=MAX_PACKET_PAYLOAD))
    assert packet == RamPacket(PacketFlag(0), 1320 + MAX_PACKET_PAYLOAD, INITIAL_SIZE)


# Packets


@pytest.mark.parametrize("sizes", [[_WHOLE], [1], [287, 2]])
def test_packet_without_data(sizes: list[int]) -> None:
    """It is whole as soon as memory of no bytes is given."""
    header = StateHeader(IDSTR, 0, 0, StateFlag.CONFIG)
    first, second = placed(header), placed(header, INITIAL_SIZE + STATE_HEADER_SIZE)
    nothing = memoryview(b"")
    assert channel_events(header.encode() * 2, sizes) == [
        first,
        StatePacket(first, nothing),
        second,
        StatePacket(second, nothing),
    ]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("flags", [*COMPRESSIONS, 0x01, 0x03])
def test_ram_packet(page_size: int, flags: int) -> None:
    """Its length depends on the page size, be it compressed or not, or a SYNC."""
    pages = 512 * KIB // page_size
    for allocated, payload in [(pages, 0), (pages, 70_000), (0, 0), (0, 5)]:
        raw = ram(flags, allocated, payload) + bytes(296 + 8 * pages + payload)
        behind = StateHeader(IDSTR, 0, 1, offset=INITIAL_SIZE + len(raw))
        for sizes in ([_WHOLE], [997]):
            assert channel_events(raw + behind.encode() + b"x", sizes, page_size) == [
                RamPacket(PacketFlag(flags), len(raw) - 24, INITIAL_SIZE),
                behind,
                StatePacket(behind, memoryview(b"x")),
            ]


def test_memory_is_not_taken_before_it_is_accepted() -> None:
    """Between a header and its memory, nothing can be read."""
    decoder = ChannelDecoder(4096)
    assert room(decoder) == STATE_HEADER_SIZE
    assert put(decoder, HEADER.encode()) == [placed(HEADER)]
    with pytest.raises(RuntimeError, match="not been accepted"):
        decoder.buffers()
    for size in (0, 15, 17):
        with pytest.raises(RuntimeError, match=f"{size} bytes of memory for packet 3"):
            decoder.accept(bytearray(size))
    memory = bytearray(16)
    assert decoder.accept(memory) is None
    with pytest.raises(RuntimeError, match="no header"):
        decoder.accept(memory)
    assert put(decoder, DATA[:7]) == []
    assert memory[:7] == DATA[:7]
    (packet,) = put(decoder, DATA[7:])
    assert isinstance(packet, StatePacket)
    assert packet.data.obj is memory
    assert memory == DATA
    assert repr(packet).count("<16 bytes>") == 1
    with pytest.raises(RuntimeError, match="no header"):
        decoder.accept(memory)


def test_one_read_ends_a_packet_and_begins_the_next() -> None:
    decoder = ChannelDecoder(4096)
    put(decoder, HEADER.encode())
    decoder.accept(bytearray(16))
    assert [len(buffer) for buffer in decoder.buffers()] == [16, STATE_HEADER_SIZE]
    whole, header = put(decoder, DATA + HEADER.encode())
    assert isinstance(whole, StatePacket)
    assert header == placed(HEADER, INITIAL_SIZE + len(PACKET))
    assert decoder.position == INITIAL_SIZE + len(PACKET) + STATE_HEADER_SIZE
    assert decoder.packet_offset == INITIAL_SIZE + len(PACKET)


def test_packet_is_not_lost_because_of_the_one_behind_it() -> None:
    """What is whole is returned; the refusal comes with the next call."""
    decoder = ChannelDecoder(4096)
    put(decoder, HEADER.encode())
    decoder.accept(bytearray(16))
    (whole,) = put(decoder, DATA + b"no magic number")
    assert whole == StatePacket(placed(HEADER), memoryview(DATA))
    for call in (decoder.buffers, decoder.received_eof):
        with pytest.raises(PeerProtocolError, match="magic 0x6e6f206d") as caught:
            call()
        assert caught.value.offset == INITIAL_SIZE + len(PACKET)


def test_dropped_bytes_do_not_run_into_the_next_packet() -> None:
    """RAM is dropped in reads of 64 KiB; the last one may go on to a header."""
    decoder = ChannelDecoder(4096)
    put(decoder, ram(payload=100 * KIB))
    rest = 1320 + 100 * KIB
    assert [len(buffer) for buffer in decoder.buffers()] == [64 * KIB]
    assert put(decoder, bytes(64 * KIB)) == []
    rest -= 64 * KIB
    assert [len(buffer) for buffer in decoder.buffers()] == [rest, STATE_HEADER_SIZE]
    assert put(decoder, bytes(rest)) == []
    assert not decoder.inside_packet
    assert [len(buffer) for buffer in decoder.buffers()] == [STATE_HEADER_SIZE]


@pytest.mark.parametrize("length", [1, 11, 12, 275, 276, 287, 288, 289, 303])
@pytest.mark.parametrize("before", [0, 1])
def test_end_inside_a_packet(length: int, before: int) -> None:
    decoder = ChannelDecoder(4096)
    list(feed_channel(decoder, PACKET * before + PACKET[:length], repeat(_WHOLE)))
    assert decoder.inside_packet
    with pytest.raises(PeerProtocolError, match="ends inside the packet") as caught:
        decoder.received_eof()
    assert caught.value.offset == INITIAL_SIZE + before * len(PACKET)


@pytest.mark.parametrize("length", [12, 23, 24, 288, 289, 1343, 1344, 5343])
def test_end_inside_a_ram_packet(length: int) -> None:
    raw = ram(payload=4000) + bytes(1320 + 4000)
    with pytest.raises(PeerProtocolError, match="ends inside the packet") as caught:
        channel_events(PACKET + raw[:length], [_WHOLE])
    assert caught.value.offset == INITIAL_SIZE + len(PACKET)


def test_end_before_the_header_is_accepted() -> None:
    decoder = ChannelDecoder(4096)
    put(decoder, HEADER.encode())
    with pytest.raises(PeerProtocolError, match="ends inside the packet"):
        decoder.received_eof()


def test_end_between_packets() -> None:
    assert channel_events(b"", [1]) == []
    assert len(channel_events(PACKET * 2, [_WHOLE])) == 4


# Every byte counts

CHANGES: Final[list[Callable[[int], int]]] = [
    lambda byte: byte ^ 0x01,
    lambda byte: byte ^ 0x80,
    lambda byte: byte ^ 0x20,
    lambda byte: 0x00 if byte else 0x7F,
    lambda byte: byte | 0xFF,
]


def test_no_byte_of_a_header_is_of_no_account() -> None:
    """Each of the 288 bytes changed: refused, or another header, or none yet."""
    of_no_account = []
    for at in range(STATE_HEADER_SIZE):
        for change in CHANGES:
            raw = bytearray(PACKET)
            raw[at] = change(raw[at])
            decoder = ChannelDecoder(4096)
            try:
                events = list(feed_channel(decoder, bytes(raw), repeat(_WHOLE)))
            except PeerProtocolError:
                continue
            if not events or events[0] == placed(HEADER):
                of_no_account.append(at)
    assert of_no_account == []


@pytest.mark.parametrize(
    ("part", "enough"),
    [(slice(0, 12), 12), (slice(12, 276), STATE_FIXED_SIZE), (slice(276, 288), 288)],
)
def test_bytes_are_judged_with_their_part(part: slice, enough: int) -> None:
    """What one byte can spoil, shows when its part of the header is there."""
    for at in range(*part.indices(STATE_HEADER_SIZE)):
        raw = bytearray(PACKET)
        raw[at] ^= 0x80
        decoder = ChannelDecoder(4096)
        put(decoder, bytes(raw[: enough - 1]))
        try:
            put(decoder, bytes(raw[enough - 1 : enough]))
        except PeerProtocolError:
            continue
        # Any instance id and any idx will do, and many lengths.
        assert at in range(268, 276) or at in range(280, 284)


# Properties


@given(channels(), splits)
def test_any_split_gives_the_same_events(
    channel: tuple[int, list[Packet]], sizes: list[int]
) -> None:
    page_size, packets = channel
    offset = INITIAL_SIZE
    expected: list[StateHeader | StatePacket | RamPacket] = []
    for packet in packets:
        if packet.header is None:
            flags = PacketFlag(int.from_bytes(packet.raw[8:12]))
            expected.append(RamPacket(flags, len(packet.raw) - 24, offset))
        else:
            header = placed(packet.header, offset)
            expected += [header, StatePacket(header, memoryview(packet.data))]
        offset += len(packet.raw)
    raw = b"".join(packet.raw for packet in packets)
    assert channel_events(raw, [_WHOLE], page_size) == expected
    assert channel_events(raw, sizes, page_size) == expected


@given(garbage(), splits, st.sampled_from(PAGE_SIZES))
def test_garbage(raw: bytes, sizes: list[int], page_size: int) -> None:
    """It is refused, and by no other error."""
    if raw:
        with pytest.raises(PeerProtocolError) as caught:
            channel_events(raw, sizes, page_size)
        assert caught.value.offset is not None
        assert INITIAL_SIZE <= caught.value.offset <= INITIAL_SIZE + len(raw)


@given(channels(), splits, changes())
def test_changed_packets(
    channel: tuple[int, list[Packet]],
    sizes: list[int],
    where: list[tuple[float, int]],
) -> None:
    """The same in every split, also the refusal."""
    page_size, packets = channel
    raw = b"".join(packet.raw for packet in packets)
    if raw:
        raw = changed(raw, where)
    outcomes = []
    for split in ([_WHOLE], sizes):
        decoder = ChannelDecoder(page_size)
        events = []
        try:
            for event in feed_channel(decoder, raw, cycle(split)):
                events.append(event)  # noqa: PERF402 (those before the refusal)
            decoder.received_eof()
        except PeerProtocolError as error:
            outcomes.append((events, error.reason, error.offset))
        else:
            outcomes.append((events, "", None))
    assert outcomes[0] == outcomes[1]


def test_memory_for_a_packet_is_the_callers() -> None:
    """The decoder itself keeps nothing but a header."""
    decoder = ChannelDecoder(4096)
    header = StateHeader(IDSTR, 0, 8 * MIB)
    put(decoder, header.encode())
    decoder.accept(memory := bytearray(8 * MIB))
    for _ in range(8):
        put(decoder, b"x" * MIB)
    assert memory == b"x" * (8 * MIB)
    assert len(decoder._header) == STATE_HEADER_SIZE
    assert decoder._data is None


# Of a device that is known already, a header is read at once


class Unknown(DeviceNames):  # type: ignore[misc]  # (final, but for this)
    """Knows no device, so that each header is looked at part by part."""

    def add(self, header: bytearray, packet: StateHeader) -> None:
        """Forget it."""


def outcome(
    raw: bytes, sizes: Iterable[int], page_size: int = 4096, *, knows: bool
) -> tuple[list[ChannelEvent], str, int | None, int]:
    """Decode a channel; return the events, what is wrong with it, and where it ends."""
    decoder = ChannelDecoder(page_size)
    if not knows:
        decoder._names = Unknown()
    events: list[ChannelEvent] = []
    try:
        for event in feed_channel(decoder, raw, sizes):
            events.append(event)  # noqa: PERF402 (those before the refusal)
        decoder.received_eof()
    except PeerProtocolError as error:
        return events, error.reason, error.offset, decoder.position
    return events, "", None, decoder.position


def test_what_is_wrong_with_a_header_of_a_known_device() -> None:
    """Each byte of it changed: the same packet, or the same refusal, as of any other."""
    known = attrs.evolve(HEADER, idx=0).encode() + DATA
    refused = 0
    for at in range(STATE_HEADER_SIZE):
        for change in CHANGES:
            raw = bytearray(known + PACKET + DATA)
            raw[len(known) + at] = change(raw[len(known) + at])
            there = outcome(bytes(raw), [len(known), *repeat(_WHOLE, 9)], knows=True)
            assert there == outcome(bytes(raw), repeat(_WHOLE), knows=False)
            assert there[0][1] == StatePacket(
                placed(attrs.evolve(HEADER, idx=0)), memoryview(DATA)
            )
            refused += bool(there[1])
    assert refused > 1000


@pytest.mark.parametrize("size", [0, 1, MAX_PACKET_PAYLOAD - 12])
@pytest.mark.parametrize("flags", list(StateFlag) + [StateFlag(0)])
def test_a_second_header_of_a_device(size: int, flags: StateFlag) -> None:
    header = StateHeader(IDSTR, 0xFFFF_FFFE, size, flags, instance_id=7)
    raw = attrs.evolve(header, idx=1, size=0).encode() + header.encode()
    events = list(feed_channel(ChannelDecoder(4096), raw, repeat(_WHOLE)))
    assert placed(header, INITIAL_SIZE + STATE_HEADER_SIZE) in events
    # A plain number would be printed as one.
    assert all(
        isinstance(event.flags, StateFlag)
        for event in events
        if isinstance(event, StateHeader)
    )


def test_devices_of_one_name_are_two() -> None:
    one, other = (StateHeader(IDSTR, 0, 0, instance_id=number) for number in (0, 1))
    raw = one.encode() + other.encode() + attrs.evolve(one, idx=1).encode()
    headers = [
        event
        for event in feed_channel(ChannelDecoder(4096), raw, repeat(_WHOLE))
        if isinstance(event, StateHeader)
    ]
    assert [(each.instance_id, each.idx) for each in headers] == [
        (0, 0),
        (1, 0),
        (0, 1),
    ]


def test_a_channel_remembers_no_more_devices_than_there_can_be() -> None:
    """Else a peer could make it remember names without end."""
    decoder = ChannelDecoder(4096)
    raw = b"".join(
        StateHeader(f"{number}/vfio", 0, 0).encode()
        for number in range(MAX_DEVICES + 9)
    )
    events = list(feed_channel(decoder, raw * 2, repeat(_WHOLE)))
    assert len(decoder._names._names) == MAX_DEVICES
    names = [each.idstr for each in events if isinstance(each, StateHeader)]
    assert names == [f"{number}/vfio" for number in range(MAX_DEVICES + 9)] * 2


@given(channels(), splits, changes() | st.just([]))
def test_a_known_device_makes_no_difference(
    channel: tuple[int, list[Packet]],
    sizes: list[int],
    where: list[tuple[float, int]],
) -> None:
    """In no split, whatever has changed."""
    page_size, packets = channel
    raw = b"".join(packet.raw for packet in packets)
    if raw:
        raw = changed(raw * 2, where)
    whole = outcome(raw, repeat(_WHOLE), page_size, knows=True)
    part_by_part = outcome(raw, cycle(sizes), page_size, knows=False)
    assert whole[:3] == part_by_part[:3]
    # And no more was read before it was refused.
    assert outcome(raw, cycle(sizes), page_size, knows=True) == part_by_part
