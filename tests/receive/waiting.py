"""Threads that wait for a `Signal`, for tests to know when they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from trio_vfio._receive._signal import Signal

LONG: Final = 100.0
"""Seconds that nothing takes."""


def until(reached: Callable[[], bool], otherwise: str = "it is not so") -> None:
    """Wait until other threads have *reached* something."""
    deadline = time.monotonic() + LONG
    while not reached():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.0005)


def until_waiting(signal: Signal, count: int = 1) -> None:
    """Wait until so many threads wait for *signal*."""

    def waiting() -> bool:
        with signal.lock:
            return len(signal._waiting) == count

    until(waiting, "nobody waits")
