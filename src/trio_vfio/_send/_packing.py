"""From what a device has read to packets in line for a channel."""

from __future__ import annotations

from typing import final

import attrs

from .._migration._activity import Activity
from .._migration._position import Position
from .._wire._main_events import Section
from .._wire._multifd import StateFlag, StateHeader
from ._buffers import BufferPool, Share
from ._line import Lane, Line, Packet


@final
@attrs.define(eq=False)
class Packing:
    """The packets of one device. In one thread at a time, whichever that is."""

    section: Section
    """Its START section, which names it."""
    position: Position
    line: Line
    lane: Lane

    idx: int = attrs.field(default=0, init=False)
    """Of the next packet."""

    def add(self, buffer: memoryview, count: int) -> None:
        """Make a packet of the first *count* bytes of *buffer*, and put it in line."""
        data = buffer[:count]
        if self.position.digest is not None:
            self.position.digest.update(data)
        self.position.bytes += count
        self._put(data, StateFlag(0), buffer)

    def add_config(self, payload: bytes) -> None:
        """Make the last packet."""
        self._put(memoryview(payload), StateFlag.CONFIG, None)

    def _put(
        self, data: memoryview, flags: StateFlag, buffer: memoryview | None
    ) -> None:
        section = self.section
        header = StateHeader(
            section.idstr, self.idx, len(data), flags, section.instance_id
        )
        self.idx += 1
        self.line.put(Packet(header, data, self.lane, buffer))


@final
@attrs.define(eq=False)
class LentBuffers:
    """The buffers that a device's thread fills, one after another: `Buffers`."""

    packing: Packing
    activity: Activity

    waiting: bool = attrs.field(default=False, init=False)
    """Whether the device waits for a buffer, and not we for the device."""
    _taken: memoryview | None = attrs.field(default=None, init=False)

    def take(self) -> memoryview | None:
        """Wait for the next buffer."""
        self.give_back()
        self._taken = self._take()
        self.packing.position.idx = self.packing.idx
        return None if self._taken is None else memoryview(self._taken)

    def filled(self, count: int) -> None:
        """Put what is in the buffer in line for a channel."""
        buffer, self._taken = self._taken, None
        if buffer is None or not 0 < count <= len(buffer):
            size = 0 if buffer is None else len(buffer)
            raise ValueError(f"{count!r} bytes in a buffer of {size}")
        self.packing.add(buffer, count)

    def give_back(self) -> None:
        """Give back a buffer that was taken and not filled."""
        if self._taken is not None:
            self._pool.give_back(self._share, self._taken)
            self._taken = None

    def _take(self) -> memoryview | None:
        buffer = self._pool.take_now(self._share)
        if buffer is not None:
            return buffer
        self.waiting = True
        try:
            with self.activity.call_waiting():
                return self._pool.take_in_thread(self._share)
        finally:
            self.waiting = False

    @property
    def _pool(self) -> BufferPool:
        return self.packing.line.pool

    @property
    def _share(self) -> Share:
        return self.packing.lane.share
