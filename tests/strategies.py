"""Hypothesis strategies for all that travels. New ones belong here, not in tests."""

from __future__ import annotations

import struct
from typing import Final

import attrs
from hypothesis import strategies as st

from trio_vfio._wire._config_blob import ConfigBlob, msix_vectors
from trio_vfio._wire._main_encode import END_PAYLOAD, SETUP_PAYLOAD
from trio_vfio._wire._main_events import CommandType, SectionType
from trio_vfio._wire._multifd import (
    MULTIFD_MAGIC,
    NO_INDEX,
    InitialPacket,
    PacketFlag,
    StateFlag,
    StateHeader,
)
from trio_vfio._wire._return_path import (
    SWITCHOVER_ACK,
    ReturnPathFrame,
    ReturnPathType,
    pong,
    shut,
)
from trio_vfio._wire._vfio_section import Mark

from .streams import (
    ATTRIBUTES,
    DIRTY_BITMAP,
    HTAB,
    ITERABLE,
    MACHINE,
    RAM_END,
    READY_PAYLOAD,
    SECOND_DEVICE,
    TIMER,
    VIRTIO_MEM,
    Handler,
    StreamBuilder,
    attributes,
    bitmap_name,
    htab_chunk,
    virtio_mem_payload,
)

PAGE_SIZES: Final = (4096, 8192, 16384, 32768, 65536)
COMPRESSIONS: Final = (0x00, 0x02, 0x04, 0x08, 0x10, 0x20)
"""None, zlib, zstd, QPL, UADK, QATzip."""

u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, 2**64 - 1)

printable = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
idstrs = st.text(printable, min_size=1, max_size=40) | st.text(
    printable, min_size=250, max_size=255
)

splits = st.lists(st.integers(1, 700), min_size=1, max_size=30)
"""How many bytes come with each read, over and over."""

initial_packets = st.builds(
    InitialPacket, st.binary(min_size=16, max_size=16), st.integers(0, 254)
)

words_of_the_protocol = st.sampled_from(
    [
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
    ]
)

garbage = st.binary(max_size=400) | st.lists(
    words_of_the_protocol | st.binary(max_size=12), max_size=30
).map(b"".join)
"""Bytes of any kind, among them such as look like the protocol for a while."""


@attrs.frozen
class ChannelPacket:
    """One packet of a channel as it travels, and what a decoder makes of it."""

    raw: bytes = attrs.field(repr=lambda raw: f"<{len(raw)} bytes>")
    header: StateHeader | None = None
    """None for RAM."""
    data: bytes = b""


@st.composite
def state_packets(draw: st.DrawFn) -> ChannelPacket:
    """Device-state packets."""
    data = draw(st.binary(max_size=600))
    header = StateHeader(
        idstr=draw(idstrs),
        idx=draw(st.integers(0, NO_INDEX - 1)),
        size=len(data),
        flags=draw(st.sampled_from([StateFlag(0), StateFlag.CONFIG])),
        instance_id=draw(u32),
    )
    return ChannelPacket(header.encode() + data, header, data)


@st.composite
def ram_packets(draw: st.DrawFn, page_size: int) -> ChannelPacket:
    """RAM and SYNC packets, compressed or not; the content is arbitrary."""
    pages = 512 * 1024 // page_size
    sync = draw(st.booleans())
    flags = PacketFlag.SYNC if sync else draw(st.sampled_from(COMPRESSIONS))
    allocated = 0 if sync else pages
    payload = draw(st.integers(0, 3000) | st.just(0))
    fixed = draw(st.binary(min_size=1, max_size=8)) * (8 * pages + 296)
    head = struct.pack("!IIIIII", MULTIFD_MAGIC, 1, flags, allocated, 1, payload)
    return ChannelPacket(head + fixed[: 8 * pages + 296] + bytes(payload))


@st.composite
def channels(draw: st.DrawFn) -> tuple[int, list[ChannelPacket]]:
    """A page size, and the packets of a channel of such a machine."""
    page_size = draw(st.sampled_from(PAGE_SIZES))
    kinds = state_packets() | ram_packets(page_size)
    return page_size, draw(st.lists(kinds, max_size=5))


