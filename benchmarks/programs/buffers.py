"""A pool of buffers: whole pages, and the one that was used last is the next."""

from __future__ import annotations

import mmap
from typing import final


@final
class Pool:
    """Gives out buffers of one size, and makes more when it has none.

    Any thread may ask: a list's ``append`` and ``pop`` are atomic.
    """

    def __init__(self, size: int, ready: int = 0) -> None:
        self._size = size
        self._free = [self._make() for _ in range(ready)]

    def take(self) -> memoryview:
        """Return a buffer that nobody else has."""
        try:
            return self._free.pop()
        except IndexError:
            return self._make()

    def give_back(self, buffer: memoryview) -> None:
        """Take back what `take` has returned."""
        self._free.append(buffer)

    def _make(self) -> memoryview:
        return memoryview(mmap.mmap(-1, self._size))
