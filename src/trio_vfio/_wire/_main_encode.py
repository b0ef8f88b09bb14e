"""Events of the main stream to bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence

from ._main_events import CommandType, Section, SectionType
from ._main_stream import DEFAULT_PAGE_SIZE, STREAM_MAGIC, STREAM_VERSION
from ._section import encode_section_header
from ._vfio_section import Mark, footer

END_PAYLOAD = Mark.END_OF_STATE.encode()
"""A VFIO section that holds nothing."""

SETUP_PAYLOAD = Mark.DEV_SETUP_STATE.encode() + END_PAYLOAD
"""What a VFIO START section holds."""


def encode_header(
    machine: str,
    *,
    page_bits: int | None = None,
    capabilities: Sequence[str] = (),
    uuid: bytes | None = None,
) -> bytes:
    """Return the stream header and the configuration.

    Args:
      machine: the machine type, as ``pc-q35-10.0``.
      page_bits: size of a page of RAM, where it is not the target's usual one.
      capabilities: those that both sides must have.
      uuid: the machine's, where that is to be compared.
    """
    name = machine.encode("ascii")
    header = struct.pack("!II", STREAM_MAGIC, STREAM_VERSION)
    configuration = struct.pack("!BI", SectionType.CONFIGURATION, len(name)) + name
    if page_bits is not None:
        configuration += _subsection(
            "configuration/target-page-bits", struct.pack("!I", page_bits)
        )
    if capabilities:
        names = b"".join(bytes([len(each)]) + each.encode() for each in capabilities)
        count = struct.pack("!I", len(capabilities))
        configuration += _subsection("configuration/capabilities", count + names)
    if uuid is not None:
        configuration += _subsection("configuration/uuid", uuid)
    return header + configuration


def encode_command(command: CommandType, payload: bytes = b"") -> bytes:
    """Return a command."""
    head = struct.pack("!BHH", SectionType.COMMAND, command, len(payload))
    return head + payload


def encode_section(section: Section, payload: bytes) -> bytes:
    """Return a whole section, footer and all."""
    return encode_section_header(section) + payload + footer(section.section_id)


def encode_data(data: bytes) -> bytes:
    """Return a DATA block of a VFIO section; an end mark has to follow."""
    return data_mark(len(data)) + data


def data_mark(count: int) -> bytes:
    """Return what a DATA block of *count* bytes begins with."""
    return Mark.DEV_DATA_STATE.encode() + struct.pack("!Q", count)


def encode_end(description: bytes = b"") -> bytes:
    """Return the end of a stream, which always has a description, if an empty one.

    A QEMU destination that gets none waits for one more byte for ever.
    """
    return (
        struct.pack("!BBI", SectionType.EOF, SectionType.DESCRIPTION, len(description))
        + description
    )


def encode_description(machine: str, sections: Iterable[Section]) -> bytes:
    """Return the JSON that describes a stream whose FULL sections are *sections*.

    Each of them is a VFIO device's, and holds `END_PAYLOAD`.
    """
    size = len(END_PAYLOAD)
    fields = [
        {"name": "len", "type": "uint32", "size": 4},
        {"name": "name", "type": "buffer", "size": len(machine)},
    ]
    description = {
        "configuration": {"vmsd_name": "configuration", "version": 1, "fields": fields},
        "page_size": DEFAULT_PAGE_SIZE,
        "devices": [
            {
                "name": section.idstr,
                "instance_id": section.instance_id,
                "size": size,
                "fields": [{"name": "data", "size": size, "type": "buffer"}],
            }
            for section in sections
        ],
    }
    return json.dumps(description).encode("ascii")


def _subsection(name: str, body: bytes) -> bytes:
    raw = name.encode("ascii")
    head = bytes([SectionType.SUBSECTION, len(raw)]) + raw
    return head + struct.pack("!I", 1) + body
