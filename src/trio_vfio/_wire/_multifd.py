"""The packets of a multifd channel.

A channel carries one initial packet and then any number of others, each of
which says by its flags how the rest of it is laid out.

QEMU: ``MultiFDInit_t``, ``MultiFDPacketHdr_t``, ``MultiFDPacket_t`` and
``MultiFDPacketDeviceState_t`` in migration/multifd.h.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, Self, final

import attrs

from .._errors import PeerProtocolError, device_name
from ._idstr import idstr_untrusted
from ._limits import MAX_CHANNELS, MAX_DEVICES, MAX_PACKET_PAYLOAD

MULTIFD_MAGIC: Final = 0x11223344
MULTIFD_VERSION: Final = 1

# The initial packet is, in network byte order:
# - 4 bytes magic
# - 4 bytes version
# - 16 bytes UUID of the machine, all zero if it has none
# - 1 byte channel id
# - 39 bytes unused, not checked
_INITIAL = struct.Struct("!II16sB39x")
INITIAL_SIZE: Final = _INITIAL.size

# Every packet begins with:
# - 4 bytes magic
# - 4 bytes version
# - 4 bytes flags
COMMON = struct.Struct("!III")

# A device-state packet goes on with:
# - 256 bytes idstr, NUL-terminated, then NULs
# - 4 bytes instance id
# - 4 bytes length of the payload
_STATE = struct.Struct("!III256sII")
STATE_FIXED_SIZE: Final = _STATE.size

# and its payload, as VFIO sends it (``VFIODeviceStatePacket``), begins with:
# - 4 bytes version, always 0
# - 4 bytes index
# - 4 bytes flags
_VFIO = struct.Struct("!III")
STATE_HEADER_SIZE: Final = STATE_FIXED_SIZE + _VFIO.size

# A RAM packet goes on with:
# - 4 bytes pages allocated, 0 in a SYNC packet
# - 4 bytes normal pages
# - 4 bytes length of the payload
# - 296 bytes more, and 8 bytes for each page that fits into 512 KiB
_RAM = struct.Struct("!IIIIII")
_RAM_BASE = 320
_RAM_BYTES = 512 * 1024

# The same, with all that is the same in each packet of a device in one piece.
_OF_DEVICE = struct.Struct("!272sIIII")

NO_INDEX: Final = 0xFFFF_FFFF
"""QEMU keeps this index to mean that the last one is not known yet."""


class PacketFlag(enum.IntFlag):
    """Flags of any packet (``MULTIFD_FLAG_*``)."""

    SYNC = 0x01
    COMPRESSION = 0x3E
    """Mask of the compression method, which only RAM packets use."""
    DEVICE_STATE = 0x40


class StateFlag(enum.IntFlag):
    """Flags of a VFIO packet (``VFIO_DEVICE_STATE_*``)."""

    CONFIG = 1
    """The device's config, which closes its state."""


# Plain numbers: what ~ does to an IntFlag depends on the version of Python, and
# in 3.11 the complement of all flags is no flag.
_PACKET_FLAGS: Final = int(
    PacketFlag.SYNC | PacketFlag.COMPRESSION | PacketFlag.DEVICE_STATE
)
_STATE_FLAGS: Final = int(StateFlag.CONFIG)

# To make one takes ten times as long as to look at it.
_NO_FLAG: Final = StateFlag(0)
_CONFIG: Final = StateFlag.CONFIG


@attrs.frozen
class InitialPacket:
    """The first 64 bytes of a multifd channel."""

    uuid: bytes = attrs.field(default=bytes(16))
    channel_id: int = 0

    @staticmethod
    def uuid_of(raw: bytes) -> bytes:
        """Return whose packet this says to be, whatever its version."""
        uuid: bytes = _INITIAL.unpack(raw)[2]
        return uuid

    def encode(self) -> bytes:
        """Return the packet as it travels."""
        return _INITIAL.pack(MULTIFD_MAGIC, MULTIFD_VERSION, self.uuid, self.channel_id)

    @classmethod
    def decode_untrusted(cls, raw: bytes) -> Self:
        """Parse the first 64 bytes that a peer sent.

        Raises:
          PeerProtocolError: if it is no initial packet, or names a channel
            that cannot exist.
        """
        if len(raw) != INITIAL_SIZE:
            raise PeerProtocolError(f"initial packet of {len(raw)} bytes")
        magic, version, uuid, channel_id = _INITIAL.unpack(raw)
        if magic != MULTIFD_MAGIC:
            raise PeerProtocolError(f"initial packet with magic {magic:#010x}")
        if version != MULTIFD_VERSION:
            raise PeerProtocolError(f"initial packet of unknown version {version}")
        if channel_id >= MAX_CHANNELS:
            raise PeerProtocolError(f"channel id {channel_id} of at most 255 channels")
        return cls(uuid, channel_id)


@attrs.frozen
class StateHeader:
    """All of a device-state packet but its data."""

    idstr: str
    idx: int
    """Its place among the packets of its device: channels race."""
    size: int
    """Bytes of data that follow."""
    flags: StateFlag = StateFlag(0)
    instance_id: int = 0
    offset: int = 0
    """Where the packet begins in its channel, in bytes."""

    @property
    def is_config(self) -> bool:
        """Whether the data is the config, and the device's state ends here."""
        return self.flags == _CONFIG

    def encode(self) -> bytes:
        """Return the header as it travels."""
        fixed = _STATE.pack(
            MULTIFD_MAGIC,
            MULTIFD_VERSION,
            PacketFlag.DEVICE_STATE,
            self.idstr.encode("ascii"),
            self.instance_id,
            _VFIO.size + self.size,
        )
        return fixed + _VFIO.pack(0, self.idx, self.flags)

    def __str__(self) -> str:
        return f"packet {self.idx} of {device_name(self.idstr, self.instance_id)}"


