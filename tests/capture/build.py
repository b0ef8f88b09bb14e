"""Small captures made by hand, whole or as damaged as a test wants them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from trio_vfio._wire._main_encode import (
    END_PAYLOAD,
    SETUP_PAYLOAD,
    encode_command,
    encode_data,
    encode_end,
    encode_header,
    encode_section,
)
from trio_vfio._wire._main_events import CommandType, Section, SectionType
from trio_vfio._wire._multifd import (
    MULTIFD_MAGIC,
    InitialPacket,
    PacketFlag,
    StateFlag,
    StateHeader,
)
from trio_vfio._wire._vfio_section import encode_config

IDSTR: Final = "0000:00:04.0/vfio"
BLOB: Final = b"registers"
SWITCHOVER: Final = encode_command(CommandType.SWITCHOVER_START)

PRECOPY: Final = b"before"
"""What each device of `main_stream` gets before switchover."""


def section(type_: SectionType, idstr: str, payload: bytes, id_: int = 37) -> bytes:
    """Make a section of a device."""
    return encode_section(Section(type_, id_, idstr, 0, 1, 0), payload)


def main_stream(
    *,
    idstr: str = IDSTR,
    switchover: bytes = SWITCHOVER,
    end: bytes = b"",
    config: bytes | None = None,
) -> bytes:
    """Make the main stream of one device.

    Args:
      switchover: what stands before the END section.
      end: DATA blocks after switchover.
      config: the blob, if it comes over this channel.
    """
    full = END_PAYLOAD if config is None else encode_config(config)
    return b"".join(
        [
            encode_header("pc-q35-10.0"),
            section(SectionType.START, idstr, SETUP_PAYLOAD),
            section(SectionType.PART, idstr, encode_data(PRECOPY) + END_PAYLOAD),
            switchover,
            section(SectionType.END, idstr, end + END_PAYLOAD),
            section(SectionType.FULL, idstr, full),
            encode_end(),
        ]
    )


def packet(idx: int, data: bytes, idstr: str = IDSTR) -> bytes:
    """Make a device-state packet with data."""
    return StateHeader(idstr, idx, len(data)).encode() + data


def config_packet(idx: int, blob: bytes = BLOB, idstr: str = IDSTR) -> bytes:
    """Make the packet that ends a device's state."""
    data = encode_config(blob)
    return StateHeader(idstr, idx, len(data), StateFlag.CONFIG).encode() + data


def sync_packet() -> bytes:
    """Make a SYNC packet, for pages of 4 KiB."""
    head = struct.pack("!IIIIII", MULTIFD_MAGIC, 1, PacketFlag.SYNC, 128, 0, 0)
    return head + bytes(320 + 8 * 128 - len(head))


def channel(id_: int, packets: Iterable[bytes]) -> bytes:
    """Make all that goes over one multifd channel."""
    return InitialPacket(channel_id=id_).encode() + b"".join(packets)


def write_capture(
    directory: Path,
    main: bytes | None,
    channels: Mapping[int, Iterable[bytes]] | None = None,
    *,
    return_path: bytes | None = None,
) -> Path:
    """Write a capture, and return where it is.

    Args:
      channels: the packets of each, in order.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if main is not None:
        (directory / "main.bin").write_bytes(main)
    for id_, packets in (channels or {}).items():
        (directory / f"multifd{id_}.bin").write_bytes(channel(id_, packets))
    if return_path is not None:
        (directory / "return.bin").write_bytes(return_path)
    (directory / "meta.json").write_text('{"format": 1}')
    return directory
