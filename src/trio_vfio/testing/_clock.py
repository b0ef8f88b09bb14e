"""Virtual time that stands still while something real is waited for."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from weakref import WeakKeyDictionary

import attrs
import trio
from trio.testing import MockClock


@attrs.define
class _Hold:
    threshold: float
    """What the clock had before, and gets back."""
    blocks: int = 0


# Counted, so that blocks of several tasks may overlap: were each to put back what
# it found, the last one would put back that the clock is held.
_holds: Final[WeakKeyDictionary[MockClock, _Hold]] = WeakKeyDictionary()


@contextmanager
def autojump_held() -> Generator[None]:
    """Keep the mock clock from jumping while the block waits for something real.

    Trio's autojump clock jumps to the next deadline as soon as all tasks wait. It
    does not know of worker threads, processes and sockets: what takes a
    millisecond there may outlive every deadline of the test. Put such a wait into
    this block::

        with autojump_held():
            await trio.to_thread.run_sync(work)

    The time of all tasks stands still meanwhile, and jumps again when the last of
    the blocks of all tasks has ended, in whichever way: by itself, by an exception
    or by a cancel. Entering and leaving are no checkpoints. What wakes up another
    task in the block may well take it past a deadline that is over already.

    Where Trio runs on its own clock, or on any other that is no
    `trio.testing.MockClock`, this does nothing, so that a test may run both ways. A
    clock's ``autojump_threshold`` is not to be set in the block.

    Raises:
      RuntimeError: if it is not called in Trio.
    """
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, MockClock):
        yield
        return
    hold = _holds.setdefault(clock, _Hold(clock.autojump_threshold))
    hold.blocks += 1
    clock.autojump_threshold = math.inf
    try:
        yield
    finally:
        hold.blocks -= 1
        if not hold.blocks:
            del _holds[clock]
            clock.autojump_threshold = hold.threshold
