"""Storage attributes of an s390x guest: parsed to find their end, then dropped.

All sections, of whatever type, hold words whose low bits are flags, up to EOS;
START holds no more than that. QEMU: ``cmma_save_setup``, ``cmma_save`` and
``cmma_load`` in hw/s390x/s390-stattrib.c.
"""

from __future__ import annotations

import enum
from typing import Final

from ._main_events import Section
from ._parsing import Parser, be64, refuse, skip

STORAGE_ATTRIBUTES: Final = "s390-storage_attributes"
STORAGE_ATTRIBUTES_VERSION: Final = 0


class _Flag(enum.IntEnum):
    # One at a time: the loader takes no two together. There is also ERROR,
    # 0x04, which no source sends and the loader refuses.
    EOS = 0x01
    MORE = 0x02
    DONE = 0x08


# The other bits of a word are the address of a page, always of 4 KiB here.
_FLAG_MASK: Final = 0xFFF


def storage_attributes(section: Section) -> Parser[None]:
    """Parse the words of one section, the one that ends them included.

    Raises:
      PeerProtocolError: on a word that no source sends.
    """
    while True:
        flags = (yield from be64()) & _FLAG_MASK
        match flags:
            case _Flag.EOS:
                return
            case _Flag.MORE:
                yield from skip((yield from be64()))
            case _Flag.DONE:
                # No more attributes come, but the end of the section does.
                pass
            case _:
                raise refuse(f"{section.idstr}: word with flags {flags:#x}")
