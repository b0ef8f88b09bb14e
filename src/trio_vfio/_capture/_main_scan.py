"""Read the file of the main connection, from its header to its description."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, Protocol, Self, final

import attrs

from .._errors import PeerProtocolError, device_name
from .._wire._idstr import is_vfio
from .._wire._limits import MIB
from .._wire._main_decoder import MainDecoder
from .._wire._main_events import (
    Command,
    CommandType,
    Configuration,
    Description,
    DeviceConfig,
    DeviceData,
    EndOfSections,
    MainEvent,
    Section,
    SectionType,
)
from .._wire._main_stream import DEFAULT_PAGE_SIZE
from ._faults import Fault

_READ: Final = 1 * MIB

DeviceKey = tuple[str, int]
"""idstr and instance id."""


@attrs.frozen
class MainRecord:
    """A piece of the main stream."""

    kind: str
    """configuration, start, part, end, full, command, eof or vmdescription."""
    offset: int
    """Where it begins in the file."""
    section_id: int | None = None
    idstr: str | None = None
    instance_id: int | None = None
    command: str | None = None
    """QEMU's name for it, or its number if it has none."""

    @property
    def what(self) -> str:
        """The section's or the command's name; empty for what has none."""
        if self.idstr is None:
            return self.command or ""
        return device_name(self.idstr, self.instance_id or 0)


class Digest(Protocol):
    """What is needed of a hash of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Go on with *data*."""

    def copy(self) -> Self:
        """Return another one that goes on from here."""
        ...

    def hexdigest(self) -> str:
        """Return the digest so far."""
        ...


def _sha256() -> Digest:
    return hashlib.sha256()


@final
@attrs.define(eq=False)
class MainDevice:
    """What the main stream holds of one VFIO device."""

    announced: bool = False
    precopy_bytes: int = 0
    data_bytes: int = 0
    """All of it, pre-copy included."""
    blocks: int = 0
    """DATA blocks after switchover."""
    digest: Digest = attrs.field(factory=_sha256)
    """Of all data."""
    config: bytes | None = None

    @property
    def transfers_here(self) -> bool:
        """Whether its state comes over the main connection after switchover."""
        return bool(self.blocks) or self.config is not None


@final
@attrs.define(eq=False)
class MainScan:
    """What the main stream holds, as far as it could be read."""

    bytes: int = 0
    page_size: int = DEFAULT_PAGE_SIZE
    records: list[MainRecord] = attrs.field(factory=list[MainRecord])
    devices: dict[DeviceKey, MainDevice] = attrs.field(
        factory=dict[DeviceKey, MainDevice]
    )
    switchover_start: int | None = None
    """Where that command begins; None if it never came."""
    return_path: bool = False
    """Whether the source asked for one."""
    pings_after_switchover: int = 0
    fault: Fault | None = None

    def take(self, event: MainEvent) -> None:
        """Note down what *event* says."""
        match event:
            case Section():
                self._take_section(event)
            case DeviceData():
                self._take_data(event)
            case DeviceConfig():
                self._device(event.section).config = event.blob
            case Command():
                self._take_command(event)
            case Configuration():
                self.records.append(MainRecord("configuration", event.offset))
            case EndOfSections():
                self.records.append(MainRecord("eof", event.offset))
            case Description():
                self.records.append(MainRecord("vmdescription", event.offset))
            case _:
                pass

    def _take_section(self, section: Section) -> None:
        record = MainRecord(
            kind=section.type.name.lower(),
            offset=section.offset,
            section_id=section.section_id,
            idstr=section.idstr,
            instance_id=section.instance_id,
        )
        self.records.append(record)
        if section.type is SectionType.START and is_vfio(section.idstr):
            self._device(section).announced = True

    def _take_data(self, event: DeviceData) -> None:
        device = self._device(event.section)
        device.digest.update(event.data)
        device.data_bytes += len(event.data)
        if self._is_precopy(event.section):
            device.precopy_bytes += len(event.data)
        elif event.begins_block:
            device.blocks += 1

    def _is_precopy(self, section: Section) -> bool:
        # Sources of old machine types never send SWITCHOVER_START; there the
        # END section is where the guest stands still.
        return self.switchover_start is None and section.type is SectionType.PART

    def _take_command(self, command: Command) -> None:
        record = MainRecord("command", command.offset, command=command.name)
        self.records.append(record)
        match command.number:
            case CommandType.SWITCHOVER_START:
                self.switchover_start = command.offset
            case CommandType.OPEN_RETURN_PATH:
                self.return_path = True
            case CommandType.PING if self.switchover_start is not None:
                self.pings_after_switchover += 1
            case _:
                pass

    def _device(self, section: Section) -> MainDevice:
        key = (section.idstr, section.instance_id)
        return self.devices.setdefault(key, MainDevice())


def read_main(path: Path, decoder: MainDecoder) -> Iterator[MainEvent]:
    """Read a main stream event by event.

    Raises:
      PeerProtocolError: where it breaks the protocol, or ends before its time.
      OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        while piece := file.read(_READ):
            decoder.received(piece)
            yield from _events(decoder)
    decoder.received_eof()
    yield from _events(decoder)


def scan_main(path: Path, page_size: int | None) -> MainScan:
    """Read a main stream, and say what it holds.

    Args:
      page_size: what the caller says, if the stream does not say it.

    Raises:
      OSError: if the file cannot be read.
    """
    scan = MainScan(page_size=page_size or DEFAULT_PAGE_SIZE)
    decoder = MainDecoder(page_size)
    if not path.exists():
        scan.fault = Fault(path.name, "missing")
        return scan
    scan.bytes = path.stat().st_size
    try:
        for event in read_main(path, decoder):
            scan.take(event)
    except PeerProtocolError as error:
        scan.fault = Fault.of(path.name, error)
    scan.page_size = decoder.stream.page_size or DEFAULT_PAGE_SIZE
    return scan


def _events(decoder: MainDecoder) -> Generator[MainEvent, None, None]:
    while (event := decoder.next_event()) is not None:
        yield event
