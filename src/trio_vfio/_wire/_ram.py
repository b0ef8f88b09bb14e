"""RAM records on the main stream: parsed to find their end, then dropped.

Each begins with 8 bytes whose low bits are flags. QEMU: ``ram_load_precopy``
in migration/ram.c, flags in migration/ram.h.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from ._parsing import Parser, be16, be64, cstr8, refuse, skip, u8

__all__ = ["RAM", "RAM_VERSION", "RamLayout", "ram_records"]

RAM: Final = "ram"
RAM_VERSION: Final = 4


class _Flag(enum.IntFlag):
    ZERO = 0x002
    MEM_SIZE = 0x004
    PAGE = 0x008
    EOS = 0x010
    CONTINUE = 0x020
    XBZRLE = 0x040
    MULTIFD_FLUSH = 0x200


# All flags lie below this, whatever the page size.
_FLAG_MASK: Final = 0x3FF


@attrs.frozen
class RamLayout:
    """What of the configuration changes the layout of RAM records."""

    page_size: int
    ignore_shared: bool = False
    """Capability x-ignore-shared: a block's size is followed by its address."""


def ram_records(layout: RamLayout) -> Parser[None]:
    """Parse the records of one section, the one that ends them included.

    Raises:
      PeerProtocolError: on a record that a migration over sockets has not.
    """
    while True:
        word = yield from be64()
        flags = word & _FLAG_MASK
        kind = flags & ~int(_Flag.CONTINUE)
        named = not flags & _Flag.CONTINUE
        if flags == _Flag.EOS:
            return
        if flags == _Flag.MEM_SIZE:
            yield from _blocks(word & ~_FLAG_MASK, layout)
        elif kind in (_Flag.ZERO, _Flag.PAGE, _Flag.XBZRLE):
            if named:
                yield from cstr8()
            yield from _page(kind, layout)
        elif flags != _Flag.MULTIFD_FLUSH:
            raise refuse(f"RAM record with flags {flags:#x}")


def _blocks(total: int, layout: RamLayout) -> Parser[None]:
    left = total
    while left:
        name = yield from cstr8()
        used = yield from be64()
        if not 0 < used <= left:
            raise refuse(f"RAM block {name} of {used} bytes where {left} are left")
        if layout.ignore_shared:
            yield from be64()
        left -= used


def _page(kind: int, layout: RamLayout) -> Parser[None]:
    if kind == _Flag.ZERO:
        yield from u8()
    elif kind == _Flag.PAGE:
        yield from skip(layout.page_size)
    else:
        yield from u8()
        yield from skip((yield from be16()))
