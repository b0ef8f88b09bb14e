"""Packets, as a program has to know them that does without trio_vfio."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

MAIN_MAGIC: Final = b"QEVM"
SWITCHOVER_START: Final = b"\x08\0\x0b\0\0"

_MAGIC: Final = 0x11223344
_VERSION: Final = 1
_DEVICE_STATE: Final = 0x40
_CONFIG: Final = 1
_VFIO_HEADER: Final = 12
_INITIAL: Final = struct.Struct("!II16sB39x")
_HEADER: Final = struct.Struct("!III256sIIIII")

INITIAL_SIZE: Final = _INITIAL.size
HEADER_SIZE: Final = _HEADER.size
QUEUED_BYTES: Final = 16 << 20
"""How much of a device may wait for a packet that is still on its way."""


class ProtocolError(Exception):
    """The peer sent what it must not send."""


class Header(NamedTuple):
    """All of a packet but its data."""

    idstr: bytes
    """With all its NULs."""
    idx: int
    size: int
    is_config: bool


def idstr(device: int) -> str:
    """Return what device number *device* is called, in all programs."""
    return f"0000:{device + 1:02x}:00.0/vfio"


def padded_idstr(device: int) -> bytes:
    """Return its name as it travels."""
    return idstr(device).encode().ljust(256, b"\0")


def pack_initial(channel: int) -> bytes:
    """Return what a channel begins with."""
    return _INITIAL.pack(_MAGIC, _VERSION, bytes(16), channel)


def pack(header: Header) -> bytes:
    """Return a header as it travels."""
    return _HEADER.pack(
        _MAGIC,
        _VERSION,
        _DEVICE_STATE,
        header.idstr,
        0,
        _VFIO_HEADER + header.size,
        0,
        header.idx,
        _CONFIG if header.is_config else 0,
    )


def parse(raw: bytes | bytearray | memoryview, most: int) -> Header:
    """Check and parse a header, whose packet may hold *most* bytes of data.

    Raises:
      ProtocolError: if it is none.
    """
    magic, version, kind, name, instance, payload, vfio_version, idx, flags = (
        _HEADER.unpack(raw)
    )
    if magic != _MAGIC or version != _VERSION or kind != _DEVICE_STATE:
        raise ProtocolError("not a device-state packet")
    if instance or vfio_version or flags & ~_CONFIG:
        raise ProtocolError("a device-state packet of another kind")
    if not _VFIO_HEADER <= payload <= _VFIO_HEADER + most:
        raise ProtocolError(f"a packet of {payload} bytes")
    return Header(name, idx, payload - _VFIO_HEADER, bool(flags & _CONFIG))


def window(packet: int) -> int:
    """Return how far ahead of the one that is due a packet may be."""
    return max(16, QUEUED_BYTES // packet)
