"""What the first bytes of a connection say that it is, and where it comes from."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from .._link._stream import plain_stream, receive_exactly
from .._link._tls import NoTlsError, check_ready_made, is_secure, shake_hands
from .._wire._main_stream import STREAM_MAGIC
from .._wire._multifd import INITIAL_SIZE, MULTIFD_MAGIC

# What a connection begins with, and how much of it says all that is needed.
_FIRST_BYTES: Final = {
    STREAM_MAGIC.to_bytes(4): 8,
    MULTIFD_MAGIC.to_bytes(4): INITIAL_SIZE,
}

# What a TLS client begins with: a handshake record of version 3.x.
_TLS_HANDSHAKE: Final = b"\x16\x03"


class NotAPeerError(Exception):
    """A connection that is neither main nor multifd, or comes too late to be."""


async def first_bytes(stream: trio.abc.Stream) -> bytes:
    """Read what says what a connection is: all of an initial packet, or main's header.

    With TLS, after the handshake. If cancelled, what was read is lost.

    Raises:
      NotAPeerError: if it is neither.
      trio.BrokenResourceError: if the connection breaks.
      trio.ClosedResourceError: if it was closed on this side.
    """
    if is_secure(stream):
        try:
            check_ready_made(stream)
            await shake_hands(stream, "the source")
        except NoTlsError as error:
            raise NotAPeerError(f"no TLS: {error}") from error
        except ValueError as error:
            raise NotAPeerError(str(error)) from error
    first = await receive_exactly(stream, 4)
    wanted = _FIRST_BYTES.get(first, 4)
    if wanted > 4:
        first += await receive_exactly(stream, wanted - 4)
    if len(first) < wanted:
        raise NotAPeerError(f"it ended after {len(first)} bytes")
    if first[:2] == _TLS_HANDSHAKE:
        raise NotAPeerError("it begins with TLS, which is not expected")
    if wanted == 4:
        raise NotAPeerError(f"it begins with {first!r}, so it is no migration")
    return first


def origin_of(stream: trio.abc.Stream) -> str:
    """Say where *stream* comes from, if that can be known."""
    plain = plain_stream(stream)
    if isinstance(plain, trio.SocketStream):
        with suppress(OSError):
            name = plain.socket.getpeername()
            return f" from {name[0]}" if isinstance(name, tuple) else ""
    return ""
