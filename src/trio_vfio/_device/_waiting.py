"""What reading and writing share: waiting for a descriptor, and naming how far it came."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Final

# How long a thread stays in poll() before it looks up, in seconds: neither a
# cancel nor an abort reaches it in there.
LOOK_UP: Final = 0.1

# How long to wait where poll() says that a descriptor is ready and the call does
# not find it so.
_PAUSE: Final = 0.001


def wait_ready(
    fd: int, event: int, check: Callable[[], None], *, again: bool = False
) -> None:
    """Wait until *fd* is ready, or has an error for the next call to raise.

    Args:
      event: ``select.POLLIN`` or ``select.POLLOUT``.
      check: called each time the thread looks up; what it raises ends the wait.
      again: whether it was said to be ready just now, and was not: not every
        driver has a poll() that tells the truth.
    """
    if again:
        time.sleep(_PAUSE)
    poll = select.poll()
    poll.register(fd, event)
    while not poll.poll(LOOK_UP * 1000):
        check()


def with_progress(error: OSError, done: int, size: int) -> OSError:
    """Return *error* with how much of a buffer was read or written before it."""
    text = f"{error.strerror} (after {done} of {size} bytes of the buffer)"
    return OSError(error.errno, text)
