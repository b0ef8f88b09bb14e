"""What the config of a vfio-pci device holds.

Sessions only hand it on; this is for who makes one, for checks and for reports.

QEMU: ``vmstate_vfio_pci_config`` and ``vfio_pci_save_config`` in hw/vfio/pci.c,
``vmstate_pci_device`` in hw/pci/pci.c, ``msix_save`` in hw/pci/msix.c.
"""

from __future__ import annotations

import struct
from typing import Final, Self

import attrs

from .._errors import PeerProtocolError

# A config blob is:
# - 4 bytes version of the PCI device, in network byte order like 3. and 6.
# - 256 or 4096 bytes config space, as the registers stand
# - 4 * 4 bytes INTx state, each 0 or 1
# - 16 bytes for each MSI-X vector; nothing, as the next, for devices without
# - 1 bit for each MSI-X vector, rounded up to bytes
# - perhaps a subsection about a ramfb display
_VERSION = struct.Struct("!I")
_INTX = struct.Struct("!4I")
_MAX_VERSION: Final = 2
_CONFIG_SPACE_SIZES: Final = (4096, 256)
_TABLE_ENTRY: Final = 16

# - 1 byte 05, 1 byte length of the name, the name, 4 bytes version
# - 28 bytes of ramfb's own
_DISPLAY_NAME: Final = b"VFIOPCIDevice/VFIODisplay"
_DISPLAY: Final = bytes([5, len(_DISPLAY_NAME)]) + _DISPLAY_NAME + b"\0\0\0\1"
_DISPLAY_SIZE: Final = len(_DISPLAY) + 28

# Registers and capabilities, in the byte order of PCI, which is the other one.
_U16 = struct.Struct("<H")
_VENDOR_ID: Final = 0x00
_DEVICE_ID: Final = 0x02
_STATUS: Final = 0x06
_STATUS_CAPABILITY_LIST: Final = 0x10
_CAPABILITY_POINTER: Final = 0x34
_FIRST_CAPABILITY: Final = 0x40
MSIX: Final = 0x11


@attrs.frozen
class ConfigBlob:
    """The config of a vfio-pci device, taken apart."""

    version: int
    """Of QEMU's PCI device, not of the device."""
    config_space: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    """Its 256 or 4096 bytes of registers."""
    intx: tuple[int, ...] = (0, 0, 0, 0)
    msix_table: bytes = attrs.field(
        default=b"", repr=lambda data: f"<{len(data)} bytes>"
    )
    msix_pending: bytes = b""
    rest: bytes = attrs.field(default=b"", repr=lambda data: f"<{len(data)} bytes>")
    """The subsection about a ramfb display, or nothing."""

    @property
    def vendor_id(self) -> int:
        """Who made it, as the guest sees it."""
        return _u16(self.config_space, _VENDOR_ID)

    @property
    def device_id(self) -> int:
        """What it is, as the guest sees it."""
        return _u16(self.config_space, _DEVICE_ID)

    @property
    def msix_vectors(self) -> int:
        """How many MSI-X vectors it has; 0 if it has no MSI-X."""
        return msix_vectors(self.config_space)

    @classmethod
    def build(cls, config_space: bytes) -> Self:
        """Build the config of a device that nobody has set up for interrupts.

        A QEMU with the same device in the same place takes it.

        Args:
          config_space: the device's registers as they stand, up to 4096 bytes;
            what is missing of those is zero, as QEMU has it.

        Raises:
          ValueError: if they are more, or too few to be a PCI device's.
        """
        least, most = min(_CONFIG_SPACE_SIZES), max(_CONFIG_SPACE_SIZES)
        # A few bytes less than the standard has are seen with mediated devices.
        if not _FIRST_CAPABILITY <= len(config_space) <= most:
            raise ValueError(f"a config space of {len(config_space)} bytes")
        vectors = msix_vectors(config_space.ljust(least, b"\0"))
        return cls(
            version=_MAX_VERSION,
            config_space=config_space.ljust(most, b"\0"),
            msix_table=bytes(_TABLE_ENTRY * vectors),
            msix_pending=bytes(_pending_size(vectors)),
        )

    def encode(self) -> bytes:
        """Return the blob as it travels."""
        return b"".join(
            [
                _VERSION.pack(self.version),
                self.config_space,
                _INTX.pack(*self.intx),
                self.msix_table,
                self.msix_pending,
                self.rest,
            ]
        )

    @classmethod
    def decode_untrusted(cls, blob: bytes) -> Self:
        """Parse a config blob that a peer sent.

        Raises:
          PeerProtocolError: if it is not the config of a vfio-pci device.
        """
        if len(blob) < _VERSION.size + min(_CONFIG_SPACE_SIZES) + _INTX.size:
            raise PeerProtocolError(f"config blob of {len(blob)} bytes")
        (version,) = _VERSION.unpack_from(blob)
        if version > _MAX_VERSION:
            raise PeerProtocolError(f"config blob of unknown version {version}")
        vectors = msix_vectors(blob[_VERSION.size :])
        space = _config_space_size_untrusted(len(blob), vectors)
        intx_at = _VERSION.size + space
        table_at = intx_at + _INTX.size
        pending_at = table_at + _TABLE_ENTRY * vectors
        rest_at = pending_at + _pending_size(vectors)
        return cls(
            version=version,
            config_space=blob[_VERSION.size : intx_at],
            intx=_intx_untrusted(blob[intx_at:table_at]),
            msix_table=blob[table_at:pending_at],
            msix_pending=blob[pending_at:rest_at],
            rest=_rest_untrusted(blob[rest_at:]),
        )


