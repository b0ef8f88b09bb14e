"""Which packet of a device is due, and which may have memory.

Packets of a device race each other over the channels. A device takes them
strictly by index, so those that come early wait here, within three limits: a
window of indexes, the bytes of the device, the bytes of the session. A packet
over a limit waits in its channel. Once the device takes packets, the one that is
*due* is always admitted, for the channels' heads could otherwise wait for each
other for ever.

No I/O. A queue may be used in any thread, so that a channel that is read in one need
not disturb Trio's for each packet; nor the device's, where that waits for a packet
and what it would do with it may be done in the channel's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import attrs

from .._errors import PeerProtocolError
from .._wire._limits import MAX_CONFIG
from .._wire._multifd import StateHeader, StatePacket
from ._memory import Memory
from ._signal import Signal

WINDOW: Final = 1024
"""How far ahead of the due index a packet may be."""

PATIENCE: Final = 0.05
"""Seconds that a device's thread waits for the next packet, before a task does that.

Otherwise each time that a device is faster than its packets would cost a turn of Trio
and the start of a thread, as much as the system needs to copy a MiB.
"""

AtOnce = Callable[[list[StatePacket]], bool]
"""Does with packets what is done with those that are taken; whether all of it.

It is never called by two threads at a time, and not with the lock held.
"""

# The marks around the blob in a config packet.
_CONFIG_MARKS: Final = 16


@final
@attrs.define(eq=False)
class ReorderQueue:
    """The packets of one device, from admission until they are written."""

    max_bytes: int
    memory: Memory

    started: bool = attrs.field(default=False, init=False)
    """Whether the device takes packets: until then even the due one can wait."""
    due: int = attrs.field(default=0, init=False)
    """Index that the device gets next."""
    bytes: int = attrs.field(default=0, init=False)
    """Of packets that are arriving, waiting, or being written."""
    config_idx: int | None = attrs.field(default=None, init=False)
    """Index of the config, once it was admitted: one more than the last data's."""
    _arriving: dict[int, int] = attrs.field(factory=dict[int, int], init=False)
    """Size by index."""
    _waiting: dict[int, StatePacket] = attrs.field(
        factory=dict[int, StatePacket], init=False
    )
    # Only threads wait on these, and for no longer than they have patience.
    _due_came: Signal = attrs.field(init=False)
    _moved: Signal = attrs.field(init=False)
    _highest: int = attrs.field(default=-1, init=False)
    _most: int = attrs.field(default=0, init=False)
    """Bytes that are taken together."""
    _starving: Callable[[], None] | None = attrs.field(default=None, init=False)
    """Called when the packet that is due has to be waited for."""
    _at_once: AtOnce | None = attrs.field(default=None, init=False)
    """What may be done with the packet that is due, while the device's thread waits."""
    _busy: bool = attrs.field(default=False, init=False)
    """Whether that is being done."""
    _left: bool = attrs.field(default=False, init=False)
    """Whether something of it is left to the device's thread."""
    _done: int = attrs.field(default=0, init=False)
    """How often it was done."""

    def __attrs_post_init__(self) -> None:
        self._due_came = Signal(self.memory.lock)
        self._moved = Signal(self.memory.lock)

    def check_untrusted(self, header: StateHeader) -> None:
        """Check that *header* may belong to this device's state.

        Raises:
          PeerProtocolError: if its index was there before, or contradicts the
            config's, or there are two configs.
        """
        idx = header.idx
        if idx < self.due or idx in self._arriving or idx in self._waiting:
            raise PeerProtocolError(f"{header} was sent twice", offset=header.offset)
        if header.is_config:
            self._check_config_untrusted(header)
        elif self.config_idx is not None and idx > self.config_idx:
            reason = f"{header} is data beyond the config, {self.config_idx}"
            raise PeerProtocolError(reason, offset=header.offset)

    def _check_config_untrusted(self, header: StateHeader) -> None:
        if self.config_idx is not None:
            reason = f"{header} is a second config, the first is {self.config_idx}"
            raise PeerProtocolError(reason, offset=header.offset)
        if header.idx < self._highest:
            reason = f"{header} is the config, but packet {self._highest} is data"
            raise PeerProtocolError(reason, offset=header.offset)
        if header.size > MAX_CONFIG + _CONFIG_MARKS:
            reason = f"{header} is a config of {header.size} bytes"
            raise PeerProtocolError(reason, offset=header.offset)

    def admits(self, header: StateHeader) -> bool:
        """Whether the packet may have memory now."""
        if header.idx == self.due and self.started:
            return True
        return (
            header.idx < self.due + WINDOW
            and self.bytes + header.size <= self.max_bytes
            and self.memory.has_room(header.size)
        )

    def admit_untrusted(
        self, header: StateHeader, patience: float = 0.0
    ) -> memoryview | None:
        """Return memory for the packet's data; None if it may not have any yet.

        If it has, its index is taken.

        Args:
          patience: seconds that a thread, but not Trio's, may be made to wait.

        Raises:
          PeerProtocolError: as for `check_untrusted`.
        """
        with self.memory.lock:
            self.check_untrusted(header)
            if not self.admits(header):
                # Room of the session's is made by any device: a task hears of that.
                if not patience or not self.memory.has_room(header.size):
                    return None
                self._moved.wait_for(lambda: self.admits(header), patience)
                # Another channel may have brought the same index meanwhile.
                self.check_untrusted(header)
                if not self.admits(header):
                    return None
            return self._reserve(header)

    def _reserve(self, header: StateHeader) -> memoryview:
        self._arriving[header.idx] = header.size
        self._highest = max(self._highest, header.idx)
        if header.is_config:
            self.config_idx = header.idx
        self.bytes += header.size
        return self.memory.take(header.size)

    def put(self, packet: StatePacket) -> bool:
        """Take an admitted packet that has arrived whole; whether it is due."""
        with self.memory.lock:
            del self._arriving[packet.header.idx]
            self._waiting[packet.header.idx] = packet
            if packet.header.idx != self.due:
                return False
            if not self._busy:
                self._due_came.notify_all()
            return True

    def do_at_once(self, packet: StatePacket) -> bool:
        """Let an admitted packet that has arrived be taken in this thread, not Trio's.

        Nothing is done if it is not due, or is the config, or if no thread waits in
        `take` that has said what to do with it. What is due by then goes with it.

        Returns: whether it was taken; then it must not be put.
        """
        with self.memory.lock:
            at_once = self._at_once
            header = packet.header
            if at_once is None or header.idx != self.due or header.is_config:
                return False
            self._at_once = None
            del self._arriving[header.idx]
            self._waiting[header.idx] = packet
            self._busy = True
            packets = self._take_due()
        whole = False
        try:
            whole = at_once(packets)
        finally:
            with self.memory.lock:
                self._done += 1
                self._busy = False
                self._at_once = at_once if whole else None
                self._left = not whole
                if self._is_ready():
                    self._due_came.notify_all()
                else:
                    self._starve()
        return True

    @property
    def is_awaited(self) -> bool:
        """Whether a thread waits in `take` that has said what to do.

        As it was just now: this does not need the lock.
        """
        return self._at_once is not None

    @property
    def has_due(self) -> bool:
        """Whether the packet that is due has arrived."""
        with self.memory.lock:
            return self._has_due()

    def _has_due(self) -> bool:
        return self.due in self._waiting

    @property
    def waiting(self) -> int:
        """Packets that have arrived and were not taken."""
        return len(self._waiting)

    @property
    def early(self) -> int:
        """Bytes of packets that are arriving or waiting, but not due."""
        arriving = sum(size for idx, size in self._arriving.items() if idx != self.due)
        waiting = self._waiting.items()
        return arriving + sum(p.header.size for idx, p in waiting if idx != self.due)

    @property
    def missing(self) -> int | None:
        """The first index that has not arrived, or None if all have."""
        idx = self.due
        while idx in self._waiting:
            if idx == self.config_idx:
                return None
            idx += 1
        return None if self.config_idx is not None and idx > self.config_idx else idx

    def is_last(self, idx: int | None) -> bool:
        """Whether the packet behind *idx* is the config, and has arrived."""
        return idx is not None and idx + 1 == self.config_idx in self._waiting

    @property
    def has_due_data(self) -> bool:
        """Whether the packet that is due has arrived, and is not the config."""
        with self.memory.lock:
            return self.due in self._waiting and self.due != self.config_idx

    def take(
        self,
        most: int,
        patience: float = 0.0,
        starving: Callable[[], None] | None = None,
        at_once: AtOnce | None = None,
    ) -> list[StatePacket]:
        """Take the data packets that are due and have arrived, in order.

        Args:
          patience: seconds that a thread, but not Trio's, may be made to wait for
            the first.
          starving: called if it has to, each time.
          at_once: what the thread that brings the first may do with it, instead of
            letting this one return, and again as long as this one waits.

        Returns: one, and as many behind it as make no more than *most* bytes. None
            if the packet that is due is the config, or has not arrived; or if
            *at_once* has left something to do.
        """
        with self.memory.lock:
            self._most, self._starving = most, starving
            if patience and not self._has_due():
                self._starve()
                self._wait_for_due(patience, at_once)
            if self._left:
                self._left = False
                return []
            return self._take_due()

    def _take_due(self) -> list[StatePacket]:
        taken: list[StatePacket] = []
        size = 0
        while self.due in self._waiting and self.due != self.config_idx:
            size += self._waiting[self.due].header.size
            if taken and size > self._most:
                break
            taken.append(self._waiting.pop(self.due))
            self.due += 1
        self._moved.notify_all()
        return taken

    def _wait_for_due(self, patience: float, at_once: AtOnce | None) -> None:
        self._at_once = at_once
        done = -1
        while self._busy or (done != self._done and not self._is_ready()):
            # As long as they come it does not matter who takes them.
            done = self._done
            self._due_came.wait_for(self._is_ready, patience)
        self._at_once = None

    def _starve(self) -> None:
        if self._starving is not None:
            self._starving()

    def _is_ready(self) -> bool:
        """Whether there is something to do for the device's thread."""
        return not self._busy and (self._left or self._has_due())

    def take_config(self) -> StatePacket:
        """Take the config, which is due and has arrived."""
        with self.memory.lock:
            packet = self._waiting.pop(self.due)
            self.due += 1
        return packet

    def release(self, data: memoryview) -> None:
        """Give back the memory of *data*, which is written."""
        with self.memory.lock:
            self.bytes -= len(data)
            self.memory.give_back(data)
            self._moved.notify_all()