@attrs.frozen
class RamPacket:
    """A packet of RAM, or a SYNC: taken along, its content dropped."""

    flags: PacketFlag
    rest: int
    """Bytes that follow the first 24."""
    offset: int
    """Where the packet begins in its channel, in bytes."""


@attrs.frozen
class StatePacket:
    """A device-state packet that has arrived whole."""

    header: StateHeader
    data: memoryview = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


def flags_untrusted(header: bytearray) -> PacketFlag:
    """Check the 12 bytes that begin every packet and return its flags.

    Raises:
      PeerProtocolError: if they are not the beginning of a packet, or the
        flags are none that QEMU sends.
    """
    magic, version, flags = COMMON.unpack_from(header)
    if magic != MULTIFD_MAGIC:
        raise PeerProtocolError(f"packet with magic {magic:#010x}")
    if version != MULTIFD_VERSION:
        raise PeerProtocolError(f"packet of unknown version {version}")
    if flags & ~_PACKET_FLAGS:
        raise PeerProtocolError(f"packet with unknown flags {flags:#x}")
    if flags & PacketFlag.DEVICE_STATE and flags != PacketFlag.DEVICE_STATE:
        raise PeerProtocolError(f"device-state packet with flags {flags:#x}")
    return PacketFlag(flags)


def ram_packet_untrusted(header: bytearray, page_size: int, offset: int) -> RamPacket:
    """Parse the first 24 bytes of a RAM or SYNC packet.

    Raises:
      PeerProtocolError: if it is larger than allowed, or was made for another
        page size, in which case the length of its fixed part is not known.
    """
    _, _, flags, allocated, _, payload = _RAM.unpack_from(header)
    pages = _RAM_BYTES // page_size
    if allocated not in (0, pages):
        raise PeerProtocolError(
            f"RAM packet for {allocated} pages where a page size of {page_size} makes"
            f" it {pages}; if the machine has another page size, say so",
        )
    if payload > MAX_PACKET_PAYLOAD:
        raise PeerProtocolError(f"RAM packet of {payload} bytes")
    rest = _RAM_BASE + 8 * pages - _RAM.size + payload
    return RamPacket(PacketFlag(flags), rest, offset)


def check_state_fixed_untrusted(header: bytearray) -> None:
    """Check the fixed part of a device-state packet.

    Raises:
      PeerProtocolError: if it names no device, or its payload is too long or
        too short to be VFIO's.
    """
    *_, name, _, payload = _STATE.unpack_from(header)
    idstr = _padded_idstr_untrusted(name)
    if not _VFIO.size <= payload <= MAX_PACKET_PAYLOAD:
        raise PeerProtocolError(
            f"device-state packet of {idstr} with a payload of {payload} bytes"
        )


def state_header_untrusted(header: bytearray, offset: int) -> StateHeader:
    """Parse the header of a device-state packet, its fixed part checked before.

    Raises:
      PeerProtocolError: if VFIO does not send such packets.
    """
    *_, name, instance_id, payload = _STATE.unpack_from(header)
    idstr = _padded_idstr_untrusted(name)
    version, idx, flags = _VFIO.unpack_from(header, STATE_FIXED_SIZE)
    what = f"device-state packet of {idstr}"
    if version != 0:
        raise PeerProtocolError(f"{what} of unknown version {version}")
    if idx == NO_INDEX:
        raise PeerProtocolError(f"{what} without an index")
    if flags & ~_STATE_FLAGS:
        raise PeerProtocolError(f"{what}, idx {idx}, with unknown flags {flags:#x}")
    size = payload - _VFIO.size
    return StateHeader(idstr, idx, size, StateFlag(flags), instance_id, offset)


@final
@attrs.define(eq=False)
class DeviceNames:
    """The devices that a channel has named, and what a packet of theirs begins with.

    Bytes that were found to be good once need no second look.
    """

    _names: dict[bytes, tuple[str, int]] = attrs.field(
        factory=dict[bytes, tuple[str, int]], init=False
    )

    def add(self, header: bytearray, packet: StateHeader) -> None:
        """Remember the device of *header*, which was found to be that of *packet*."""
        if len(self._names) < MAX_DEVICES:
            begin = bytes(header[: STATE_FIXED_SIZE - 4])
            self._names[begin] = (packet.idstr, packet.instance_id)

    def state_header(self, header: bytearray, offset: int) -> StateHeader | None:
        """Parse a whole header; None if it is not one of a device that is known here.

        Also None if anything is wrong with it: to look at it part by part tells what.
        """
        begin, payload, version, idx, flags = _OF_DEVICE.unpack_from(header)
        if (name := self._names.get(begin)) is None:
            return None
        size = payload - _VFIO.size
        if version or flags > 1 or idx == NO_INDEX:
            return None
        if not 0 <= size <= MAX_PACKET_PAYLOAD - _VFIO.size:
            return None
        idstr, instance_id = name
        known = _CONFIG if flags else _NO_FLAG
        return StateHeader(idstr, idx, size, known, instance_id, offset)


def _padded_idstr_untrusted(raw: bytes) -> str:
    name, _, padding = raw.partition(b"\0")
    if len(name) == len(raw):
        reason = f"device-state packet with an unterminated idstr: {name[:64]!r}"
        raise PeerProtocolError(reason)
    if any(padding):
        reason = f"device-state packet with bytes behind its idstr: {name[:64]!r}"
        raise PeerProtocolError(reason)
    return idstr_untrusted(name)
