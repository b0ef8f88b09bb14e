"""The sections that can be parsed where they stand, and how.

No other can be passed over: a section says nowhere how long it is.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import attrs

from ._dirty_bitmap import DIRTY_BITMAP, DIRTY_BITMAP_VERSION, dirty_bitmap_chunks
from ._htab import HTAB, HTAB_VERSION, htab_chunks
from ._idstr import is_vfio
from ._main_events import Section, SectionType
from ._parsing import Parser, refuse
from ._ram import RAM, RAM_VERSION, RamLayout, ram_records
from ._storage_attributes import (
    STORAGE_ATTRIBUTES,
    STORAGE_ATTRIBUTES_VERSION,
    storage_attributes,
)
from ._vfio_section import VFIO_VERSION, vfio_payload
from ._virtio_mem import VIRTIO_MEM_VERSION, is_virtio_mem_early, virtio_mem_early


@attrs.frozen
class Payload:
    """What a handler puts between header and footer of its sections."""

    version: int
    """The only one that is known."""
    parse: Callable[[Section, RamLayout], Parser[None]]


def _plain(version: int, parse: Callable[[Section], Parser[None]]) -> Payload:
    """Make one that does not depend on the layout of RAM."""
    return Payload(version, lambda section, _: parse(section))


_VFIO: Final = _plain(VFIO_VERSION, vfio_payload)
_VIRTIO_MEM: Final = _plain(VIRTIO_MEM_VERSION, virtio_mem_early)
_ITERABLE: Final = MappingProxyType(
    {
        RAM: Payload(RAM_VERSION, lambda _, layout: ram_records(layout)),
        DIRTY_BITMAP: _plain(DIRTY_BITMAP_VERSION, dirty_bitmap_chunks),
        HTAB: _plain(HTAB_VERSION, htab_chunks),
        STORAGE_ATTRIBUTES: _plain(STORAGE_ATTRIBUTES_VERSION, storage_attributes),
    }
)


def payload(section: Section, layout: RamLayout) -> Parser[None]:
    """Return the parser for the payload of *section*, up to its footer.

    Raises:
      PeerProtocolError: if there is none, or none for this version.
    """
    found = _payload_of(section)
    if found is None:
        # A FULL section of anybody else has its place at the stream's end.
        kind = "early" if section.type is SectionType.FULL else "iterable"
        reason = f"cannot parse the {kind} section {section.idstr!r}"
        raise refuse(reason, section.offset)
    if section.version_id != found.version:
        reason = f"{section.idstr} of unknown version {section.version_id}"
        raise refuse(reason, section.offset)
    return found.parse(section, layout)


def _payload_of(section: Section) -> Payload | None:
    if is_vfio(section.idstr):
        return _VFIO
    if section.type is SectionType.FULL:
        return _VIRTIO_MEM if is_virtio_mem_early(section.idstr) else None
    return _ITERABLE.get(section.idstr)
