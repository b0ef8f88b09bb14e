"""Reading from a descriptor into a list of buffers: what a worker thread does."""

from __future__ import annotations

import enum
import errno
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Final, final

import attrs

from ._port import Buffers
from ._waiting import wait_ready, with_progress

# How long one call waits for more in all once it has something, in seconds.
#
# A pipe holds 64 KiB, so a reader empties it many times while a writer fills one
# buffer of 1 MiB, and sees it empty just before the writer runs again. Whoever
# returns at the first EAGAIN makes packets of 280 KiB from a `write` in a loop,
# pays a thread's hop for each, and reaches 950 to 2000 MiB/s. With this wait
# packets are whole and 16 of them go with one hop: 1700 to 2700 MiB/s (two cores;
# 0.5 to 5 ms made no difference). It is a budget for the call and not for each
# wait, so that a writer that trickles delays nobody by more than this.
LINGER: Final = 0.001


class _Ending(enum.Enum):
    """Why a buffer was not filled."""

    FOR_NOW = "there is no more for now"
    DATA = "the data has ended"


def read_buffers(
    fd: int,
    buffers: Sequence[memoryview],
    check: Callable[[], None],
    on_first: Callable[[], None] | None = None,
) -> list[int]:
    """Fill *buffers*, none of them empty, one after another from *fd*.

    The first byte is waited for, unless the descriptor is a blocking one: there
    it is the kernel that waits, and *check* is not called meanwhile. After that
    more is waited for only as long as it keeps coming.

    Args:
      check: called before each system call that may take long; what it raises
        ends the reading. What was read by then is lost to the caller.
      on_first: called when the first data has come.

    Raises:
      OSError: if a read fails. The text says how much of the buffer was read
        before.

    Returns: how many bytes each of the first buffers was given. Each is full but
        for the last. The list is shorter than *buffers* if there is no more for
        now; ENOMSG says that at once. A 0, always the last number, says that the
        data has ended; where there is no buffer left for it, the next call does.
    """
    reading = _Reading(fd, check, on_first)
    counts: list[int] = []
    for buffer in buffers:
        count = reading.fill(buffer)
        if count:
            counts.append(count)
        if reading.ending is None:
            continue
        if reading.ending is _Ending.DATA and len(counts) < len(buffers):
            counts.append(0)
        break
    return counts


def read_all(
    fd: int,
    buffers: Buffers,
    check: Callable[[], None],
    on_data: Callable[[memoryview], None] | None = None,
    on_first: Callable[[], None] | None = None,
) -> bool:
    """Fill one buffer after another from *fd*, until its data has ended.

    The first byte of each is waited for, and more as by `read_buffers`.

    Args:
      check: as for `read_buffers`.
      on_data: called with what was read into each.
      on_first: called when the first data of each has come.

    Raises:
      OSError: as by `read_buffers`; and if there is no more data, but no end of it.

    Returns: whether it has; False: there are no more buffers.
    """
    while (buffer := buffers.take()) is not None:
        reading = _Reading(fd, check, on_first)
        count = reading.fill(buffer)
        if count:
            if on_data is not None:
                on_data(buffer[:count])
            buffers.filled(count)
        elif reading.ending is _Ending.FOR_NOW:
            raise OSError(errno.ENOMSG, "there is no more data, but no end of it")
        if reading.ending is _Ending.DATA:
            return True
    return False


@final
@attrs.define(eq=False)
class _Reading:
    """One call of `read_buffers`, or one buffer of `read_all`."""

    fd: int
    check: Callable[[], None]
    on_first: Callable[[], None] | None
    ending: _Ending | None = attrs.field(default=None, init=False)
    _has_data: bool = attrs.field(default=False, init=False)
    _patience: float = attrs.field(factory=lambda: LINGER, init=False)

    def fill(self, buffer: memoryview) -> int:
        """Read until *buffer* is full, or `ending` says why it is not."""
        done = 0
        refused = False
        while done < len(buffer) and self.ending is None:
            self.check()
            try:
                count = os.readv(self.fd, [buffer[done:]])
            except BlockingIOError:
                self._await_more(again=refused)
                refused = True
                continue
            except OSError as error:
                if error.errno != errno.ENOMSG:
                    raise with_progress(error, done, len(buffer)) from error
                self.ending = _Ending.FOR_NOW
                continue
            if count == 0:
                self.ending = _Ending.DATA
                continue
            if not self._has_data and self.on_first is not None:
                self.on_first()
            self._has_data = True
            done += count
            refused = False
        return done

    def _await_more(self, *, again: bool) -> None:
        if not self._has_data:
            wait_ready(self.fd, select.POLLIN, self.check, again=again)
        elif not self._linger():
            self.ending = _Ending.FOR_NOW

    def _linger(self) -> bool:
        """Wait for more as long as this call still may; return whether it came."""
        if self._patience <= 0:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        began = time.monotonic()
        ready = poll.poll(self._patience * 1000)
        self._patience -= time.monotonic() - began
        return bool(ready)
