"""Read the file of one multifd channel, from its first packet to its last."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path
from typing import final

import attrs

from .._errors import PeerProtocolError
from .._result import ChannelResult
from .._wire._channel_decoder import ChannelDecoder, ChannelEvent
from .._wire._multifd import (
    INITIAL_SIZE,
    STATE_HEADER_SIZE,
    InitialPacket,
    RamPacket,
    StateHeader,
)
from ._faults import Fault
from ._layout import channel_file


@attrs.frozen
class PacketRecord:
    """A device-state packet of a capture."""

    channel: int
    idstr: str
    instance_id: int
    idx: int
    flags: int
    """VFIO's: 1 is the device's config."""
    bytes: int
    """Of data: the payload less VFIO's own header."""
    offset: int
    """Where the packet begins in the file of its channel."""

    @property
    def data_offset(self) -> int:
        """Where its data begins in the file of its channel."""
        return self.offset + STATE_HEADER_SIZE

    def __str__(self) -> str:
        return f"{channel_file(self.channel)} at offset {self.offset}"


@attrs.frozen
class ChannelScan:
    """What the file of one channel holds, as far as it could be read."""

    result: ChannelResult
    packets: tuple[PacketRecord, ...]
    """The device-state packets that are there whole."""
    fault: Fault | None


def scan_channel(path: Path, id_: int, page_size: int) -> ChannelScan:
    """Read the file of one channel. Holds no more than one packet.

    Args:
      id_: of the channel, as the name of the file says.
      page_size: of the machine that migrated.

    Raises:
      OSError: if the file cannot be read.
    """
    scanner = _Scanner(id_, ChannelDecoder(page_size))
    fault = None
    with path.open("rb") as file:
        try:
            scanner.scan(file)
        except PeerProtocolError as error:
            fault = Fault.of(path.name, error, cut=scanner.cut)
    packets = tuple(scanner.packets)
    count = scanner.ram_packets + len(packets)
    size = path.stat().st_size
    result = ChannelResult(id_, size, count, len(packets))
    return ChannelScan(result, packets, fault)


@final
@attrs.define(eq=False)
class _Scanner:
    id: int
    decoder: ChannelDecoder
    packets: list[PacketRecord] = attrs.field(factory=list[PacketRecord], init=False)
    ram_packets: int = attrs.field(default=0, init=False)
    cut: bool = attrs.field(default=False, init=False)
    _last_ram: int | None = attrs.field(default=None, init=False)
    """Where the last RAM packet begins."""

    def scan(self, file: BufferedReader) -> None:
        self._initial(file)
        while count := self._fill(file):
            for event in self.decoder.received(count):
                self._take(event)
        try:
            self.decoder.received_eof()
        except PeerProtocolError as error:
            self.cut = True
            if error.offset == self._last_ram:
                # It was counted when its header came, but is not all there.
                self.ram_packets -= 1
            raise

    def _initial(self, file: BufferedReader) -> None:
        raw = file.read(INITIAL_SIZE)
        if len(raw) < INITIAL_SIZE:
            self.cut = True
            raise PeerProtocolError("channel ends inside the packet", offset=0)
        try:
            initial = InitialPacket.decode_untrusted(raw)
        except PeerProtocolError as error:
            error.offset = 0
            raise
        if initial.channel_id != self.id:
            reason = f"initial packet of channel {initial.channel_id}"
            raise PeerProtocolError(reason, offset=0)

    def _fill(self, file: BufferedReader) -> int:
        filled = 0
        for buffer in self.decoder.buffers():
            count = file.readinto(buffer)
            filled += count
            if count < len(buffer):
                break
        return filled

    def _take(self, event: ChannelEvent) -> None:
        if isinstance(event, RamPacket):
            self.ram_packets += 1
            self._last_ram = event.offset
        elif isinstance(event, StateHeader):
            packet = self.decoder.accept(bytearray(event.size))
            if packet is not None:
                self._take(packet)
        else:
            self.packets.append(self._record(event.header))

    def _record(self, header: StateHeader) -> PacketRecord:
        return PacketRecord(
            channel=self.id,
            idstr=header.idstr,
            instance_id=header.instance_id,
            idx=header.idx,
            flags=int(header.flags),
            bytes=header.size,
            offset=header.offset,
        )
