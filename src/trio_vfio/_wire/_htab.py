"""The hash page table of a pseries guest: parsed to find its end, then dropped.

Each section begins with a be32. In START that is the size of the table, and all
there is; in the others it is 0, and chunks of entries follow. A guest with a
radix tree has no such table, and its sections hold -1 alone. QEMU:
``htab_save_setup``, ``htab_save_iterate``, ``htab_save_complete`` and
``htab_load`` in hw/ppc/spapr.c.
"""

from __future__ import annotations

from typing import Final

from ._main_events import Section, SectionType
from ._parsing import Parser, be16, be32, refuse, skip

HTAB: Final = "spapr/htab"
HTAB_VERSION: Final = 1

_NO_TABLE: Final = 0xFFFF_FFFF
_ENTRY: Final = 16

# The table has 2**shift bytes. The platform allows no others.
_SHIFTS: Final = range(18, 47)


def htab_chunks(section: Section) -> Parser[None]:
    """Parse the payload of one section.

    Raises:
      PeerProtocolError: if the number that it begins with cannot stand there.
    """
    head = yield from be32()
    if head == _NO_TABLE:
        # In any section: the guest may change its mind when it reboots.
        return
    if section.type is SectionType.START:
        if head not in _SHIFTS:
            raise refuse(f"{section.idstr}: table of 2**{head} bytes")
        return
    if head != 0:
        kind = section.type.name
        raise refuse(f"{section.idstr}: {head:#x} where a {kind} section has 0")
    # - 4 bytes index, 2 bytes number of valid, 2 bytes number of invalid entries
    # - 16 bytes for each valid one; those that are not are only counted
    while True:
        index = yield from be32()
        valid = yield from be16()
        invalid = yield from be16()
        if not (index or valid or invalid):
            return
        yield from skip(valid * _ENTRY)
