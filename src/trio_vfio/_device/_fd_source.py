"""A source that is a descriptor."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import final

import attrs
import trio

from ._lent import LentDescriptor
from ._port import Buffers, Pending
from ._precopy import PreCopy
from ._reading import read_all, read_buffers
from ._worker import Worker


@final
@attrs.define(eq=False)
class FdSource:
    """A source over a descriptor that gives bytes: a pipe, a socket, a file, a memfd.

    All that can be read from *fd*, up to its end, is the device's data. Where
    nothing is there yet, a read waits for it, before `stop` too.

    The descriptor stays the caller's: it must be open as long as the source is
    used, and is not closed. From `begin` until `finish` or `abort` it is
    non-blocking, and with it every duplicate of it, in other processes too.

    Args:
      fd: the descriptor, open for reading.
      precopy_bytes: how much of the data may be read before `stop`. A source
        that has less ends early.
      config: the config blob.

    Raises:
      ValueError: if *precopy_bytes* is negative.
    """

    _lent: LentDescriptor = attrs.field(alias="fd", converter=LentDescriptor)
    precopy_bytes: int = attrs.field(
        default=0,
        kw_only=True,
        validator=attrs.validators.ge(0),
        on_setattr=attrs.setters.frozen,
    )
    """How much of the data may be read before `stop`."""
    _config: bytes = attrs.field(alias="config", default=b"", kw_only=True)

    _precopy: PreCopy = attrs.field(init=False)
    _worker: Worker = attrs.field(factory=Worker, init=False)
    _began_at: int | None = attrs.field(default=None, init=False)
    """Its offset at the first `begin`; None for pipes and sockets, which have none."""
    _is_read: bool = attrs.field(default=False, init=False)
    """Whether any data was read. A worker thread sets it."""

    def __attrs_post_init__(self) -> None:
        self._precopy = PreCopy(self.precopy_bytes)

    async def begin(self) -> bool:
        """Make the descriptor non-blocking.

        After another migration, a descriptor that can seek goes back to where it was at
        the first `begin`. If this fails or is cancelled, nothing has changed.

        Raises:
          OSError: if it is no open descriptor. ESPIPE if another migration has read
            from it, and it cannot go back.

        Returns: whether there is anything to read before `stop`.
        """
        await self._worker.restart()
        self._start_afresh()
        self._lent.take()
        # ESPIPE
        with suppress(OSError):
            self._began_at = os.lseek(self._lent.fd, 0, os.SEEK_CUR)
        self._precopy = PreCopy(self.precopy_bytes)
        return self.precopy_bytes > 0

    async def pending(self) -> Pending:
        """Return what is left of *precopy_bytes*, and of a file.

        Raises:
          OSError: if the descriptor was closed.
        """
        await trio.lowlevel.checkpoint()
        rest = self._rest()
        left = self._precopy.left
        return Pending(
            initial_bytes=left if rest is None else min(left, rest),
            stop_copy_bytes=rest,
        )

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        """Read the next data into *buffers*, in a worker thread.

        Before `stop`, not beyond *precopy_bytes*: where they end, so does the
        list. Waits for the first byte; then more is waited for only as long as
        it keeps coming, a millisecond in all.

        If this fails, is cancelled or aborted, what was read in the call is gone;
        `abort` can bring back a file's.

        Raises:
          OSError: if a read fails; the text says how much of the buffer was
            read. ECANCELED if the source was aborted.
        """
        allowed = self._precopy.allowed(buffers)
        if not allowed:
            await trio.lowlevel.checkpoint()
            return []
        counts = await self._worker.run(
            read_buffers, self._lent.fd, allowed, self._worker.check, self._mark_read
        )
        self._precopy.read(counts)
        return counts

    async def read_all(self, buffers: Buffers) -> None:
        """Read to the end of the data, in one worker thread.

        Waits as `read_into`, and leaves the same if it fails, is cancelled or aborted.

        Raises:
          OSError: as by `read_into`.
        """
        await self._worker.run(
            read_all,
            self._lent.fd,
            buffers,
            self._worker.check,
            None,
            self._mark_read,
        )

    async def stop(self) -> None:
        """Let everything be read from now on, to the end of the data.

        If cancelled, nothing has changed.
        """
        await trio.lowlevel.checkpoint()
        self._precopy.stop()

    async def config(self) -> bytes:
        """Return the config blob that the source was made with."""
        await trio.lowlevel.checkpoint()
        return self._config

    async def finish(self) -> None:
        """Make the descriptor blocking again, if it was.

        If this fails or is cancelled, it is as `begin` left it.

        Raises:
          OSError: if the descriptor was closed.
        """
        await trio.lowlevel.checkpoint()
        self._lent.give_back()

    async def abort(self) -> None:
        """End a read that is under way, and leave the descriptor as it was.

        It is blocking again, if it was. A descriptor that can seek goes back to
        where it was at `begin`, so that the migration can be tried again. What was
        read from a pipe or a socket is gone.

        If cancelled, the read ends all the same, but the descriptor may stay
        non-blocking and where the read left it.

        Raises:
          OSError: if the descriptor was closed.
        """
        self._worker.stop()
        # Not before: the thread would be caught in its next read, or read on.
        await self._worker.wait_idle()
        with ExitStack() as stack:
            stack.callback(self._lent.give_back)
            if self._began_at is not None:
                os.lseek(self._lent.fd, self._began_at, os.SEEK_SET)

    def _mark_read(self) -> None:
        self._is_read = True

    def _start_afresh(self) -> None:
        if self._began_at is not None:
            os.lseek(self._lent.fd, self._began_at, os.SEEK_SET)
        elif self._is_read:
            text = "an earlier migration has read from it, and it cannot go back"
            raise OSError(errno.ESPIPE, text)

    def _rest(self) -> int | None:
        """How much is left to read, where that can be known."""
        status = os.fstat(self._lent.fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        return max(0, status.st_size - os.lseek(self._lent.fd, 0, os.SEEK_CUR))
