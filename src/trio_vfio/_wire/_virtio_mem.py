"""What a virtio-mem device sends before its RAM: parsed to find its end.

The only FULL section that comes in the setup phase: a destination has to know
which parts of the memory are there. QEMU: ``vmstate_virtio_mem_device_early``
in hw/virtio/virtio-mem.c.
"""

from __future__ import annotations

from typing import Final

from ._main_events import Section
from ._parsing import Parser, be32, be64, refuse, skip

VIRTIO_MEM_VERSION: Final = 1

_NAME: Final = "virtio-mem-device-early"

# QEMU holds this number in an int. At 1 MiB each, the least that it allows, so
# many blocks are 2 PiB.
_MAX_BLOCKS: Final = 2**31 - 1


def is_virtio_mem_early(idstr: str) -> bool:
    """Whether *idstr* is that of such a section, with or without a device path."""
    return idstr == _NAME or idstr.endswith(f"/{_NAME}")


def virtio_mem_early(section: Section) -> Parser[None]:
    """Parse the payload of *section*.

    Raises:
      PeerProtocolError: if its sizes make no sense.
    """
    # - 8 bytes address, 8 bytes region size, 8 bytes block size
    # - 4 bytes node, 8 bytes plugged size
    # - a bit for each block, in words of 8 bytes
    yield from be64()
    region = yield from be64()
    block = yield from be64()
    if not block or region % block:
        raise refuse(f"{section.idstr}: {region} bytes in blocks of {block}")
    if (blocks := region // block) > _MAX_BLOCKS:
        raise refuse(f"{section.idstr}: {blocks} blocks")
    yield from be32()
    yield from be64()
    yield from skip((blocks + 63) // 64 * 8)
