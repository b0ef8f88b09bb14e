"""Reading much from a connection, straight into memory that is already there."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, final

import attrs
import trio

from ._stream import fill

LINGER: Final = 0.01
"""Seconds that a thread waits for more, before a task does that."""

MOST_AT_ONCE: Final = 1024 * 1024
"""Bytes that a thread sleeps for, at most."""

# struct timeval
_TIMEOUT: Final = struct.pack("@ll", 0, int(LINGER * 1_000_000))
_NO_TIMEOUT: Final = struct.pack("@ll", 0, 0)


def _nothing() -> None: ...


def reader(stream: trio.abc.ReceiveStream) -> Reader:
    """Return what reads *stream*.

    A plain socket fills all buffers with one system call and no copy; any other
    stream at most the first that is not empty, with a copy.
    """
    if isinstance(stream, trio.SocketStream) and sys.platform == "linux":
        return SocketReader(stream.socket)
    return StreamReader(stream)


@final
@attrs.define(eq=False)
class StreamReader:
    """Reads any stream."""

    _stream: trio.abc.ReceiveStream

    async def fill(self, buffers: Sequence[memoryview]) -> int:
        """Read what has arrived into *buffers*, in order; wait for at least a byte.

        If cancelled, nothing was read.

        Returns: how many bytes; 0 if the stream has ended.

        Raises:
          trio.BrokenResourceError: if the connection broke.
          trio.ClosedResourceError: if the stream was closed on this side.
        """
        return await fill(self._stream, buffers)


@final
@attrs.define(eq=False)
class SocketReader:
    """Reads a socket: a task waits for the first byte, a thread takes all there is.

    Who closes the stream meanwhile ends what the thread does, soon.

    The thread reads with a blocking socket, for as much as it needs: each time that
    it wakes, with the interpreter's lock to be had again, costs as much as it does
    to copy 100 KiB.
    """

    _socket: trio.socket.SocketType
    _blocking: socket.socket = attrs.field(init=False)
    _least: int = attrs.field(default=1, init=False)
    """Bytes that must have come before a read returns: SO_RCVLOWAT."""

    async def wait(self) -> None:
        """Wait until there is something to read, or the stream has ended.

        Raises:
          trio.ClosedResourceError: if the socket was closed on this side.
        """
        self._check_open()
        await trio.lowlevel.wait_readable(self._socket)

    @contextmanager
    def blocking(self) -> Generator[None]:
        """Let `fill` wait in a thread, while nobody else reads the socket.

        To be entered and left in Trio's thread.

        Raises:
          trio.ClosedResourceError: if the socket was closed on this side.
        """
        self._check_open()
        # A duplicate: its number stays ours, whoever closes the stream.
        self._blocking = socket.socket(fileno=os.dup(self._socket.fileno()))
        with self._blocking:
            try:
                self._set(socket.SO_RCVTIMEO, _TIMEOUT)
                self._blocking.settimeout(None)
                yield
            finally:
                self._blocking.settimeout(0)
                self._set(socket.SO_RCVTIMEO, _NO_TIMEOUT)
                self._wait_for(1)

    def fill(
        self, buffers: Sequence[memoryview], before: Callable[[], None] = _nothing
    ) -> int | None:
        """Fill the first of *buffers*, and of the others what has come by then.

        Fills less where that takes more than 10 ms, or the stream ends before.

        Args:
          before: called as the very last thing before the read: a thread that it
            wakes finds the interpreter's lock free.

        Returns: how many bytes; 0 if the stream has ended; None if nothing came.

        Raises:
          trio.BrokenResourceError: if the connection broke.
          trio.ClosedResourceError: if the socket was closed on this side.
        """
        self._check_open()
        try:
            self._wait_for(min(len(buffers[0]), MOST_AT_ONCE))
            number = self._blocking.fileno()
            before()
            return os.readv(number, buffers)
        except BlockingIOError:
            return None
        except OSError as error:
            raise trio.BrokenResourceError(f"{error.strerror}") from error

    def _check_open(self) -> None:
        if self._socket.fileno() == -1:
            raise trio.ClosedResourceError("the socket was closed")

    def _wait_for(self, least: int) -> None:
        if self._least != least:
            self._least = least
            # A vsock has no more than it has room for; it then reads in smaller pieces.
            with suppress(OSError):
                self._set(socket.SO_RCVLOWAT, least)

    def _set(self, option: int, value: int | bytes) -> None:
        self._blocking.setsockopt(socket.SOL_SOCKET, option, value)


Reader = StreamReader | SocketReader
