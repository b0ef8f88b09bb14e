"""Pure tests: sections of what is no VFIO device that no source sends."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import pytest

from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire._limits import MIB
from trio_vfio._wire._main_events import SectionType

from ..streams import (
    ATTRIBUTES,
    DIRTY_BITMAP,
    HEADER,
    HTAB,
    VIRTIO_MEM,
    Handler,
    attributes,
)
from .feeding import cut, main_events
from .other_sections import (
    BITMAP,
    BITS,
    END,
    EOS,
    FULL,
    ITERATED,
    NODE,
    PART,
    START,
    Case,
    be32,
    be64,
    cases,
    virtio_mem_sizes,
)


@attrs.frozen
class Bad:
    """A section of which *at* bytes of payload are right, and then it is refused."""

    case: Case
    at: int
    words: tuple[str, ...]


def bad(
    handler: Handler,
    types: Iterable[SectionType],
    right: bytes,
    wrong: bytes,
    *words: str,
    name: str = "",
) -> list[Bad]:
    name = name or " ".join(words)
    return [
        Bad(case, len(right), (handler.idstr, *words))
        for case in cases(handler, types, {name: right + wrong})
    ]


# EOS and names may come with any of four kinds of chunk, and EOS may be alone.
_ODD_CHUNKS = [
    flags
    for flags in range(0x80)
    if flags != 0x01 and flags & ~0x0D not in (0x10, 0x20, 0x40, 0x42)
]


BAD = [
    *(
        each
        for flags in _ODD_CHUNKS
        for each in bad(
            DIRTY_BITMAP, [PART], b"\x42" + BITS, bytes([flags]), f"flags {flags:#x}"
        )
    ),
    *bad(DIRTY_BITMAP, ITERATED, b"", b"\0", "flags 0x0"),
    *bad(DIRTY_BITMAP, [PART], b"\x80", b"\0", "flags 0x0", name="two bytes: 0"),
    *bad(DIRTY_BITMAP, [PART], b"\x81", b"\1", "flags 0x101"),
    *bad(DIRTY_BITMAP, [PART], b"\x80\x80", b"\0\x80", "flags 0x80"),
    *bad(DIRTY_BITMAP, [PART], b"\x80\x80", b"\1\x40", "flags 0x140"),
    *bad(DIRTY_BITMAP, [PART], b"\xff\xff", b"\xff\xff", "flags 0x7f7fffff"),
    *(
        each
        for granularity in (0, 1, 256, 511, 513, 65537, 0xFFFFFFFF)
        for each in bad(
            DIRTY_BITMAP,
            [START],
            b"\x1c" + NODE + BITMAP,
            be32(granularity) + b"\1",
            f"{granularity} bytes",
        )
    ),
    *(
        each
        for flags in (0x08, 0x10, 0x20, 0x40, 0x80, 0xFF)
        for each in bad(
            DIRTY_BITMAP,
            [START],
            b"\x1c" + NODE + BITMAP + be32(65536),
            bytes([flags]),
            f"flags {flags:#04x}",
        )
    ),
    *(
        each
        for shift in (0, 17, 47, 0x7FFFFFFF, 0xFFFFFFFE)
        for each in bad(HTAB, [START], b"", be32(shift), f"2**{shift} bytes")
    ),
    *(
        each
        for head in (1, 24, 0xFFFFFFFE)
        for each in bad(
            HTAB, [PART, END], b"", be32(head) + bytes(8), f"{head:#x} where"
        )
    ),
    *(
        each
        for flags in (0x0, 0x3, 0x4, 0x5, 0x6, 0x9, 0xA, 0xF, 0x10, 0x800, 0x801)
        for each in bad(
            ATTRIBUTES,
            ITERATED,
            attributes(0x1000, b"a"),
            be64(0x7000 | flags) + EOS,
            f"flags {flags:#x}",
        )
    ),
    *(
        each
        for region, block in [
            (128 * MIB, 0),
            (0, 0),
            (128 * MIB, 3 * MIB),
            (1, 2 * MIB),
            (128 * MIB - 1, 2 * MIB),
        ]
        for each in bad(
            VIRTIO_MEM,
            [FULL],
            virtio_mem_sizes(region, block)[:16],
            be64(block),
            f"{region} bytes in blocks of {block}",
        )
    ),
    *(
        each
        for region, block in [(1 << 31, 1), (1 << 51, 1 << 20), ((1 << 64) - 1, 1)]
        for each in bad(
            VIRTIO_MEM,
            [FULL],
            virtio_mem_sizes(region, block)[:16],
            be64(block),
            f"{region // block} blocks",
            name=f"{region} bytes, {region // block} blocks",
        )
    ),
]


@pytest.mark.parametrize("refused", BAD, ids=lambda each: str(each.case))
@pytest.mark.parametrize("sizes", [[1 << 30], [1]], ids=["whole", "byte by byte"])
def test_refused(refused: Bad, sizes: list[int]) -> None:
    with pytest.raises(PeerProtocolError) as caught:
        main_events(cut(refused.case.stream, sizes))
    for word in refused.words:
        assert word in caught.value.reason
    before = len(refused.case.before + refused.case.header)
    assert caught.value.offset == before + refused.at


@pytest.mark.parametrize(
    ("handler", "version"),
    [
        (DIRTY_BITMAP, 0),
        (DIRTY_BITMAP, 2),
        (HTAB, 0),
        (HTAB, 2),
        (ATTRIBUTES, 1),
        (VIRTIO_MEM, 0),
        (VIRTIO_MEM, 2),
    ],
    ids=str,
)
def test_other_versions_are_refused(handler: Handler, version: int) -> None:
    type_ = FULL if handler is VIRTIO_MEM else START
    section = attrs.evolve(handler, version_id=version).encode(type_, b"")
    with pytest.raises(PeerProtocolError) as caught:
        main_events([HEADER + section])
    assert caught.value.reason == f"{handler.idstr} of unknown version {version}"
    assert caught.value.offset == len(HEADER)
