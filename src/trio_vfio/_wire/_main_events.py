"""What the main stream consists of, as far as a receiver of device state cares."""

from __future__ import annotations

import enum

import attrs


class SectionType(enum.IntEnum):
    """The byte that begins each piece of the main stream (``QEMU_VM_*``)."""

    EOF = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    SUBSECTION = 0x05
    DESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    FOOTER = 0x7E


class CommandType(enum.IntEnum):
    """What a command of the main stream says (``enum qemu_vm_cmd``)."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


@attrs.frozen
class Configuration:
    """The stream header and the configuration, if the source sends one."""

    machine: str | None = None
    page_bits: int | None = None
    capabilities: tuple[str, ...] = ()
    uuid: bytes | None = None
    offset: int = 8


@attrs.frozen
class Section:
    """A section has begun."""

    type: SectionType
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    offset: int


@attrs.frozen
class SectionEnd:
    """A section has ended, footer and all."""

    section: Section


@attrs.frozen
class DeviceData:
    """Data of a VFIO device, or a piece of it."""

    section: Section
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    begins_block: bool
    """Whether this is the first piece of a DATA block."""


@attrs.frozen
class DeviceConfig:
    """The config blob of a VFIO device, as it stands between its marks."""

    section: Section
    blob: bytes = attrs.field(repr=lambda blob: f"<{len(blob)} bytes>")


@attrs.frozen
class InitDataSent:
    """A VFIO device has sent its initial data: it is ready for the switchover."""

    section: Section


@attrs.frozen
class Command:
    """A command."""

    number: int
    payload: bytes
    offset: int

    @property
    def name(self) -> str:
        """QEMU's name for it, or its number if it is none that QEMU knows."""
        try:
            return CommandType(self.number).name
        except ValueError:
            return str(self.number)


@attrs.frozen
class EndOfSections:
    """The EOF byte: only a description may follow."""

    offset: int


@attrs.frozen
class Description:
    """The JSON that describes the FULL sections, and so the end of the stream."""

    text: bytes = attrs.field(repr=lambda text: f"<{len(text)} bytes>")
    offset: int


MainEvent = (
    Configuration
    | Section
    | SectionEnd
    | DeviceData
    | DeviceConfig
    | InitDataSent
    | Command
    | EndOfSections
    | Description
)
