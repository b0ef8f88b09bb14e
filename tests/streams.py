"""Main streams made by hand, piece by piece, each with the events it stands for."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Final

import attrs

from trio_vfio._wire._main_encode import (
    END_PAYLOAD,
    SETUP_PAYLOAD,
    encode_command,
    encode_data,
    encode_end,
    encode_header,
    encode_section,
)
from trio_vfio._wire._main_events import (
    Command,
    CommandType,
    Configuration,
    Description,
    DeviceConfig,
    DeviceData,
    EndOfSections,
    InitDataSent,
    MainEvent,
    Section,
    SectionEnd,
    SectionType,
)
from trio_vfio._wire._vfio_section import Mark, encode_config

IDSTR: Final = "0000:00:04.0/vfio"
OTHER: Final = "0000:00:05.0/vfio"
MACHINE: Final = "pc-q35-10.0"

RAM_END: Final = struct.pack("!Q", 0x010)
"""A RAM section that holds nothing."""

READY_PAYLOAD: Final = Mark.DEV_CONFIG_LOAD_READY.encode()


@attrs.frozen
class Handler:
    """Whoever has sections in a stream."""

    section_id: int = 42
    idstr: str = IDSTR
    instance_id: int = 0
    version_id: int = 1

    def section(self, type_: SectionType, offset: int = 0) -> Section:
        """Return one section of it."""
        return Section(
            type_,
            self.section_id,
            self.idstr,
            self.instance_id,
            self.version_id,
            offset,
        )

    def encode(self, type_: SectionType, payload: bytes) -> bytes:
        """Return one section of it as it travels."""
        return encode_section(self.section(type_), payload)

    def start(self) -> bytes:
        """Return the START section of a VFIO device."""
        return self.encode(SectionType.START, SETUP_PAYLOAD)

    def part(self, payload: bytes = END_PAYLOAD) -> bytes:
        """Return a PART section."""
        return self.encode(SectionType.PART, payload)

    def end(self, payload: bytes = END_PAYLOAD) -> bytes:
        """Return an END section; of a device that uses multifd, by default."""
        return self.encode(SectionType.END, payload)

    def full(self, payload: bytes = END_PAYLOAD) -> bytes:
        """Return a FULL section; of a device that uses multifd, by default."""
        return self.encode(SectionType.FULL, payload)


DEVICE: Final = Handler()
SECOND_DEVICE: Final = Handler(43, OTHER)
RAM: Final = Handler(1, "ram", 0, 4)
DIRTY_BITMAP: Final = Handler(2, "dirty-bitmap")
HTAB: Final = Handler(4, "spapr/htab")
ATTRIBUTES: Final = Handler(5, "s390-storage_attributes", 0, 0)
ITERABLE: Final = (RAM, DIRTY_BITMAP, HTAB, ATTRIBUTES)
"""All those with START, PART and END sections that are no VFIO devices."""

VIRTIO_MEM: Final = Handler(6, "0000:00:07.0/virtio-mem-device-early")
TIMER: Final = Handler(3, "timer", 0, 2)
"""One of those that have nothing but a FULL section, of any content."""

HEADER: Final = encode_header(MACHINE)
SWITCHOVER: Final = encode_command(CommandType.SWITCHOVER_START)
EOF: Final = b"\0"


def bitmap_name(name: bytes) -> bytes:
    """Return the name of a node or a bitmap as it travels."""
    return bytes([len(name)]) + name


def htab_chunk(index: int, valid: int, invalid: int) -> bytes:
    """Return a chunk of a hash page table, with entries like footers."""
    return struct.pack("!IHH", index, valid, invalid) + b"\x7e\0\0\0" * 4 * valid


def attributes(address: int, values: bytes) -> bytes:
    """Return a run of storage attributes."""
    return struct.pack("!QQ", address | 0x2, len(values)) + values


def virtio_mem_payload(region: int, block: int) -> bytes:
    """Return what a virtio-mem device sends early, with all its blocks plugged."""
    words = (region // block + 63) // 64
    numbers = struct.pack("!QQQIQ", 0x1_4000_0000, region, block, 0, region)
    return numbers + b"\xff" * 8 * words


STATE_OF: Final[dict[tuple[Handler, SectionType], bytes]] = {
    (RAM, SectionType.START): RAM_END,
    (RAM, SectionType.PART): RAM_END,
    (RAM, SectionType.END): RAM_END,
    (DIRTY_BITMAP, SectionType.START): (
        b"\x1c"
        + bitmap_name(b"drive0")
        + bitmap_name(b"backup")
        + b"\0\1\0\0"
        + b"\3"
        + b"\1"
    ),
    (DIRTY_BITMAP, SectionType.PART): (
        b"\x40" + struct.pack("!QIQ", 0, 1 << 16, 64) + b"\x7e" * 64 + b"\1"
    ),
    (DIRTY_BITMAP, SectionType.END): b"\x20\1",
    (HTAB, SectionType.START): struct.pack("!I", 24),
    (HTAB, SectionType.PART): bytes(4) + htab_chunk(0, 3, 2) + bytes(8),
    (HTAB, SectionType.END): bytes(4) + htab_chunk(7, 0, 9) + bytes(8),
    (ATTRIBUTES, SectionType.START): struct.pack("!Q", 1),
    (ATTRIBUTES, SectionType.PART): attributes(0x3000, b"\x7e" * 9)
    + struct.pack("!Q", 1),
    (ATTRIBUTES, SectionType.END): struct.pack("!QQ", 8, 1),
    (VIRTIO_MEM, SectionType.FULL): virtio_mem_payload(128 << 20, 2 << 20),
}
"""What handlers that are no VFIO devices have in their sections, for example."""


def state_of(handler: Handler, type_: SectionType) -> bytes:
    """Return a section of one of them."""
    return handler.encode(type_, STATE_OF[handler, type_])


def describe(*sections: tuple[Handler, int]) -> bytes:
    """Return a description of FULL sections with so many bytes of payload."""
    devices = [
        {
            "name": handler.idstr,
            "instance_id": handler.instance_id,
            "size": size,
            "fields": [],
        }
        for handler, size in sections
    ]
    return json.dumps({"page_size": 4096, "devices": devices}).encode()


@attrs.define(eq=False)
class StreamBuilder:
    """Builds a stream and the events that a decoder must make of it."""

    data: bytearray = attrs.field(factory=bytearray, init=False)
    events: list[MainEvent] = attrs.field(factory=list[MainEvent], init=False)
    _described: list[tuple[Handler, int]] = attrs.field(
        factory=list[tuple[Handler, int]], init=False
    )

    def header(self, machine: str = MACHINE, page_bits: int | None = None) -> None:
        """Begin."""
        self.data += encode_header(machine, page_bits=page_bits)
        self.events.append(Configuration(machine, page_bits))

    def command(self, type_: CommandType, payload: bytes = b"") -> None:
        """Add a command."""
        self.events.append(Command(type_, payload, len(self.data)))
        self.data += encode_command(type_, payload)

    def section(self, handler: Handler, type_: SectionType, payload: bytes) -> None:
        """Add a section that holds nothing of interest."""
        self._section(handler, type_, payload, lambda _: [])

    def vfio_data(
        self, handler: Handler, type_: SectionType, data: bytes, *, last: bool = False
    ) -> None:
        """Add a section with one block of data, which may be the initial data's end."""

        def events(section: Section) -> list[MainEvent]:
            block: list[MainEvent] = [DeviceData(section, data, True)]
            return [*block, InitDataSent(section)] if last else block

        mark = Mark.DEV_INIT_DATA_SENT.encode() if last else END_PAYLOAD
        self._section(handler, type_, encode_data(data) + mark, events)

    def vfio_config(self, handler: Handler, blob: bytes) -> None:
        """Add a FULL section with a config."""
        self._section(
            handler,
            SectionType.FULL,
            encode_config(blob),
            lambda section: [DeviceConfig(section, blob)],
        )

    def _section(
        self,
        handler: Handler,
        type_: SectionType,
        payload: bytes,
        events: Callable[[Section], list[MainEvent]],
    ) -> None:
        section = handler.section(type_, len(self.data))
        self.events += [section, *events(section), SectionEnd(section)]
        self.data += encode_section(section, payload)
        if type_ is SectionType.FULL:
            self._described.append((handler, len(payload)))

    def end(self) -> None:
        """End with a description."""
        eof = len(self.data)
        text = describe(*self._described)
        self.data += encode_end(text)
        self.events += [EndOfSections(eof), Description(text, eof + 1)]


