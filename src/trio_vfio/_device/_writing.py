"""Writing a run of buffers to a descriptor: what a worker thread does."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator

from ._waiting import wait_ready, with_progress


def write_buffers(
    fd: int, buffers: Iterator[memoryview], check: Callable[[], None]
) -> None:
    """Write all of *buffers* to *fd*, each of them whole before the next is asked for.

    A descriptor that has no room is waited for, unless it is a blocking one:
    there it is the kernel that waits, and *check* is not called meanwhile.

    Args:
      check: called before each system call that may take long; what it raises
        ends the writing. Part of the present buffer may be written then.

    Raises:
      OSError: if a write fails or accepts nothing. The text says how much of
        the buffer was written before.
    """
    for buffer in buffers:
        _write_all(fd, buffer, check)


def _write_all(fd: int, buffer: memoryview, check: Callable[[], None]) -> None:
    done = 0
    refused = False
    while done < len(buffer):
        check()
        try:
            count = os.write(fd, buffer[done:])
        except BlockingIOError:
            wait_ready(fd, select.POLLOUT, check, again=refused)
            refused = True
            continue
        except OSError as error:
            raise with_progress(error, done, len(buffer)) from error
        if count == 0:
            # Trying again, as QEMU 10 does, may go on for ever.
            nothing = OSError(errno.EIO, "the descriptor accepted 0 bytes")
            raise with_progress(nothing, done, len(buffer))
        done += count
        refused = False
