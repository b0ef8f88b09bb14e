"""The buffers that go to a device in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, final

import attrs

from .._device._port import QuickWriter
from .._migration._position import Position
from .._trace import Trace


@final
@attrs.define(eq=False)
class Buffer:
    """Data for a device."""

    data: memoryview
    """Never empty."""
    idx: int | None = None
    """Of its packet; None: it came on the main channel."""


AtOnce = Callable[[list[Buffer]], bool]
"""Writes buffers in the thread that calls; whether all of that was done.

If it was not, the thread of the run will go on with it.
"""


class Supply(Protocol):
    """Where a run gets its buffers from, in whatever thread it is walked."""

    def take(self, most: int, at_once: AtOnce | None = None) -> list[Buffer]:
        """Return the next ones: one, and as many behind it as make *most* bytes.

        None if they are not there: then the run has come to its end. And none if
        *at_once* has left something to this thread.

        Args:
          at_once: what other threads may do, one at a time and only while this one
            waits here, with the buffers that are next.
        """
        ...

    def written(self, buffer: Buffer) -> None:
        """Take note that *buffer* is written whole."""
        ...


@final
@attrs.define(eq=False)
class Run(Iterator[memoryview]):
    """Hands out buffers as long as the next one is there, and counts what is written.

    Either one by one: to ask for the next says that the last one is written. Or, as
    `trio_vfio._device._port.Gathers` has it, several at once.

    A device may walk it in a worker thread: nothing else touches `position`
    meanwhile but to set `stopping`, or while that thread waits for a buffer.
    """

    position: Position
    _supply: Supply = attrs.field(alias="supply")
    _taken: list[Buffer] = attrs.field(factory=list[Buffer], init=False)
    """Those that were taken and are not written whole."""
    _done: int = attrs.field(default=0, init=False)
    """How much of the first is written, in bytes."""
    _handed_out: bool = attrs.field(default=False, init=False)
    """Whether the first was handed out."""
    exhausted: bool = attrs.field(default=False, init=False)
    """Whether all buffers are written, or the run was told to stop."""
    _writer: QuickWriter | None = attrs.field(default=None, init=False)
    _refused: OSError | None = attrs.field(default=None, init=False)
    """What another thread got for the buffer that is next."""
    _name: str = attrs.field(default="", alias="name", kw_only=True)
    _trace: Trace | None = attrs.field(default=None, alias="trace", kw_only=True)
    """Told of each buffer that has an index, in whatever thread it is."""

    def __next__(self) -> memoryview:
        if self._handed_out:
            self._finish()
        if not self._has_next(1):
            raise StopIteration
        return self._taken[0].data

    def gather(self, most: int, writer: QuickWriter | None = None) -> list[memoryview]:
        """Return what is to be written next; see `Gathers`."""
        self._writer = writer
        if not self._has_next(most):
            return []
        batch = [buffer.data for buffer in self._taken]
        if self._done:
            batch[0] = batch[0][self._done :]
        return batch

    def written(self, count: int) -> None:
        """Take note that *count* bytes of that are written."""
        self._done += count
        while self._done:
            self._hand_out()
            size = len(self._taken[0].data)
            if self._done < size:
                return
            self._done -= size
            self._finish()

    def partly(self) -> tuple[int, int]:
        """How much of the next buffer is written, and its size, in bytes."""
        return self._done, len(self._taken[0].data)

    def _has_next(self, most: int) -> bool:
        """Whether there is one to hand out; then it is handed out."""
        if self.position.stopping:
            self.exhausted = True
            return False
        if not self._taken:
            at_once = None if self._writer is None else self._write_at_once
            self._taken += self._supply.take(most, at_once)
        if self._refused is not None:
            raise self._refused
        if not self._taken:
            self.exhausted = True
            return False
        self._hand_out()
        return True

    def _write_at_once(self, buffers: list[Buffer]) -> bool:
        """Write *buffers*, in another thread than the run's, which waits meanwhile."""
        self._taken += buffers
        writer = self._writer
        if writer is None or self.position.stopping or not writer.is_quick:
            return False
        self._hand_out()
        try:
            count = writer.write([buffer.data for buffer in buffers])
        except OSError as error:
            self._refused = error
            return False
        self.written(count)
        return not self._taken

    def _hand_out(self) -> None:
        if self._handed_out:
            return
        self._handed_out = True
        self.position.idx = idx = self._taken[0].idx
        if idx is not None and self._trace is not None:
            self._trace("vfio_load_state_device_buffer_load_start", self._name, idx)

    def _finish(self) -> None:
        buffer = self._taken.pop(0)
        if self.position.digest is not None:
            self.position.digest.update(buffer.data)
        self.position.bytes += len(buffer.data)
        self.position.idx = None
        if buffer.idx is not None and self._trace is not None:
            self._trace(
                "vfio_load_state_device_buffer_load_end", self._name, buffer.idx
            )
        self._handed_out = False
        self._supply.written(buffer)


@final
@attrs.define(eq=False)
class OneBuffer:
    """A supply of one buffer, or of none if that is empty."""

    _data: memoryview | None = attrs.field(alias="data")

    def take(self, most: int, at_once: AtOnce | None = None) -> list[Buffer]:
        """Return it, once."""
        data, self._data = self._data, None
        return [Buffer(data)] if data else []

    def written(self, buffer: Buffer) -> None:
        """Do nothing."""
