"""How much of anything a peer may send. Each is checked before memory is taken."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_PACKET_PAYLOAD: Final = 16 * MIB
"""Payload of one multifd packet. QEMU sends at most 1 MiB + 12 bytes of state."""

MAX_IDSTR: Final = 255
MAX_MACHINE_TYPE: Final = 255
MAX_CONFIG: Final = 1 * MIB
"""Config blob of one device. QEMU's has about 4 KiB."""

MAX_TAIL: Final = 64 * MIB
"""All FULL sections of a machine together: they come without a length."""

MAX_DESCRIPTION: Final = 16 * MIB - 1
"""The JSON that ends the main stream. Its be32 length then begins with a NUL."""

MAX_PARSED_DESCRIPTION: Final = 4 * MIB
"""Hostile JSON takes some 20 times its size once parsed, so longer texts are not."""

MAX_CHANNELS: Final = 255
MAX_DEVICES: Final = 256
DATA_PIECE: Final = 1 * MIB
"""Main-channel DATA of any length is passed on in pieces of this size."""
