"""Reading from a connection straight into memory that is already there."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import cast

import trio


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
    reading nor writing a byte would tell. Never so for what is no socket.
    """
    plain = plain_stream(stream)
    if not isinstance(plain, trio.SocketStream):
        return False
    try:
        return plain.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    except OSError:
        # Closed on this side: that says nothing of the peer.
        return False
