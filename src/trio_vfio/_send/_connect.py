"""The connections of an outgoing migration: main first, then the channels.

QEMU: ``socket_start_outgoing_migration`` in migration/socket.c and
``multifd_send_setup`` in migration/multifd.c.
"""

from __future__ import annotations

import errno
import math
import ssl
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final, final

import attrs
import trio

from .._deadlines import Deadlines
from .._link._address import LOCALHOST, TcpAddress, connect, parse_address
from .._link._stream import keep_alive
from .._link._tls import NoTlsError, check_ready_made, secure, shake_hands
from .._types import Connect
from .._wire._multifd import InitialPacket

_CLOSE_GRACE: Final = 0.5
"""Seconds to get out that this is the end, which over TLS has to be said."""


@attrs.frozen
class Connections:
    """All connections of a session."""

    main: trio.abc.Stream
    channels: tuple[trio.abc.Stream, ...]


@asynccontextmanager
async def connected(
    where: str | Connect,
    channels: int,
    *,
    uuid: bytes,
    deadlines: Deadlines,
    ssl_context: ssl.SSLContext | None,
    server_hostname: str | None,
) -> AsyncGenerator[Connections]:
    """Open all connections, one after another, and close them in the end.

    Each channel says which of which machine it is before the next is opened: over
    TLS a QEMU waits for that before it takes another connection
    (``multifd_recv_initial_packet``, which blocks).

    If this fails or is cancelled, those that were opened are closed.

    Raises:
      ValueError: if *where* is no address, or opens TLS streams on which a cut
        connection looks like one that ended.
      OSError: if a connection cannot be made, or not in time.
    """
    connect_one = where if callable(where) else _to(where, deadlines.silence)
    if server_hostname is None and isinstance(where, str):
        server_hostname = _host(where)
    async with AsyncExitStack() as stack:
        opening = _Opening(stack, connect_one, ssl_context, server_hostname)
        seconds = deadlines.first_connection
        opened: Connections | None = None
        with trio.move_on_after(math.inf if seconds is None else seconds):
            # As QEMU: main is secure before any other is opened.
            main = await opening.open_one()
            others = [await opening.open_channel(uuid, id_) for id_ in range(channels)]
            opened = Connections(main, tuple(others))
        if opened is None:
            text = f"no connection within {seconds:g} s"
            raise OSError(errno.ETIMEDOUT, text, str(where))
        yield opened


def _to(where: str, silence: float | None) -> Connect:
    address = parse_address(where)

    async def connect_one() -> trio.abc.Stream:
        stream = await connect(address)
        if silence is not None:
            keep_alive(stream, silence)
        return stream

    return connect_one


def _host(where: str) -> str | None:
    address = parse_address(where)
    return address.host or LOCALHOST if isinstance(address, TcpAddress) else None


@final
@attrs.define(eq=False)
class _Opening:
    stack: AsyncExitStack
    connect_one: Connect
    ssl_context: ssl.SSLContext | None
    server_hostname: str | None

    async def open_one(self) -> trio.abc.Stream:
        stream = await self.connect_one()
        if self.ssl_context is None:
            self.stack.push_async_callback(_close, stream)
            check_ready_made(stream)
            return stream
        over_tls = secure(
            stream, self.ssl_context, server_hostname=self.server_hostname
        )
        self.stack.push_async_callback(_close, over_tls)
        try:
            await shake_hands(over_tls, "the destination")
        except NoTlsError as error:
            raise OSError(errno.EPROTO, f"no TLS: {error}") from error.__cause__
        return over_tls

    async def open_channel(self, uuid: bytes, id_: int) -> trio.abc.Stream:
        stream = await self.open_one()
        # If it broke, the migration finds that out, and has more to say of it.
        with suppress(trio.BrokenResourceError):
            await stream.send_all(InitialPacket(uuid, id_).encode())
        return stream


async def _close(stream: trio.abc.Stream) -> None:
    cancelled = trio.current_effective_deadline() == -math.inf
    # Shielded, or that cancel would come once more and hide what else is raised.
    with trio.move_on_after(0 if cancelled else _CLOSE_GRACE, shield=True):
        try:
            await stream.aclose()
        except trio.BrokenResourceError:
            # Closed it is all the same.
            return
