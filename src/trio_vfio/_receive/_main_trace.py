"""What the main stream holds, in the words of QEMU's loader.

QEMU: ``qemu_loadvm_state_main``, ``qemu_loadvm_section_start_full`` and
``loadvm_process_command`` in migration/savevm.c, ``vfio_load_state`` in
hw/vfio/migration.c.
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from typing import final

import attrs

from .._errors import DeviceError, device_name
from .._trace import Trace
from .._wire._idstr import is_vfio
from .._wire._limits import DATA_PIECE
from .._wire._main_events import (
    Command,
    CommandType,
    Configuration,
    DeviceConfig,
    DeviceData,
    EndOfSections,
    InitDataSent,
    MainEvent,
    Section,
    SectionType,
)
from .._wire._vfio_section import Mark


@final
@attrs.define(eq=False)
class MainTrace:
    """Says what each event of the main stream is to QEMU, which reads byte by byte.

    Says nothing of the mark DEV_CONFIG_LOAD_READY, which makes no event. Where a
    source sends no description, of the FULL sections only those of VFIO devices
    are found.
    """

    trace: Trace
    _block: Section | None = attrs.field(default=None, init=False)
    """Of the DATA block whose pieces are coming."""
    _block_bytes: int = attrs.field(default=0, init=False)

    @contextmanager
    def traced(self, event: MainEvent) -> Generator[None]:
        """Say what comes before and what behind the handling of *event*."""
        if not self.trace.listening:
            yield
            return
        self._before(event)
        try:
            yield
        except DeviceError as error:
            self._end_block(-(error.errno or errno.EIO))
            raise
        self._after(event)

    def _before(self, event: MainEvent) -> None:
        if not (isinstance(event, DeviceData) and not event.begins_block):
            self._end_block(0)
        match event:
            case Section():
                self._begin_section(event)
            case DeviceData():
                if event.begins_block:
                    self._mark(event.section, Mark.DEV_DATA_STATE)
                    self._block = event.section
                self._block_bytes += len(event.data)
            case DeviceConfig():
                self._mark(event.section, Mark.DEV_CONFIG_STATE)
            case InitDataSent():
                self._mark(event.section, Mark.DEV_INIT_DATA_SENT)
            case Command():
                self._begin_command(event)
            case EndOfSections():
                self.trace("qemu_loadvm_state_section", SectionType.EOF)
            case _:
                pass

    def _after(self, event: MainEvent) -> None:
        match event:
            case Configuration():
                self.trace("loadvm_state_setup")
            case Section(type=SectionType.START) if is_vfio(event.idstr):
                self._mark(event, Mark.DEV_SETUP_STATE)
            case DeviceData() if len(event.data) < DATA_PIECE:
                self._end_block(0)
            case Command():
                self.trace("qemu_loadvm_state_section_command", 0)
            case EndOfSections():
                self.trace("qemu_loadvm_state_post_main", 0)
            case _:
                pass

    def _begin_section(self, section: Section) -> None:
        self.trace("qemu_loadvm_state_section", section.type)
        if section.type in (SectionType.START, SectionType.FULL):
            self.trace(
                "qemu_loadvm_state_section_startfull",
                section.section_id,
                section.idstr,
                section.instance_id,
                section.version_id,
            )
        else:
            self.trace("qemu_loadvm_state_section_partend", section.section_id)

    def _begin_command(self, command: Command) -> None:
        self.trace("qemu_loadvm_state_section", SectionType.COMMAND)
        self.trace("loadvm_process_command", command.name, len(command.payload))
        if command.number == CommandType.PING:
            value = int.from_bytes(command.payload)
            self.trace("loadvm_process_command_ping", value)

    def _mark(self, section: Section, mark: Mark) -> None:
        self.trace("vfio_load_state", _name(section), mark)

    def _end_block(self, ret: int) -> None:
        """Say how the block ended, as soon as it is known to have ended."""
        if self._block is None:
            return
        name, size = _name(self._block), self._block_bytes
        self._block, self._block_bytes = None, 0
        self.trace("vfio_load_state_device_data", name, size, ret)


def _name(section: Section) -> str:
    return device_name(section.idstr, section.instance_id)
