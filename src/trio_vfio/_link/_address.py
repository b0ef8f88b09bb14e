"""Addresses as QEMU writes them, and sockets for them."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Final, cast

import attrs
import trio

from ._unix_socket import bind

LOCALHOST: Final = "localhost"
"""Where to connect if an address names no host."""

_BACKLOG: Final = 512


@attrs.frozen
class TcpAddress:
    """``tcp:HOST:PORT``, with an IPv6 host in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


@attrs.frozen
class UnixAddress:
    """``unix:PATH``."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


def parse_address(text: str) -> TcpAddress | UnixAddress:
    """Parse an address as QEMU's ``migrate`` and ``-incoming`` take it.

    Raises:
      ValueError: if it is none, or of a kind that cannot carry channels.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return UnixAddress(rest)
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and port.isascii() and port.isdigit() and int(port) < 65536:
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: an IPv6 host goes in brackets")
        return TcpAddress(host, int(port))
    raise ValueError(f"{text!r} is not tcp:HOST:PORT or unix:PATH")


@asynccontextmanager
async def listening(
    address: TcpAddress | UnixAddress,
) -> AsyncGenerator[Sequence[trio.SocketListener], None]:
    """Listen on *address* while the ``async with`` block runs.

    A unix socket is made with mode 0600, and its file removed in the end. It replaces a
    socket that a killed process has left, and nothing else.

    Raises:
      OSError: if that is not possible, with the address in its text. EADDRINUSE if a
        process listens there, or if there is a file that is no socket.
    """
    opened: Sequence[trio.SocketListener] = []
    with ExitStack() as stack:
        try:
            if isinstance(address, UnixAddress):
                opened = [stack.enter_context(_listening_unix(address))]
            elif address.host in ("", "::") and socket.has_dualstack_ipv6():
                opened = [_listen_on_all(address)]
            else:
                opened = await trio.open_tcp_listeners(
                    address.port, host=address.host or None, backlog=_BACKLOG
                )
        except OSError as error:
            text = error.strerror or str(error)
            raise OSError(error.errno, text, str(address)) from error
        for listener in opened:
            stack.callback(listener.socket.close)
        yield opened


def address_of(listener: trio.abc.Listener[trio.abc.Stream]) -> str | None:
    """Return where *listener* listens, as an address; None if it is no socket."""
    if not isinstance(listener, trio.SocketListener):
        return None
    name = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        return str(UnixAddress(os.fsdecode(name)))
    return str(TcpAddress(name[0], name[1]))


async def connect(address: TcpAddress | UnixAddress) -> trio.SocketStream:
    """Open a connection to *address*.

    Raises:
      OSError: if nobody listens there, with the address in its text.
    """
    try:
        if isinstance(address, UnixAddress):
            return await trio.open_unix_socket(address.path)
        return await trio.open_tcp_stream(address.host or LOCALHOST, address.port)
    except OSError as error:
        number = _errno(error)
        text = str(error) if number is None else os.strerror(number)
        raise OSError(number, text, str(address)) from error


def _errno(error: OSError) -> int | None:
    """Return the number of *error*, or of the first of several attempts."""
    attempts = error.__cause__
    if isinstance(attempts, ExceptionGroup):
        errors = cast("ExceptionGroup[OSError]", attempts).exceptions
        return next((each.errno for each in errors if isinstance(each, OSError)), None)
    return error.errno


@contextmanager
def _listening_unix(address: UnixAddress) -> Generator[trio.SocketListener, None, None]:
    # Absolute, for the process may change its directory meanwhile.
    path = os.path.abspath(address.path)
    with socket.socket(socket.AF_UNIX) as sock:
        # On Linux the file gets the mode of the unbound socket, so there is no
        # moment at which others may connect.
        os.fchmod(sock.fileno(), 0o600)
        bind(sock, address.path)
        made = os.stat(path)
        try:
            sock.listen(_BACKLOG)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        finally:
            with suppress(FileNotFoundError):
                # Somebody else's by now, if another was made in its place.
                if os.path.samestat(made, os.stat(path)):
                    os.unlink(path)


def _listen_on_all(address: TcpAddress) -> trio.SocketListener:
    """Listen for IPv4 and IPv6 alike, on one port."""
    sock = socket.create_server(
        ("::", address.port),
        family=socket.AF_INET6,
        dualstack_ipv6=True,
        backlog=_BACKLOG,
    )
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