def minimal_stream(*devices: Handler) -> bytes:
    """Return the shortest stream for *devices*, all of which use multifd."""
    return b"".join(
        [
            HEADER,
            *(device.start() for device in devices),
            SWITCHOVER,
            *(device.end() for device in devices),
            *(device.full() for device in devices),
            encode_end(),
        ]
    )


def stream_of_all(device: Handler = DEVICE) -> StreamBuilder:
    """Build the stream of a machine that has all that we can read past."""
    stream = StreamBuilder()
    stream.header()
    stream.section(VIRTIO_MEM, SectionType.FULL, STATE_OF[VIRTIO_MEM, SectionType.FULL])
    for handler in ITERABLE:
        stream.section(handler, SectionType.START, STATE_OF[handler, SectionType.START])
    stream.section(device, SectionType.START, SETUP_PAYLOAD)
    for handler in ITERABLE:
        stream.section(handler, SectionType.PART, STATE_OF[handler, SectionType.PART])
    stream.vfio_data(device, SectionType.PART, b"before")
    stream.command(CommandType.SWITCHOVER_START)
    for handler in ITERABLE:
        stream.section(handler, SectionType.END, STATE_OF[handler, SectionType.END])
    stream.section(device, SectionType.END, END_PAYLOAD)
    stream.section(TIMER, SectionType.FULL, b"tick")
    stream.section(device, SectionType.FULL, END_PAYLOAD)
    stream.end()
    return stream
