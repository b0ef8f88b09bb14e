"""Connections of every kind over which a source can send, for tests of all of them."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio
import trustme
from trio.testing import MockClock

from trio_vfio.testing import link

KINDS: Final = ("memory", "tls", "tcp", "unix")
THREADED: Final = ("tcp", "unix")
"""Where threads send."""

# Less than a packet, so that a peer that takes nothing is noticed soon.
_BUFFER: Final = 64 * 1024


async def go_on(clock: MockClock) -> None:
    """Let a clock that runs jump on, until a deadline ends this."""
    while True:
        clock.jump(5)
        # A call that was under way at the jump counts as an event.
        await trio.sleep(0.01)


@attrs.define(eq=False)
class Path:
    """A way to a destination: what `open_outgoing` and `open_incoming` take."""

    kind: str
    connect: Callable[[], Awaitable[trio.abc.Stream]]
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]
    client: ssl.SSLContext | None = None
    server: ssl.SSLContext | None = None
    opened: list[trio.abc.Stream] = attrs.field(factory=list[trio.abc.Stream])
    """What the source has opened: main, then the channels."""

    async def open(self) -> trio.abc.Stream:
        """Open a connection, and keep it."""
        stream = await self.connect()
        if isinstance(stream, trio.SocketStream):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.opened.append(stream)
        return stream

    async def accept(self) -> trio.abc.Stream:
        """Take a connection at the destination."""
        stream = await self.listeners[0].accept()
        if self.server is None:
            return stream
        secure = trio.SSLStream(stream, self.server, server_side=True)
        await secure.do_handshake()
        return secure

    @property
    def options(self) -> dict[str, Any]:
        """What `open_outgoing` is to be told besides."""
        if self.client is None:
            return {}
        return {"ssl_context": self.client, "server_hostname": "there"}

    @property
    def closed(self) -> bool:
        """Whether the source has closed all it has opened."""
        return all(map(_is_closed, self.opened))


def _is_closed(stream: trio.abc.Stream) -> bool:
    if isinstance(stream, trio.SocketStream):
        return stream.socket.fileno() == -1
    return bool(getattr(stream, "_closed"))  # noqa: B009 (a LinkStream's own)


@asynccontextmanager
async def path_of(kind: str, directory: os.PathLike[str]) -> AsyncGenerator[Path]:
    """Open a way of that *kind*."""
    if kind == "memory":
        here, there = link(window=100_000)
        yield Path(kind, here, there)
        return
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as sock:
        # Inherited by what is accepted.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        address: Any = ("127.0.0.1", 0)
        sock.bind(os.fspath(directory) + "/socket" if kind == "unix" else address)
        sock.listen()
        name = sock.getsockname()

        async def connect() -> trio.abc.Stream:
            if kind == "unix":
                return await trio.open_unix_socket(name)
            return await trio.open_tcp_stream(*name)

        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        client, server = _contexts() if kind == "tls" else (None, None)
        yield Path(kind, connect, [listener], client, server)


def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    client = ssl.create_default_context()
    authority.configure_trust(client)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("there").configure_cert(server)
    return client, server
