"""Dirty bitmaps of disks: chunks, parsed to find their end, then dropped.

All sections, of whatever type, hold chunks up to one with the flag EOS. QEMU:
``send_bitmap_start``, ``send_bitmap_bits`` and ``dirty_bitmap_load_header`` in
migration/block-dirty-bitmap.c.
"""

from __future__ import annotations

import enum
from typing import Final

from ._main_events import Section
from ._parsing import Parser, be16, be32, be64, refuse, skip, u8

DIRTY_BITMAP: Final = "dirty-bitmap"
DIRTY_BITMAP_VERSION: Final = 1


class _Flag(enum.IntFlag):
    EOS = 0x01
    ZEROES = 0x02
    BITMAP_NAME = 0x04
    NODE_NAME = 0x08
    START = 0x10
    COMPLETE = 0x20
    BITS = 0x40


# The top bit of the first byte says that there are two, that of the second that
# there are four. Sources send one byte, but QEMU's loader takes them all.
_MORE_FLAGS: Final = 0x80

_NAMES: Final = int(_Flag.BITMAP_NAME | _Flag.NODE_NAME)
_MODIFIERS: Final = int(_Flag.EOS) | _NAMES

# Of a bitmap: enabled, persistent, and one that is not used any more.
_BITMAP_FLAGS: Final = 0x07
_MIN_GRANULARITY: Final = 512


def dirty_bitmap_chunks(section: Section) -> Parser[None]:
    """Parse the chunks of one section, the one that ends them included.

    Raises:
      PeerProtocolError: on a chunk that no source sends.
    """
    while True:
        flags = yield from _flags()
        if flags == _Flag.EOS:
            return
        yield from _chunk(flags, section)
        if flags & _Flag.EOS:
            return


def _flags() -> Parser[int]:
    """Parse flags, without the bits that only say how long they are."""
    flags = yield from u8()
    if not flags & _MORE_FLAGS:
        return flags
    flags = (flags & ~_MORE_FLAGS) << 8 | (yield from u8())
    if not flags & _MORE_FLAGS:
        return flags
    return (flags & ~_MORE_FLAGS) << 16 | (yield from be16())


# A chunk is, behind its flags:
# - 1 byte length and the name of the node, 1 byte length and that of the bitmap;
#   each only with its flag, else it is that of the chunk before
# - START: 4 bytes granularity (not 8, as a comment of QEMU's has it), 1 byte flags
# - COMPLETE: nothing
# - BITS: 8 bytes first sector, 4 bytes count; and without ZEROES 8 bytes n, n bytes
def _chunk(flags: int, section: Section) -> Parser[None]:
    kind = flags & ~_MODIFIERS
    if kind not in (
        _Flag.START,
        _Flag.COMPLETE,
        _Flag.BITS,
        _Flag.BITS | _Flag.ZEROES,
    ):
        raise refuse(f"{section.idstr}: chunk with flags {flags:#x}")
    for name in (_Flag.NODE_NAME, _Flag.BITMAP_NAME):
        if flags & name:
            # In any encoding: users choose the names of their bitmaps.
            yield from skip((yield from u8()))
    if kind == _Flag.START:
        yield from _start(section)
    elif kind & _Flag.BITS:
        yield from be64()
        yield from be32()
        if not kind & _Flag.ZEROES:
            yield from skip((yield from be64()))


def _start(section: Section) -> Parser[None]:
    granularity = yield from be32()
    if granularity < _MIN_GRANULARITY or granularity.bit_count() != 1:
        raise refuse(f"{section.idstr}: bitmap with a bit for {granularity} bytes")
    if (flags := (yield from u8())) & ~_BITMAP_FLAGS:
        raise refuse(f"{section.idstr}: bitmap with flags {flags:#04x}")
