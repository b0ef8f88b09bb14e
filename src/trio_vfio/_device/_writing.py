"""Writing a run of buffers to a descriptor: what a worker thread does."""

from __future__ import annotations

import errno
import math
import os
import select
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, final

import attrs

from .._batch import as_batch
from ._port import Gathers, QuickWriter
from ._waiting import wait_ready, with_progress

AT_ONCE: Final = 1024 * 1024
"""Bytes of several buffers that go with one system call.

As much as QEMU writes with one, so that a cancel waits no longer for its end.
"""

TO_FILE: Final = 2 * AT_ONCE
"""The same for a file, for which nobody waits."""

QUICK: Final = 0.001
"""Seconds that a write may take for another thread to do it by the way."""


@as_batch()
def write_buffers(
    fd: int,
    buffers: Iterator[memoryview],
    check: Callable[[], None],
    on_first: Callable[[], None] | None = None,
) -> None:
    """Write all of *buffers* to *fd*, each of them whole before the next is asked for.

    Where *buffers* can give several, they go together, up to 1 MiB. Where *fd* is a
    file, up to 2 MiB, and whoever brings a buffer may write it: what a file takes goes
    to memory, while a device, even if it is quick at first, may let a thread wait.

    A descriptor that has no room is waited for, unless it is a blocking one:
    there it is the kernel that waits, and *check* is not called meanwhile.

    Args:
      check: called before each system call that may take long; what it raises
        ends the writing. Part of what it was given may be written then.
      on_first: called when the first data is written, but not for a file, where
        others may write.

    Raises:
      OSError: if a write fails or accepts nothing. The text says how much of
        the buffer was written before.
    """
    run = buffers if isinstance(buffers, Gathers) else _OneByOne(buffers)
    descriptor = _Descriptor(fd)
    is_file = stat.S_ISREG(os.fstat(fd).st_mode)
    most, writer = (TO_FILE, descriptor) if is_file else (AT_ONCE, None)
    # Who has had no room once is asked first, which costs less than to be refused.
    asks = refused = False
    while batch := run.gather(most, writer):
        check()
        if asks and not refused:
            wait_ready(fd, select.POLLOUT, check)
        try:
            count = descriptor.writev(batch)
        except BlockingIOError:
            wait_ready(fd, select.POLLOUT, check, again=refused)
            asks = refused = True
            continue
        except OSError as error:
            raise with_progress(error, *run.partly()) from error
        if count == 0:
            # Trying again, as QEMU 10 does, may go on for ever.
            nothing = OSError(errno.EIO, "the descriptor accepted 0 bytes")
            raise with_progress(nothing, *run.partly())
        if on_first is not None:
            on_first()
            on_first = None
        run.written(count)
        refused = False


@final
@attrs.define(eq=False)
class _Descriptor:
    """Where buffers go, and how long that takes."""

    _fd: int
    _usual: float = attrs.field(default=math.inf, init=False)
    """Seconds that a write takes."""

    @property
    def is_quick(self) -> bool:
        return self._usual < QUICK

    def write(self, buffers: Sequence[memoryview]) -> int:
        try:
            return self.writev(buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise with_progress(error, 0, len(buffers[0])) from error

    def writev(self, buffers: Sequence[memoryview]) -> int:
        began = time.perf_counter()
        count = os.writev(self._fd, buffers)
        # One that takes long may just not have had a processor; one after another, no.
        self._usual = min(time.perf_counter() - began, 2 * self._usual)
        return count


@final
@attrs.define(eq=False)
class _OneByOne:
    """What comes out of an iterator, one after another."""

    _buffers: Iterator[memoryview]
    _current: memoryview = attrs.field(factory=lambda: memoryview(b""), init=False)
    _done: int = attrs.field(default=0, init=False)

    def gather(self, most: int, writer: QuickWriter | None = None) -> list[memoryview]:
        if self._done == len(self._current):
            self._current = next(self._buffers, memoryview(b""))
            self._done = 0
        return [self._current[self._done :]] if self._current else []

    def written(self, count: int) -> None:
        self._done += count

    def partly(self) -> tuple[int, int]:
        return self._done, len(self._current)
