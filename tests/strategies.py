"""Hypothesis strategies for what only our own tests look at, besides the public ones.

New ones belong here or in `trio_vfio.testing.strategies`, not in tests.
"""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from trio_vfio._wire._config_blob import ConfigBlob, msix_vectors
from trio_vfio._wire._main_encode import END_PAYLOAD, SETUP_PAYLOAD
from trio_vfio._wire._main_events import CommandType, SectionType
from trio_vfio._wire._multifd import InitialPacket
from trio_vfio._wire._return_path import (
    SWITCHOVER_ACK,
    ReturnPathFrame,
    ReturnPathType,
    pong,
    shut,
)
from trio_vfio.testing.strategies import PAGE_SIZES, Packet, idstrs, packets

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

u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, 2**64 - 1)

splits = st.lists(st.integers(1, 700), min_size=1, max_size=30)
"""How many bytes come with each read, over and over."""

initial_packets = st.builds(
    InitialPacket, st.binary(min_size=16, max_size=16), st.integers(0, 254)
)


@st.composite
def channels(draw: st.DrawFn) -> tuple[int, list[Packet]]:
    """A page size, and the packets of a channel of such a machine."""
    page_size = draw(st.sampled_from(PAGE_SIZES))
    return page_size, draw(st.lists(packets(page_size=page_size), max_size=5))


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
    names = draw(st.lists(idstrs(), max_size=3, unique=True))
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
