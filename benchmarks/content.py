"""What the state of a device is, so that it can be told whether all of it arrived."""

from __future__ import annotations

import os
import struct
from typing import Final

from .cases import MIB

# Each packet begins with:
# - 8 bytes number of the device
# - 8 bytes index of the packet
# both in this machine's order, and goes on with bytes of one kind. `send` in C does
# the same.
_STAMP: Final = struct.Struct("=QQ")
_FILL: Final = b"\x5a"


class DamageError(Exception):
    """A device did not get what was sent."""


def write_state(fd: int, device: int, size: int, packet: int) -> None:
    """Write *size* bytes to *fd*: the state of a device in packets of *packet* bytes."""
    fill = _FILL * (packet - _STAMP.size)
    for idx in range(size // packet):
        os.writev(fd, [_STAMP.pack(device, idx), fill])


def check_state(fd: int, device: int, size: int, packet: int) -> None:
    """Check that the file *fd* holds what `write_state` writes, and no more.

    Raises:
      DamageError: if it does not.
    """
    found = os.fstat(fd).st_size
    if found != size:
        raise DamageError(f"device {device} has {found} bytes of {size}")
    fill = _FILL * (packet - _STAMP.size)
    for idx in range(size // packet):
        if os.pread(fd, packet, idx * packet) != _STAMP.pack(device, idx) + fill:
            raise DamageError(f"device {device}: packet {idx} is not what was sent")


def write_zeros(fd: int, size: int) -> None:
    """Write *size* zeros to *fd*, so that its pages are there."""
    zeros = bytes(MIB)
    for begin in range(0, size, MIB):
        os.write(fd, zeros[: size - begin])
