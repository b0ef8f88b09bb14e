"""Bytes of a multifd channel to packets, without a copy of the data.

The decoder never holds data: it says where the next bytes belong (`buffers`),
is told how many came (`received`), and at each header asks for memory
(`accept`), so that whoever owns the memory can take its time. One read may
end a payload and begin the next header; it never goes beyond that header.
"""

from __future__ import annotations

from typing import Final, final

import attrs

from .._errors import PeerProtocolError
from ._limits import KIB
from ._multifd import (
    COMMON,
    INITIAL_SIZE,
    STATE_FIXED_SIZE,
    STATE_HEADER_SIZE,
    DeviceNames,
    PacketFlag,
    RamPacket,
    StateHeader,
    StatePacket,
    check_state_fixed_untrusted,
    flags_untrusted,
    ram_packet_untrusted,
    state_header_untrusted,
)

# Enough of a RAM packet to know its length. Its fixed part is always longer
# than a device-state header, so reading one never reads past the packet.
_RAM_ENOUGH: Final = 24

# Where bytes go that nobody wants. All decoders share it: it is never read.
_DROPPED: Final = memoryview(bytearray(64 * KIB))

ChannelEvent = StateHeader | StatePacket | RamPacket


@final
@attrs.define(eq=False)
class ChannelDecoder:
    """Decodes one multifd channel from behind its initial packet on."""

    page_size: int
    """Of the machine that migrates: it gives the length of RAM packets."""

    position: int = attrs.field(default=INITIAL_SIZE, init=False)
    """Bytes of the channel so far."""
    _offset: int = attrs.field(default=INITIAL_SIZE, init=False)
    """Where the current packet begins."""
    _header: bytearray = attrs.field(
        factory=lambda: bytearray(STATE_HEADER_SIZE), init=False
    )
    _header_bytes: int = attrs.field(default=0, init=False)
    _names: DeviceNames = attrs.field(factory=DeviceNames, init=False)
    _pending: StateHeader | None = attrs.field(default=None, init=False)
    """A header that waits for `accept`, or whose data is arriving."""
    _data: memoryview | None = attrs.field(default=None, init=False)
    _data_bytes: int = attrs.field(default=0, init=False)
    _drop: int = attrs.field(default=0, init=False)
    """Bytes still to come of a RAM packet."""
    _refused: PeerProtocolError | None = attrs.field(default=None, init=False)
    """Why not to go on, once the events that came before were returned."""

    @property
    def inside_packet(self) -> bool:
        """Whether the channel may not end here."""
        return bool(self._header_bytes or self._drop or self._pending)

    @property
    def packet_offset(self) -> int:
        """Where the packet begins that came last, in bytes."""
        return self._offset

    def buffers(self) -> list[memoryview]:
        """Return where the next bytes belong: fill them in order, from the first.

        Raises:
          PeerProtocolError: if behind the packet that `received` returned last
            there were bytes that break the protocol.
        """
        if self._refused is not None:
            raise self._refused
        if self._pending is not None and self._data is None:
            raise RuntimeError("the last header has not been accepted yet")
        header = memoryview(self._header)[self._header_bytes :]
        if self._data is not None:
            return [self._data[self._data_bytes :], header]
        if self._drop:
            dropped = _DROPPED[: self._drop]
            return [dropped, header] if len(dropped) == self._drop else [dropped]
        return [header]

    def received(self, count: int) -> list[ChannelEvent]:
        """Take note that *count* bytes were put into `buffers`.

        A `StateHeader` is always the last event, and must be answered by
        `accept` before the next call of `buffers`.

        Raises:
          PeerProtocolError: if they break the protocol. The decoder is of no
            use after that.
        """
        self.position += count
        events: list[ChannelEvent] = []
        count -= self._received_data(count, events)
        dropped = min(count, self._drop)
        self._drop -= dropped
        count -= dropped
        if count:
            if not self._header_bytes:
                self._offset = self.position - count
            self._header_bytes += count
            try:
                self._received_header(events)
            except PeerProtocolError as error:
                error.offset = self._offset
                if not events:
                    raise
                # A packet is not lost because of the one behind it.
                self._refused = error
        return events

    def accept(self, buffer: bytearray | memoryview) -> StatePacket | None:
        """Give the memory for the data of the header that came last.

        Args:
          buffer: exactly as long as the header says.

        Returns: the packet, if it has no data and so is whole already.
        """
        if self._pending is None or self._data is not None:
            raise RuntimeError("no header waits to be accepted")
        if len(buffer) != self._pending.size:
            raise RuntimeError(f"{len(buffer)} bytes of memory for {self._pending}")
        self._data = memoryview(buffer)
        self._data_bytes = 0
        return None if buffer else self._finish_packet()

    def received_eof(self) -> None:
        """Take note that the channel has ended.

        Raises:
          PeerProtocolError: if it ended inside a packet, or as for `buffers`.
        """
        if self._refused is not None:
            raise self._refused
        if self.inside_packet:
            reason = "channel ends inside the packet"
            raise PeerProtocolError(reason, offset=self._offset, ended=True)

    def _received_data(self, count: int, events: list[ChannelEvent]) -> int:
        if self._data is None:
            return 0
        taken = min(count, len(self._data) - self._data_bytes)
        self._data_bytes += taken
        if self._data_bytes == len(self._data):
            events.append(self._finish_packet())
        return taken

    def _finish_packet(self) -> StatePacket:
        assert self._pending is not None and self._data is not None
        packet = StatePacket(self._pending, self._data)
        self._pending = self._data = None
        return packet

    def _received_header(self, events: list[ChannelEvent]) -> None:
        # Each part is judged as soon as it is there, so that a peer cannot
        # hide nonsense by not sending the rest.
        header, have = self._header, self._header_bytes
        if have == STATE_HEADER_SIZE:
            known = self._names.state_header(header, self._offset)
            if known is not None:
                self._expect_data(known, events)
                return
        if have < COMMON.size:
            return
        if PacketFlag.DEVICE_STATE not in (flags := flags_untrusted(header)):
            self._received_ram(events)
            return
        assert flags == PacketFlag.DEVICE_STATE
        if have >= STATE_FIXED_SIZE:
            check_state_fixed_untrusted(header)
        if have == STATE_HEADER_SIZE:
            packet = state_header_untrusted(header, self._offset)
            self._names.add(header, packet)
            self._expect_data(packet, events)

    def _expect_data(self, packet: StateHeader, events: list[ChannelEvent]) -> None:
        self._pending = packet
        self._header_bytes = 0
        events.append(packet)

    def _received_ram(self, events: list[ChannelEvent]) -> None:
        if self._header_bytes < _RAM_ENOUGH:
            return
        packet = ram_packet_untrusted(self._header, self.page_size, self._offset)
        self._drop = _RAM_ENOUGH + packet.rest - self._header_bytes
        self._header_bytes = 0
        events.append(packet)
