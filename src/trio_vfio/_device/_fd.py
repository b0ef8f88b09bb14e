"""A device that is a descriptor."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import final

import attrs
import trio

from ._lent import LentDescriptor
from ._worker import Worker
from ._writing import write_buffers


@final
@attrs.define(eq=False)
class FdSink:
    """A sink over a descriptor that takes bytes: a pipe, a socket, a memfd.

    All data is written to *fd*, in order. The config blob is kept in `config`.

    The descriptor stays the caller's: it must be open as long as the device is
    used, and is not closed. From `begin` until `finish` or `abort` it is
    non-blocking, and with it every duplicate of it, in other processes too.

    Args:
      fd: the descriptor, open for writing.
      precopy: whether data comes before switchover; None if that is not known.
    """

    _lent: LentDescriptor = attrs.field(alias="fd", converter=LentDescriptor)
    precopy: bool | None = attrs.field(default=None, kw_only=True)
    """Whether the device takes data before switchover; None if it cannot say."""

    config: bytes | None = attrs.field(default=None, init=False)
    """The config blob, once it has come."""
    _worker: Worker = attrs.field(factory=Worker, init=False)
    _began_at: int | None = attrs.field(default=None, init=False)
    """Its offset at the first `begin`; None for pipes and sockets, which have none."""
    _size: int = attrs.field(default=0, init=False)
    """The size of a file at the first `begin`."""
    _is_written: bool = attrs.field(default=False, init=False)
    """Whether any data was written to a pipe or a socket. A worker thread sets it."""

    async def begin(self) -> None:
        """Make the descriptor non-blocking.

        After another migration, a descriptor that can seek goes back to where it was at
        the first `begin`, and a file to the size that it had then. If this fails or is
        cancelled, it is non-blocking only if it was.

        Raises:
          OSError: if it is no open descriptor. ESPIPE if another migration has written
            to it, and it cannot go back.
        """
        await self._worker.restart()
        self._start_afresh()
        self._lent.take()
        self.config = None
        # ESPIPE
        with suppress(OSError):
            self._began_at = os.lseek(self._lent.fd, 0, os.SEEK_CUR)
            self._size = os.fstat(self._lent.fd).st_size

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Write all of *buffers*, in a worker thread.

        If this fails, is cancelled or aborted, what was written stays written:
        every buffer before the last that was asked for, and a part of that one.

        Raises:
          OSError: if a write fails or accepts nothing; the text says how much of
            the buffer was written. ECANCELED if the device was aborted.
        """
        await self._worker.run(
            write_buffers,
            self._lent.fd,
            buffers,
            self._worker.check,
            self._mark_written,
        )

    async def load_config(self, blob: bytes) -> None:
        """Keep *blob* in `config`. If cancelled, it is not kept."""
        await trio.lowlevel.checkpoint()
        self.config = blob

    async def finish(self) -> None:
        """Make the descriptor blocking again, if it was.

        If this fails or is cancelled, it is as `begin` left it.

        Raises:
          OSError: if the descriptor was closed.
        """
        await trio.lowlevel.checkpoint()
        self._lent.give_back()

    async def abort(self) -> None:
        """End a write that is under way, and make the descriptor blocking again.

        What was written stays until the next `begin`, and in a pipe or a socket it
        cannot be taken back: whoever reads it has to be told some other way.

        If cancelled, the write ends all the same, but the descriptor may stay
        non-blocking.

        Raises:
          OSError: if the descriptor was closed.
        """
        self._worker.stop()
        # Not before: the thread would be caught in its next write().
        await self._worker.wait_idle()
        self._lent.give_back()

    def _mark_written(self) -> None:
        # In a worker thread.
        self._is_written = True

    def _start_afresh(self) -> None:
        if self._began_at is not None:
            fd = self._lent.fd
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, self._size)
            os.lseek(fd, self._began_at, os.SEEK_SET)
        elif self._is_written:
            text = "an earlier migration has written to it, and it cannot go back"
            raise OSError(errno.ESPIPE, text)