return_path_frames = (
    st.builds(pong, u32)
    | st.builds(shut, u32)
    | st.just(SWITCHOVER_ACK)
    | st.builds(
        ReturnPathFrame,
        st.sampled_from([ReturnPathType.REQ_PAGES_ID, ReturnPathType.RECV_BITMAP]),
        st.binary(max_size=512),
    )
)


@st.composite
def config_spaces(draw: st.DrawFn, vectors: int | None = None) -> bytes:
    """Config space of 256 or 4096 bytes, with that many MSI-X vectors if any."""
    space = bytearray(draw(st.sampled_from([256, 4096])))
    space[:0x34] = draw(st.binary(min_size=0x34, max_size=0x34))
    space[0x06] &= ~0x10
    if vectors:
        space[0x06] |= 0x10
        places = st.permutations(range(0x40, 0x100, 4))
        path = draw(places)[: draw(st.integers(1, 20))]
        space[0x34] = path[0] | draw(st.integers(0, 3))
        for at, following in zip(path, path[1:] + [0], strict=True):
            space[at : at + 2] = bytes([0x09, following])
        space[path[-1]] = 0x11
        struct.pack_into("<H", space, path[-1] + 2, 0x8000 | (vectors - 1))
    return bytes(space)


@st.composite
def config_blobs(draw: st.DrawFn) -> ConfigBlob:
    """Configs of vfio-pci devices."""
    vectors = draw(st.just(0) | st.integers(1, 2048))
    space = draw(config_spaces(vectors))
    assert msix_vectors(space) == vectors
    table = draw(st.binary(min_size=16, max_size=16)) * vectors
    display = b"\x05\x19VFIOPCIDevice/VFIODisplay\0\0\0\1" + bytes(28)
    return ConfigBlob(
        version=draw(st.integers(0, 2)),
        config_space=space,
        intx=draw(st.tuples(*[st.integers(0, 1)] * 4)),
        msix_table=table,
        msix_pending=bytes((vectors + 7) // 8),
        rest=draw(st.sampled_from([b"", display])),
    )


@st.composite
def dirty_bitmap_payloads(draw: st.DrawFn) -> bytes:
    """Chunks of dirty bitmaps; their flags in one, two or four bytes."""
    chunks = b""
    for flag in draw(st.lists(st.sampled_from([0x10, 0x20, 0x40, 0x42]), max_size=4)):
        names = draw(st.sampled_from([0x00, 0x04, 0x08, 0x0C]))
        chunks += draw(st.sampled_from([b"", b"\x80", b"\x80\x80\0"]))
        chunks += bytes([flag | names])
        for _ in range(names.bit_count()):
            chunks += bitmap_name(draw(st.binary(max_size=255)))
        if flag == 0x10:
            granularity = 1 << draw(st.integers(9, 31))
            chunks += struct.pack("!IB", granularity, draw(st.integers(0, 7)))
        elif flag != 0x20:
            chunks += struct.pack("!QI", draw(u64), draw(u32))
            if flag == 0x40:
                bits = draw(st.binary(max_size=300))
                chunks += struct.pack("!Q", len(bits)) + bits
    return chunks + b"\1"


@st.composite
def htab_payloads(draw: st.DrawFn, type_: SectionType) -> bytes:
    """A hash page table: its size, chunks of it, or that there is none."""
    if draw(st.booleans()):
        return struct.pack("!i", -1)
    if type_ is SectionType.START:
        return struct.pack("!I", draw(st.integers(18, 46)))
    few = st.integers(0, 20)
    chunks = draw(st.lists(st.tuples(st.integers(1, 0xFFFF_FFFF), few, few)))
    return bytes(4) + b"".join(htab_chunk(*chunk) for chunk in chunks) + bytes(8)


@st.composite
def attribute_payloads(draw: st.DrawFn) -> bytes:
    """Storage attributes of pages anywhere."""
    pages = st.integers(0, 2**52 - 1)
    runs = draw(st.lists(st.tuples(pages, st.binary(max_size=300)), max_size=4))
    words = b"".join(attributes(page << 12, values) for page, values in runs)
    done = draw(st.sampled_from([b"", struct.pack("!Q", 8)]))
    return words + done + struct.pack("!Q", 1)


def payloads(handler: Handler, type_: SectionType) -> st.SearchStrategy[bytes]:
    """What a handler of `ITERABLE` may have in one of its sections."""
    if handler == DIRTY_BITMAP:
        return dirty_bitmap_payloads()
    if handler == HTAB:
        return htab_payloads(type_)
    if handler == ATTRIBUTES:
        return attribute_payloads()
    return st.just(RAM_END)


virtio_mem_payloads = st.tuples(st.integers(0, 200), st.integers(20, 40)).map(
    lambda drawn: virtio_mem_payload(drawn[0] << drawn[1], 1 << drawn[1])
)


@st.composite
def main_streams(draw: st.DrawFn) -> StreamBuilder:
    """Whole main streams: with and without RAM, multifd, other sections, rounds."""
    stream = StreamBuilder()
    stream.header(MACHINE, draw(st.none() | st.integers(10, 16)))
    if draw(st.booleans()):
        stream.command(CommandType.OPEN_RETURN_PATH)
        stream.command(CommandType.PING, struct.pack("!I", draw(u32)))
    others = draw(st.lists(st.sampled_from(ITERABLE), unique=True))
    names = draw(st.lists(idstrs, max_size=3, unique=True))
    devices = [
        Handler(50 + number, f"{name[:250]}/vfio") for number, name in enumerate(names)
    ]
    devices.append(SECOND_DEVICE)
    devices = list({device.idstr: device for device in devices}.values())
    _set_up(draw, stream, devices, others)
    for device in draw(st.lists(st.sampled_from(devices), max_size=6)):
        if draw(st.booleans()):
            data = draw(st.binary(max_size=300))
            last = draw(st.booleans())
            stream.vfio_data(device, SectionType.PART, data, last=last)
        else:
            stream.section(device, SectionType.PART, END_PAYLOAD)
        _sections_of(draw, stream, others, SectionType.PART)
    _switch_over(draw, stream, devices, others)
    return stream


def _sections_of(
    draw: st.DrawFn, stream: StreamBuilder, others: list[Handler], type_: SectionType
) -> None:
    for handler in others:
        stream.section(handler, type_, draw(payloads(handler, type_)))


def _set_up(
    draw: st.DrawFn,
    stream: StreamBuilder,
    devices: list[Handler],
    others: list[Handler],
) -> None:
    early = [VIRTIO_MEM, Handler(7, "virtio-mem-device-early")]
    early = draw(st.lists(st.sampled_from(early), unique=True))
    for handler in draw(st.permutations([*early, *others, *devices])):
        if handler in early:
            stream.section(handler, SectionType.FULL, draw(virtio_mem_payloads))
        elif handler in others:
            _sections_of(draw, stream, [handler], SectionType.START)
        else:
            stream.section(handler, SectionType.START, SETUP_PAYLOAD)


def _switch_over(
    draw: st.DrawFn,
    stream: StreamBuilder,
    devices: list[Handler],
    others: list[Handler],
) -> None:
    if draw(st.booleans()):
        stream.command(CommandType.SWITCHOVER_START)
    _sections_of(draw, stream, others, SectionType.END)
    on_main = [device for device in devices if draw(st.booleans())]
    for device in devices:
        if device in on_main:
            data = draw(st.binary(max_size=300))
            stream.vfio_data(device, SectionType.END, data)
        else:
            stream.section(device, SectionType.END, END_PAYLOAD)
    before, behind = draw(st.lists(st.binary(max_size=60), min_size=2, max_size=2))
    if draw(st.booleans()):
        stream.section(TIMER, SectionType.FULL, before)
    for device in draw(st.permutations(devices)):
        if device in on_main:
            stream.vfio_config(device, draw(st.binary(max_size=200)))
        else:
            payload = draw(st.sampled_from([END_PAYLOAD, READY_PAYLOAD]))
            stream.section(device, SectionType.FULL, payload)
    if draw(st.booleans()):
        stream.section(TIMER, SectionType.FULL, behind)
    stream.end()


changes = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6
)
"""Where to change a byte, as a part of the whole, and to what."""


def changed(raw: bytes, changes: list[tuple[float, int]]) -> bytes:
    """Return *raw* with some of its bytes changed."""
    copy = bytearray(raw)
    for where, value in changes:
        copy[int(where * len(copy))] = value
    return bytes(copy)
