"""Sections of the main stream: their headers, and who may come when.

QEMU: ``save_section_header``, ``save_section_footer`` and
``qemu_loadvm_state_main`` in migration/savevm.c.
"""

from __future__ import annotations

import struct
from typing import final

import attrs

from ._idstr import is_vfio
from ._limits import MAX_DEVICES
from ._main_events import Section, SectionType
from ._parsing import Parser, be32, cstr8, refuse


def encode_section_header(section: Section) -> bytes:
    """Return the header of *section* as it travels."""
    head = struct.pack("!BI", section.type, section.section_id)
    if section.type in (SectionType.PART, SectionType.END):
        return head
    name = section.idstr.encode("ascii")
    numbers = struct.pack("!II", section.instance_id, section.version_id)
    return head + bytes([len(name)]) + name + numbers


@final
@attrs.define(eq=False)
class Sections:
    """The handlers that a stream has announced, and how far each has come."""

    started: dict[int, Section] = attrs.field(factory=dict[int, Section], init=False)
    """By section id."""
    early: dict[int, Section] = attrs.field(factory=dict[int, Section], init=False)
    """Those that are no iterable handler's but came among the first; by section id."""
    ended: set[int] = attrs.field(factory=set[int], init=False)
    full: set[int] = attrs.field(factory=set[int], init=False)
    """Those VFIO devices whose FULL section was there."""

    def vfio_without_full(self) -> list[Section]:
        """Return the VFIO devices whose FULL section has not come."""
        return [
            section
            for section_id, section in self.started.items()
            if is_vfio(section.idstr) and section_id not in self.full
        ]

    def start(self, section: Section) -> None:
        """Announce a handler.

        Raises:
          PeerProtocolError: if it was announced before, or is one too many.
        """
        self._check_new(section)
        self.started[section.section_id] = section

    def start_early(self, section: Section) -> None:
        """Take note of a FULL section that comes before the END of any other.

        Raises:
          PeerProtocolError: if it was there before, or is one too many.
        """
        self._check_new(section)
        self.early[section.section_id] = section

    def _check_new(self, section: Section) -> None:
        idstr = section.idstr
        known = [*self.started.values(), *self.early.values()]
        if any(section.section_id == other.section_id for other in known):
            reason = f"section id {section.section_id} of {idstr} announced twice"
            raise refuse(reason, section.offset)
        if any(_same(section, other) for other in known):
            raise refuse(f"{idstr} announced twice", section.offset)
        kinds = [is_vfio(other.idstr) for other in known]
        if kinds.count(is_vfio(idstr)) == MAX_DEVICES:
            reason = f"{idstr} is one more than {MAX_DEVICES} devices"
            raise refuse(reason, section.offset)

    def resume(self, type_: SectionType, section_id: int, offset: int) -> Section:
        """Return the PART or END section of a handler that was announced.

        Raises:
          PeerProtocolError: if none was, or it has ended.
        """
        if (start := self.started.get(section_id)) is None:
            reason = f"{type_.name} of section {section_id}, which never started"
            raise refuse(reason, offset)
        if section_id in self.ended:
            raise refuse(f"{type_.name} of {start.idstr} after its END", offset)
        if type_ is SectionType.END:
            self.ended.add(section_id)
        return attrs.evolve(start, type=type_, offset=offset)

    def complete(self, section: Section) -> None:
        """Take note of the FULL section of a VFIO device.

        Raises:
          PeerProtocolError: if the device was not announced, or had one before.
        """
        start = self.started.get(section.section_id)
        if start is None or not _same(section, start):
            reason = f"FULL of {section.idstr}, which never started"
            raise refuse(reason, section.offset)
        if section.section_id not in self.ended:
            raise refuse(f"FULL of {section.idstr} before its END", section.offset)
        if section.section_id in self.full:
            raise refuse(f"second FULL of {section.idstr}", section.offset)
        self.full.add(section.section_id)


def section_header(type_: SectionType, offset: int) -> Parser[Section]:
    """Parse the header of a START or FULL section behind its type byte."""
    section_id = yield from be32()
    idstr = yield from cstr8()
    instance_id = yield from be32()
    version_id = yield from be32()
    return Section(type_, section_id, idstr, instance_id, version_id, offset)


def section_footer(section: Section) -> Parser[None]:
    """Parse the footer of *section*.

    Raises:
      PeerProtocolError: if something else stands there.
    """
    expected = struct.pack("!BI", SectionType.FOOTER, section.section_id)
    if (found := (yield len(expected))) != expected:
        raise refuse(
            f"{section.idstr}: {found.hex(' ')} where its {section.type.name} section"
            f" should end with {expected.hex(' ')}"
        )


def _same(one: Section, other: Section) -> bool:
    return (one.idstr, one.instance_id) == (other.idstr, other.instance_id)
