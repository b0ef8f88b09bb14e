"""The JSON at the end of the main stream: how long each FULL section is.

QEMU: ``vmstate_save_state_v`` and ``vmstate_save_old_style`` write it,
scripts/analyze-migration.py reads it.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, final

import attrs

from .._errors import PeerProtocolError
from ._limits import MAX_PARSED_DESCRIPTION, MAX_TAIL

# What stands before the text: a footer, EOF, the type byte, and a be32 length
# that begins with a NUL since the text is shorter than 16 MiB. The text itself
# begins with a brace and holds no NUL.
_LEAD = re.compile(rb"\x7e.{4}\x00\x06(\x00.{3})\{", re.DOTALL)
_EMPTY = re.compile(rb"\x7e.{4}\x00\x06\x00{4}\Z", re.DOTALL)
_LEAD_SIZE = 12
_TYPE_AND_LENGTH = 5


@attrs.frozen
class Entry:
    """One FULL section, as the description has it."""

    idstr: str
    instance_id: int
    size: int
    """Bytes of payload."""


@final
@attrs.define(eq=False)
class DescriptionSearch:
    """Finds the description at the end of a stream that is still growing.

    What it finds does not depend on how the stream was cut into reads, and each
    byte is looked at a bounded number of times.
    """

    start: int | None = attrs.field(default=None, init=False)
    """Index of the first byte of the text, once one seems to have begun."""
    _length: int = attrs.field(default=0, init=False)
    _searched: int = attrs.field(default=0, init=False)
    """All before it begins no description, or the one of `start`."""
    _text: int = attrs.field(default=0, init=False)
    """All from `start` to here is text."""

    def end_in(self, stream: bytes | bytearray) -> int | None:
        """Return the index behind the description, or None until it is whole.

        Args:
          stream: what it was last time, and perhaps more.
        """
        while self.start is not None or self._begin(stream):
            assert self.start is not None
            end = self.start + self._length
            if stream.find(0, self._text, end) >= 0:
                # It was a device's state that looked like a beginning.
                self.start = None
                continue
            self._text = min(end, len(stream))
            return end if len(stream) >= end else None
        return None

    def _begin(self, stream: bytes | bytearray) -> bool:
        found = _LEAD.search(stream, self._searched)
        if found is None:
            self._searched = max(self._searched, len(stream) - _LEAD_SIZE)
            return False
        self._searched = found.start() + 1
        self.start = self._text = found.end() - 1
        self._length = int.from_bytes(found[1])
        return True


def split_description(stream: bytes) -> tuple[bytes, bytes | None]:
    """Split *stream* into all up to its EOF byte, and its description if any."""
    search = DescriptionSearch()
    if search.end_in(stream) == len(stream):
        assert search.start is not None
        return stream[: search.start - _TYPE_AND_LENGTH], stream[search.start :]
    if ends_with_empty_description(stream):
        return stream[:-_TYPE_AND_LENGTH], b""
    return stream, None


def ends_with_empty_description(stream: bytes | bytearray) -> bool:
    """Whether *stream* ends with a description of no bytes.

    Just as well it may be a device's state, cut at the right place.
    """
    return _EMPTY.search(stream, max(0, len(stream) - _LEAD_SIZE)) is not None


def entries_untrusted(text: bytes) -> list[Entry] | None:
    """Parse a description.

    Returns: its FULL sections in the order in which they were sent, or None if
    it is of another form, or too long to be parsed.

    Raises:
      PeerProtocolError: if it is no JSON.
    """
    if len(text) > MAX_PARSED_DESCRIPTION:
        return None
    try:
        parsed = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
        return [_entry(device) for device in parsed["devices"]]
    except (KeyError, TypeError, AttributeError, _MisfitError):
        return None
    except (ValueError, RecursionError) as error:
        reason = f"description is not JSON: {type(error).__name__}: {error}"
        raise PeerProtocolError(reason) from error


class _MisfitError(Exception):
    """A description that is JSON, but does not give lengths as QEMU's does."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _entry(device: Any) -> Entry:
    if "vmsd_name" in device:
        size = _vmstate_size(device)
    else:
        size = _number(device["size"])
    return Entry(str(device["name"]), _number(device["instance_id"]), size)


def _vmstate_size(described: Any) -> int:
    # A field's size already covers what is nested in it, so there is nothing
    # to descend into but the subsections.
    size = sum(
        _number(field["size"]) * _number(field.get("array_len", 1))
        for field in described["fields"]
    )
    for subsection in described.get("subsections", ()):
        # 05, the length of the name, the name, and a be32 version come first.
        name = str(subsection["vmsd_name"])
        size += 6 + len(name) + _vmstate_size(subsection)
    return size


def _number(value: Any) -> int:
    # Bounded, so that sums and products of them stay small.
    if type(value) is not int or not 0 <= value <= MAX_TAIL:
        raise _MisfitError
    return value
