"""Registers of a PCI device that must be the same at both ends of a migration.

QEMU compares the bits of ``cmask`` that the guest cannot change:
``get_pci_config_device`` and ``pci_init_cmask`` in hw/pci/pci.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from ..._wire._config_blob import MSIX, capabilities, msix_vectors

_BARS: Final = range(0x10, 0x28, 4)

# Offset, bytes, name, and the bits that count. Not the bit of the header type for
# several functions: that says where in the guest the device is.
_FIXED: Final = (
    (0x00, 2, "Vendor ID", 0xFFFF),
    (0x02, 2, "Device ID", 0xFFFF),
    (0x06, 2, "Status", 0x0010),
    (0x08, 1, "Revision ID", 0xFF),
    (0x09, 3, "Class Code", 0xFFFFFF),
    (0x0E, 1, "Header Type", 0x7F),
)


@attrs.frozen
class Difference:
    """A register that differs in a bit that counts."""

    offset: int
    """Where it is in the config space."""
    register: str
    """What the PCI specification calls it."""
    source: int
    """What it is at the source, of the bits that count."""
    here: int
    """And what it is in the device that is to take the state."""

    def __str__(self) -> str:
        return (
            f"{self.register} (0x{self.offset:02x}) is 0x{self.source:x} at the source"
            f" and 0x{self.here:x} here"
        )


def differences(source: bytes, here: bytes) -> list[Difference]:
    """Compare two config spaces.

    Args:
      source: that of the source's device, as its guest saw it: at least 256 bytes.
      here: that of the device that is to take its state, likewise.

    Returns: what differs of what must not; nothing if the device can take the state.
    """
    return [
        *_compare_fixed(source, here),
        *_compare_bars(source, here),
        *_compare_capabilities(source, here),
    ]


def _compare_fixed(source: bytes, here: bytes) -> Iterator[Difference]:
    for offset, size, name, mask in _FIXED:
        values = [_read(space, offset, size) & mask for space in (source, here)]
        if values[0] != values[1]:
            yield Difference(offset, name, *values)


def _compare_bars(source: bytes, here: bytes) -> Iterator[Difference]:
    if any(_read(space, 0x0E, 1) & 0x7F for space in (source, here)):
        # A bridge, which has other registers there.
        return
    skip = False
    for number, offset in enumerate(_BARS):
        if skip:
            skip = False
            continue
        values = [_bar_kind(_read(space, offset, 4)) for space in (source, here)]
        if values[0] != values[1]:
            yield Difference(offset, f"Base Address Register {number}", *values)
        # The next one is the other half of a 64-bit address.
        skip = values[1] & 0b111 == 0b100


def _bar_kind(bar: int) -> int:
    """Return the bits that say what kind of memory there is; not where."""
    return bar & (0b11 if bar & 1 else 0b1111)


def _compare_capabilities(source: bytes, here: bytes) -> Iterator[Difference]:
    # A VMM may hide some, and add its own; but it lets none be another.
    found = capabilities(here)
    for offset, id_ in capabilities(source).items():
        if found.get(offset, id_) != id_:
            yield Difference(offset, "Capability ID", id_, found[offset])
    vectors = [msix_vectors(space) for space in (source, here)]
    if vectors[0] != vectors[1]:
        yield Difference(_msix_at(source, here), "MSI-X Table Size", *vectors)


def _msix_at(*spaces: bytes) -> int:
    return next(
        at for space in spaces for at, id_ in capabilities(space).items() if id_ == MSIX
    )


def _read(space: bytes, offset: int, size: int) -> int:
    return int.from_bytes(space[offset : offset + size], "little")