def msix_vectors(config_space: bytes) -> int:
    """Return how many MSI-X vectors the device with *config_space* has.

    Args:
      config_space: at least its first 256 bytes, and of any content.
    """
    for at, id_ in capabilities(config_space).items():
        if id_ == MSIX:
            return (_u16(config_space, at + 2) & 0x7FF) + 1
    return 0


def capabilities(config_space: bytes) -> dict[int, int]:
    """Return the ids of the device's capabilities, by where they are, in their order.

    Args:
      config_space: at least its first 256 bytes, and of any content.
    """
    found: dict[int, int] = {}
    if not _u16(config_space, _STATUS) & _STATUS_CAPABILITY_LIST:
        return found
    at = config_space[_CAPABILITY_POINTER] & ~3
    # The list may lead anywhere, or round in circles.
    while at >= _FIRST_CAPABILITY and at not in found:
        found[at] = config_space[at]
        at = config_space[at + 1] & ~3
    return found


def _u16(config_space: bytes, at: int) -> int:
    return int(_U16.unpack_from(config_space, at)[0])


def _pending_size(vectors: int) -> int:
    return (vectors + 7) // 8


def _config_space_size_untrusted(length: int, vectors: int) -> int:
    # QEMU gives every device 4096 bytes, even where the hardware has fewer, so
    # only the length can tell. MSI-X is in the first 256 bytes in both cases.
    behind = _INTX.size + _TABLE_ENTRY * vectors + _pending_size(vectors)
    for size in _CONFIG_SPACE_SIZES:
        if length - (_VERSION.size + size + behind) in (0, _DISPLAY_SIZE):
            return size
    raise PeerProtocolError(
        f"config blob of {length} bytes, which fits no config space"
        f" with {vectors} MSI-X vectors"
    )


def _intx_untrusted(raw: bytes) -> tuple[int, ...]:
    intx = _INTX.unpack(raw)
    if not set(intx) <= {0, 1}:
        raise PeerProtocolError(f"config blob with INTx state {raw.hex(' ', 4)}")
    return intx


def _rest_untrusted(raw: bytes) -> bytes:
    if raw and not raw.startswith(_DISPLAY):
        found = raw[: len(_DISPLAY)]
        raise PeerProtocolError(f"config blob with {found!r} behind its end")
    return raw
