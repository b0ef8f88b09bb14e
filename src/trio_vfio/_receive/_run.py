"""The buffers that go to a device in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import attrs

from .._migration._position import Position
from .._trace import Trace


@final
@attrs.define(eq=False)
class Run(Iterator[memoryview]):
    """Hands out buffers one by one, and counts each when the next is asked for.

    A device may walk it in a worker thread: nothing else touches `position`
    meanwhile but to set `stopping`.
    """

    position: Position
    _buffers: Sequence[tuple[int | None, memoryview]] = attrs.field(alias="buffers")
    _next: int = attrs.field(default=0, init=False)
    _current: memoryview | None = attrs.field(default=None, init=False)
    exhausted: bool = attrs.field(default=False, init=False)
    """Whether all buffers are written, or the run was told to stop."""
    _name: str = attrs.field(default="", alias="name", kw_only=True)
    _trace: Trace | None = attrs.field(default=None, alias="trace", kw_only=True)
    """Told of each buffer that has an index, in whatever thread it is."""

    def __next__(self) -> memoryview:
        self._count_current()
        # Nothing to write: a device would take 0 bytes for a failure.
        while self._next < len(self._buffers) and not self._buffers[self._next][1]:
            self._next += 1
        if self._next == len(self._buffers) or self.position.stopping:
            self.exhausted = True
            raise StopIteration
        self.position.idx, self._current = self._buffers[self._next]
        self._next += 1
        if self._trace is not None and (idx := self.position.idx) is not None:
            self._trace("vfio_load_state_device_buffer_load_start", self._name, idx)
        return self._current

    def _count_current(self) -> None:
        if self._current is None:
            return
        if self.position.digest is not None:
            self.position.digest.update(self._current)
        self.position.bytes += len(self._current)
        if self._trace is not None and (idx := self.position.idx) is not None:
            self._trace("vfio_load_state_device_buffer_load_end", self._name, idx)
        self.position.idx = self._current = None
