"""How the parsers of the main stream ask for bytes.

A parser is a generator. It yields what it wants (a number of bytes, `Until` a
pattern, or the `Tail`) and is sent exactly that; or it yields an event, and is
sent nothing. So each of them reads like the layout it parses, and none of them
cares how the stream was cut into reads.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import TypeVar

import attrs

from .._errors import PeerProtocolError
from ._idstr import idstr_untrusted
from ._main_events import MainEvent

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_U64 = struct.Struct("!Q")


@attrs.frozen
class Until:
    """Wanted: all bytes before *pattern*, at most *limit*; the pattern stays."""

    pattern: bytes
    limit: int


@attrs.frozen
class Tail:
    """Wanted: all the rest of the stream, behind *prefix*, which is part of it."""

    prefix: bytes


T = TypeVar("T")
Want = int | Until | Tail
Parser = Generator[Want | MainEvent, bytes, T]


def u8() -> Parser[int]:
    """Parse one byte."""
    return (yield 1)[0]


def be16() -> Parser[int]:
    """Parse 2 bytes as a number."""
    return int(_U16.unpack((yield 2))[0])


def be32() -> Parser[int]:
    """Parse 4 bytes as a number."""
    return int(_U32.unpack((yield 4))[0])


def be64() -> Parser[int]:
    """Parse 8 bytes as a number."""
    return int(_U64.unpack((yield 8))[0])


def cstr8() -> Parser[str]:
    """Parse a length byte and as many bytes of printable text."""
    length = yield from u8()
    return idstr_untrusted((yield length) if length else b"")


def skip(count: int) -> Parser[None]:
    """Take *count* bytes along and drop them."""
    while count:
        piece = min(count, 64 * 1024)
        yield piece
        count -= piece


def refuse(reason: str, offset: int | None = None) -> PeerProtocolError:
    """Make the error for bytes that break the protocol.

    Args:
      offset: where they begin; None for the bytes that were parsed last.
    """
    return PeerProtocolError(reason, offset=offset)
