"""Memory for packets on their way from a channel to a device, used over and over."""

from __future__ import annotations

import threading
from typing import final

import attrs

from .._migration._pages import new_buffer


@final
@attrs.define(eq=False)
class Memory:
    """The buffers of a session.

    Last in, first out: what was just written is still in the processor's cache.
    None is kept beyond what was in use at one time, so that together they take no
    more memory than what was admitted.

    Whoever uses it, or a queue that is built on it, does so in any thread: `lock` is
    held meanwhile, for some microseconds and never across a wait or I/O.
    """

    limit: int
    """Bytes that the packets of all devices may take together."""
    lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    used: int = attrs.field(default=0, init=False)
    """Bytes of buffers that were taken and not given back."""
    kept: int = attrs.field(default=0, init=False)
    """Bytes of buffers that wait to be taken."""
    _most: int = attrs.field(default=0, init=False)
    """Bytes that were in use at one time."""
    _free: dict[int, list[memoryview]] = attrs.field(
        factory=dict[int, list[memoryview]], init=False
    )
    """By size. No list is empty."""

    def has_room(self, size: int) -> bool:
        """Whether *size* bytes more stay within the limit."""
        return self.used + size <= self.limit

    def take(self, size: int) -> memoryview:
        """Return a buffer of *size* bytes, whatever is in them."""
        self.used += size
        self._most = max(self._most, self.used)
        if size in self._free:
            return self._pop(size)
        while self.used + self.kept > self._most:
            self._pop(next(iter(self._free)))
        return new_buffer(size)

    def give_back(self, buffer: memoryview) -> None:
        """Take *buffer*, which nobody uses any more."""
        size = len(buffer)
        self.used -= size
        self.kept += size
        self._free.setdefault(size, []).append(buffer)

    def drop(self) -> None:
        """Keep nothing any more: nothing will be taken."""
        with self.lock:
            self._free.clear()
            self.kept = 0

    def _pop(self, size: int) -> memoryview:
        free = self._free[size]
        buffer = free.pop()
        self.kept -= size
        if not free:
            del self._free[size]
        return buffer
