"""The tail of the main stream: the FULL sections of the whole machine.

They come without a length, and most are of no use here. Only at the end of the
stream, with its description, can they be told apart; and where that is of no
help, the sections of VFIO devices are looked for by their headers.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from .._errors import PeerProtocolError
from ._description import entries_untrusted
from ._idstr import idstr_untrusted, is_vfio
from ._limits import MAX_CONFIG
from ._main_events import (
    Description,
    DeviceConfig,
    EndOfSections,
    MainEvent,
    Section,
    SectionEnd,
    SectionType,
)
from ._section import Sections, encode_section_header
from ._vfio_section import Mark, config_blob_untrusted, encode_config, footer

_FOOTER = 5
_DUMMIES = (Mark.END_OF_STATE.encode(), Mark.DEV_CONFIG_LOAD_READY.encode())


@attrs.frozen
class TailBytes:
    """The whole tail, from the first FULL section that is not VFIO's."""

    body: bytes
    """The sections, and the EOF byte that ends them."""
    text: bytes | None
    """The description behind it; None if the stream has none."""
    offset: int
    """Where the tail begins in the stream."""


def ends_like_a_stream(raw: bytes | bytearray) -> bool:
    """Whether *raw* ends with a footer and the EOF byte."""
    return len(raw) > _FOOTER and raw[-1] == 0 and raw[-6] == SectionType.FOOTER


def tail_events_untrusted(
    tail: TailBytes, sections: Sections, sections_before: int
) -> list[MainEvent]:
    """Tell the sections of *tail* apart.

    Args:
      sections_before: how many FULL sections the stream had before the tail.

    Raises:
      PeerProtocolError: if the FULL section of a device that was announced is
        missing or holds something else, or the tail does not end as it must.
    """
    eof = tail.offset + len(tail.body) - 1
    if not ends_like_a_stream(tail.body):
        raise PeerProtocolError("no end of sections behind a footer", offset=eof)
    events = _described(tail, sections, sections_before)
    if events is None:
        events = list(_scanned(tail, sections))
    for missing in sections.vfio_without_full():
        raise PeerProtocolError(f"no FULL section of {missing.idstr}", offset=eof)
    events.append(EndOfSections(eof))
    if tail.text is not None:
        events.append(Description(tail.text, eof + 1))
    return events


def _described(
    tail: TailBytes, sections: Sections, sections_before: int
) -> list[MainEvent] | None:
    """Walk the tail by its description; None if they do not fit."""
    body = tail.body
    try:
        entries = entries_untrusted(tail.text) if tail.text else None
    except PeerProtocolError as error:
        error.offset = tail.offset + len(body)
        raise
    if entries is None:
        return None
    found: list[tuple[Section, bytes]] = []
    at = 0
    for entry in entries[sections_before:]:
        section = _header_at(body, at, tail.offset)
        if section is None:
            return None
        begin = at + len(encode_section_header(section))
        at = begin + entry.size + _FOOTER
        names = (section.idstr, section.instance_id)
        if names != (entry.idstr, entry.instance_id):
            return None
        if body[at - _FOOTER : at] != footer(section.section_id):
            return None
        found.append((section, body[begin : at - _FOOTER]))
    if at != len(body) - 1:
        return None
    return [event for each in found for event in _section_events(*each, sections)]


def _header_at(body: bytes, at: int, offset: int) -> Section | None:
    """Return the FULL section whose header stands at *at*, if one does."""
    name_at = at + 6
    if body[at : at + 1] != bytes([SectionType.FULL]) or name_at > len(body):
        return None
    name_end = name_at + body[name_at - 1]
    numbers = body[name_end : name_end + 8]
    name = body[name_at:name_end]
    if len(numbers) < 8:
        return None
    try:
        idstr = idstr_untrusted(name)
    except PeerProtocolError:
        return None
    return Section(
        SectionType.FULL,
        int.from_bytes(body[at + 1 : at + 5]),
        idstr,
        int.from_bytes(numbers[:4]),
        int.from_bytes(numbers[4:]),
        offset + at,
    )


def _section_events(
    section: Section, payload: bytes, sections: Sections
) -> Iterator[MainEvent]:
    yield section
    if is_vfio(section.idstr):
        sections.complete(section)
        if payload not in _DUMMIES:
            yield DeviceConfig(section, _config(section, payload))
    yield SectionEnd(section)


def _config(section: Section, payload: bytes) -> bytes:
    try:
        blob = config_blob_untrusted(payload, section.idstr)
        if len(blob) > MAX_CONFIG:
            raise PeerProtocolError(f"config of {section.idstr} of {len(blob)} bytes")
    except PeerProtocolError as error:
        error.offset = section.offset
        raise
    return blob


def _scanned(tail: TailBytes, sections: Sections) -> Iterator[MainEvent]:
    """Look for the sections of the devices that were announced."""
    body = tail.body
    for start in sections.vfio_without_full():
        section = attrs.evolve(start, type=SectionType.FULL)
        header = encode_section_header(section)
        at = body.find(header)
        if at < 0:
            continue
        section = attrs.evolve(section, offset=tail.offset + at)
        payload = _scanned_payload(body, at + len(header), section)
        yield from _section_events(section, payload, sections)


def _scanned_payload(body: bytes, begin: int, section: Section) -> bytes:
    end = footer(section.section_id)
    for dummy in _DUMMIES:
        if body.startswith(dummy + end, begin):
            return dummy
    last = encode_config(b"")[8:] + end
    limit = begin + 8 + MAX_CONFIG + len(last)
    if (found := body.find(last, begin, limit)) < 0:
        raise PeerProtocolError(
            f"no end of the FULL section of {section.idstr}", offset=section.offset
        )
    return body[begin : found + 8]
