"""The buffers that go to a device in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, final

import attrs


class Digest(Protocol):
    """What a `Run` needs of a hash of `hashlib`."""

    def update(self, data: memoryview, /) -> None:
        """Go on with *data*."""

    def hexdigest(self) -> str:
        """Return the digest so far."""
        ...


@final
@attrs.define(eq=False)
class Written:
    """How much of its data a device has taken, and what it is taking."""

    digest: Digest | None = None
    bytes: int = 0
    """Written whole: the buffer that is being written does not count."""
    idx: int | None = None
    """Of the buffer that is being written; None: none is, or it has no index."""
    stopping: bool = False
    """Whether to end every run at its next buffer."""


@final
@attrs.define(eq=False)
class Run(Iterator[memoryview]):
    """Hands out buffers one by one, and counts each when the next is asked for.

    A device may walk it in a worker thread: nothing else touches `written`
    meanwhile but to set `stopping`.
    """

    written: Written
    _buffers: Sequence[tuple[int | None, memoryview]] = attrs.field(alias="buffers")
    _next: int = attrs.field(default=0, init=False)
    _current: memoryview | None = attrs.field(default=None, init=False)
    exhausted: bool = attrs.field(default=False, init=False)
    """Whether all buffers are written, or the run was told to stop."""

    def __next__(self) -> memoryview:
        self._count_current()
        # Nothing to write: a device would take 0 bytes for a failure.
        while self._next < len(self._buffers) and not self._buffers[self._next][1]:
            self._next += 1
        if self._next == len(self._buffers) or self.written.stopping:
            self.exhausted = True
            raise StopIteration
        self.written.idx, self._current = self._buffers[self._next]
        self._next += 1
        return self._current

    def _count_current(self) -> None:
        if self._current is None:
            return
        if self.written.digest is not None:
            self.written.digest.update(self._current)
        self.written.bytes += len(self._current)
        self.written.idx = self._current = None
