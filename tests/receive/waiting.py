"""Threads that wait for a `Signal`, for tests to know when they do."""

from __future__ import annotations

import time
from typing import Final

from trio_vfio._receive._signal import Signal

LONG: Final = 20.0
"""Seconds that nothing takes."""


def until_waiting(signal: Signal, count: int = 1) -> None:
    """Wait until so many threads wait for *signal*."""
    until = time.monotonic() + LONG
    while True:
        with signal.lock:
            if len(signal._waiting) == count:
                return
        assert time.monotonic() < until, "nobody waits"
        time.sleep(0.0005)
