"""Reading from a connection straight into memory that is already there."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import termios
from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol, cast

import trio

# On, and no seconds: to close is to reset.
_NO_LINGER: Final = struct.pack("ii", 1, 0)

# Of a peer that does not answer, before it counts as gone.
_PROBES: Final = 3

_PIECE: Final = 256 * 1024


class Resets(Protocol):
    """What any stream may have besides, to be as good as TCP where a migration fails.

    Without it, the end of a connection is all that a peer without a return path
    sees of a failure, and that is what success looks like, too.
    """

    @property
    def was_reset(self) -> bool:
        """Whether the peer has broken the connection, or closed it unheard."""
        ...

    def reset(self) -> None:
        """Close at once, so that the peer finds the connection broken, not ended.

        What was sent and has not arrived is dropped. Closing it again does nothing.
        """
        ...


async def fill(stream: trio.abc.ReceiveStream, buffers: Sequence[memoryview]) -> int:
    """Read what has arrived into *buffers*, in order; wait for at least a byte.

    Plain sockets fill all of them with one system call and no copy; any other
    stream fills at most the first that is not empty, with a copy.

    If cancelled, nothing was read.

    Returns: how many bytes; 0 if the stream has ended.

    Raises:
      trio.BrokenResourceError: if the connection broke.
      trio.ClosedResourceError: if the stream was closed on this side.
    """
    if isinstance(stream, trio.SocketStream) and hasattr(stream.socket, "recvmsg_into"):
        try:
            count, _, _, _ = await stream.socket.recvmsg_into(buffers)
        except OSError as error:
            raise trio.BrokenResourceError(f"{error.strerror}") from error
        return count
    target = next(buffer for buffer in buffers if buffer)
    data = await stream.receive_some(len(target))
    target[: len(data)] = data
    return len(data)


async def send_some(
    stream: trio.abc.SendStream, buffers: Sequence[memoryview]
) -> list[memoryview]:
    """Send at least a byte of *buffers*, in order, and return what is left of them.

    Plain sockets take as much of all of them as they have room for, with one
    system call and no copy; any other stream takes up to 256 KiB of the first that is
    not empty, so that it shows how far it has come.

    If cancelled on a plain socket, nothing was sent; else nobody knows what was.

    Raises:
      trio.BrokenResourceError: if the connection broke.
      trio.ClosedResourceError: if the stream was closed on this side.
    """
    left = [buffer for buffer in buffers if buffer]
    if isinstance(stream, trio.SocketStream) and hasattr(stream.socket, "sendmsg"):
        try:
            count = await stream.socket.sendmsg(left)
        except OSError as error:
            raise trio.BrokenResourceError(f"{error.strerror}") from error
        return rest_of(left, count)
    piece = left[0][:_PIECE]
    await stream.send_all(piece)
    return rest_of(left, len(piece))


def rest_of(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return what is left of *buffers* without their first *count* bytes."""
    left = list(buffers)
    while left and count >= len(left[0]):
        count -= len(left.pop(0))
    return [left[0][count:], *left[1:]] if left else []


async def hear(stream: trio.abc.ReceiveStream) -> bytes | bytearray:
    """Wait for a byte; empty if the stream has ended.

    Its socket may be one that blocks: a thread sends over it (`ThreadSender`).

    If cancelled, nothing was read.

    Raises:
      trio.BrokenResourceError: if the connection broke.
      trio.ClosedResourceError: if the stream was closed on this side.
    """
    if not isinstance(stream, trio.SocketStream):
        return await stream.receive_some(1)
    try:
        # Trio receives first, and waits if that would block.
        return await stream.socket.recv(1, getattr(socket, "MSG_DONTWAIT", 0))
    except OSError as error:
        if error.errno == errno.EBADF:
            raise trio.ClosedResourceError("it was closed") from None
        raise trio.BrokenResourceError(f"{error.strerror}") from error


def unacknowledged(stream: trio.abc.Stream) -> int | None:
    """How many bytes of what was sent the peer's system has not taken; None: unknown.

    Linux: SIOCOUTQ, for TCP and unix sockets.
    """
    plain = plain_stream(stream)
    if not isinstance(plain, trio.SocketStream):
        return None
    count = array("i", [0])
    try:
        fcntl.ioctl(plain.socket.fileno(), termios.TIOCOUTQ, count)
    except (OSError, ValueError):
        # Closed on this side, or no Linux.
        return None
    return count[0]


async def end(stream: trio.abc.Stream, *, close: bool) -> None:
    """Say that nothing more will come, and keep listening where that is possible.

    Where it is not: close the stream, or leave it as it is. A peer that has left
    is no error.
    """
    try:
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        elif close:
            await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        # To close is its right, too.
        return


async def reset(stream: trio.abc.Stream) -> None:
    """Close *stream* at once, and let the peer know that this was no proper end.

    What was sent and has not arrived is dropped, where the system can do that, or
    where the stream itself `Resets`.
    """
    plain = plain_stream(stream)
    if isinstance(plain, trio.SocketStream):
        with suppress(OSError):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    elif hasattr(plain, "reset"):
        cast("Resets", plain).reset()
    await trio.aclose_forcefully(stream)


def keep_alive(stream: trio.abc.Stream, seconds: float) -> None:
    """Let the system find out within about *seconds* if the peer's machine is gone.

    That is where nothing is sent: a machine that answers may be silent as long as
    it likes. For TCP, where the system can do that; else nobody can be gone.
    """
    if not isinstance(stream, trio.SocketStream):
        return
    if stream.socket.family not in (socket.AF_INET, socket.AF_INET6):
        return
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        wait = max(1, int(seconds / 2))
        between = max(1, int(seconds / 2 / _PROBES))
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, wait)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """Read *count* bytes, or fewer if the stream ends before.

    If cancelled, what was read is lost.

    Raises:
      trio.BrokenResourceError: if the connection broke.
    """
    raw = bytearray(count)
    rest = memoryview(raw)
    while rest and (got := await fill(stream, [rest])):
        rest = rest[got:]
    return bytes(raw[: count - len(rest)])


def plain_stream(stream: trio.abc.Stream) -> trio.abc.Stream:
    """Return what carries *stream*: what is beneath the TLS, or the stream itself."""
    if isinstance(stream, trio.SSLStream):
        return cast("trio.SSLStream[trio.abc.Stream]", stream).transport_stream
    return stream


def was_reset(stream: trio.abc.Stream) -> bool:
    """Whether the peer's machine has answered with a reset.

    Asked of the socket itself: where the peer had closed its half before, neither
    reading nor writing a byte would tell. What is no socket knows only if it `Resets`.
    """
    plain = plain_stream(stream)
    if not isinstance(plain, trio.SocketStream):
        return hasattr(plain, "was_reset") and cast("Resets", plain).was_reset
    try:
        return plain.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    except OSError:
        # Closed on this side: that says nothing of the peer.
        return False
