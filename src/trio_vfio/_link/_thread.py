"""Sending from a thread of its own, over plain sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, final

import attrs
import trio

from ._stream import rest_of


class Interrupted(Exception):  # noqa: N818 (what happened, as trio.Cancelled)
    """A thread is to leave before it has sent all."""


@final
@attrs.define(eq=False)
class ThreadSender:
    """Sends over the socket of a Trio stream, from a thread that the system wakes.

    A blocking socket takes a packet of 1 MiB with one system call, where one that
    does not block takes a part, and the thread has to wait and fight for Python's
    lock again: 10 to 20 % slower over loopback. So while the ``with`` block runs, the
    socket blocks, for whoever uses it: tasks may receive with `_stream.hear` only.

    The block is to be entered and left in Trio's thread, around that of the sender.
    """

    _fd: int = attrs.field(alias="fd")
    # A duplicate: its number stays ours, whoever closes the stream.
    _socket: socket.socket = attrs.field(init=False)
    _sending: bool = attrs.field(default=False, init=False)
    _interrupted: bool = attrs.field(default=False, init=False)

    @classmethod
    def of(cls, stream: trio.abc.Stream) -> Self | None:
        """Return one for *stream*; None if only tasks can send over it."""
        if isinstance(stream, trio.SocketStream) and hasattr(socket, "MSG_NOSIGNAL"):
            return cls(stream.socket.fileno())
        return None

    def __enter__(self) -> Self:
        self._socket = socket.socket(fileno=os.dup(self._fd))
        self._socket.settimeout(None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.settimeout(0)
        # Before the stream, or to close that would not be to reset it.
        self._socket.close()

    def send_some(self, buffers: Sequence[memoryview]) -> list[memoryview]:
        """Send at least a byte of *buffers*, in order, and return what is left of them.

        To be called in the thread.

        Raises:
          Interrupted: if it is to leave; nothing was sent.
          trio.BrokenResourceError: if the connection broke.
        """
        # In this order: `interrupt` looks at them in the other.
        self._sending = True
        if self._interrupted:
            raise Interrupted
        try:
            count = self._socket.sendmsg(buffers, (), socket.MSG_NOSIGNAL)
        except OSError as error:
            if self._interrupted:
                raise Interrupted from error
            raise trio.BrokenResourceError(f"{error.strerror}") from error
        self._sending = False
        return rest_of(buffers, count)

    def interrupt(self) -> None:
        """Let the thread leave at once, whatever it sends. Does not wait for it.

        A connection that was in use is good for nothing but a `reset` then.
        """
        self._interrupted = True
        if self._sending:
            # What wakes a thread in the system; the peer may hear of an end, amid
            # a packet.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
