"""Writing a run of buffers to a descriptor: what a worker thread does."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Final

# How long a thread stays in poll() before it looks up, in seconds: neither a
# cancel nor an abort reaches it in there.
LOOK_UP: Final = 0.1

# How long to wait where poll() says that there is room and write() does not.
_PAUSE: Final = 0.001


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
            if refused:
                # Not every driver has a poll() that tells the truth.
                time.sleep(_PAUSE)
            refused = True
            _wait_for_room(fd, check)
            continue
        except OSError as error:
            raise _with_progress(error, done, len(buffer)) from error
        if count == 0:
            # Trying again, as QEMU 10 does, may go on for ever.
            nothing = OSError(errno.EIO, "the descriptor accepted 0 bytes")
            raise _with_progress(nothing, done, len(buffer))
        done += count
        refused = False


def _wait_for_room(fd: int, check: Callable[[], None]) -> None:
    """Wait until *fd* has room, or an error for the next write to raise."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while not poll.poll(LOOK_UP * 1000):
        check()


def _with_progress(error: OSError, done: int, size: int) -> OSError:
    text = f"{error.strerror} (after {done} of {size} bytes of the buffer)"
    return OSError(error.errno, text)
