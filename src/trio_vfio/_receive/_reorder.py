"""Which packet of a device is due, and which may have memory.

Packets of a device race each other over the channels. A device takes them
strictly by index, so those that come early wait here, within three limits: a
window of indexes, the bytes of the device, the bytes of the session. A packet
over a limit waits in its channel. Once the device takes packets, the one that is
*due* is always admitted, for the channels' heads could otherwise wait for each
other for ever.

No I/O and no waiting: whoever drives this holds the device's condition.
"""

from __future__ import annotations

from typing import Final, final

import attrs

from .._errors import PeerProtocolError
from .._wire._limits import MAX_CONFIG
from .._wire._multifd import StateHeader, StatePacket

WINDOW: Final = 1024
"""How far ahead of the due index a packet may be."""

MAX_RUN: Final = 16
"""Buffers that go to the device in one call."""

# The marks around the blob in a config packet.
_CONFIG_MARKS: Final = 16


@final
@attrs.define(eq=False)
class Budget:
    """Bytes that the packets of all devices may take together."""

    limit: int
    used: int = attrs.field(default=0, init=False)

    def has_room(self, size: int) -> bool:
        """Whether *size* bytes more stay within the limit."""
        return self.used + size <= self.limit


@final
@attrs.define(eq=False)
class ReorderQueue:
    """The packets of one device, from admission until they are written."""

    max_bytes: int
    budget: Budget

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
    _highest: int = attrs.field(default=-1, init=False)

    def check_untrusted(self, header: StateHeader) -> None:
        """Check that *header* may belong to this device's state.

        Raises:
          PeerProtocolError: if its index was there before, or contradicts the
            config's, or there are two configs.
        """
        idx = header.idx
        if idx < self.due or idx in self._arriving or idx in self._waiting:
            raise PeerProtocolError(f"{header} was sent twice", offset=header.offset)
        if self.config_idx is not None and header.is_config:
            reason = f"{header} is a second config, the first is {self.config_idx}"
            raise PeerProtocolError(reason, offset=header.offset)
        if self.config_idx is not None and idx > self.config_idx:
            reason = f"{header} is data beyond the config, {self.config_idx}"
            raise PeerProtocolError(reason, offset=header.offset)
        if header.is_config and idx < self._highest:
            reason = f"{header} is the config, but packet {self._highest} is data"
            raise PeerProtocolError(reason, offset=header.offset)
        if header.is_config and header.size > MAX_CONFIG + _CONFIG_MARKS:
            reason = f"{header} is a config of {header.size} bytes"
            raise PeerProtocolError(reason, offset=header.offset)

    def admits(self, header: StateHeader) -> bool:
        """Whether the packet may have memory now."""
        if header.idx == self.due and self.started:
            return True
        return (
            header.idx < self.due + WINDOW
            and self.bytes + header.size <= self.max_bytes
            and self.budget.has_room(header.size)
        )

    def reserve(self, header: StateHeader) -> None:
        """Admit a packet that was checked: its index and its bytes are taken."""
        self._arriving[header.idx] = header.size
        self._highest = max(self._highest, header.idx)
        if header.is_config:
            self.config_idx = header.idx
        self.bytes += header.size
        self.budget.used += header.size

    def put(self, packet: StatePacket) -> None:
        """Take an admitted packet that has arrived whole."""
        del self._arriving[packet.header.idx]
        self._waiting[packet.header.idx] = packet

    @property
    def has_due(self) -> bool:
        """Whether the packet that is due has arrived."""
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

    def take_run(self) -> list[StatePacket]:
        """Take the data packets that are due and have arrived, in order.

        At most `MAX_RUN`, and no more than half of the device's bytes, so that
        the next ones can arrive while these are written. Empty if the packet
        that is due is the config, or has not arrived.
        """
        run: list[StatePacket] = []
        size = 0
        while self.due in self._waiting and self.due != self.config_idx:
            size += self._waiting[self.due].header.size
            if run and (len(run) == MAX_RUN or size > self.max_bytes // 2):
                break
            run.append(self._waiting.pop(self.due))
            self.due += 1
        return run

    def take_config(self) -> StatePacket:
        """Take the config, which is due and has arrived."""
        packet = self._waiting.pop(self.due)
        self.due += 1
        return packet

    def release(self, packets: list[StatePacket]) -> None:
        """Give back the bytes of *packets*, which are written."""
        size = sum(packet.header.size for packet in packets)
        self.bytes -= size
        self.budget.used -= size
