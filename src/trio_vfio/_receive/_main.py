"""The main channel: the order of the migration, and pre-copy data.

QEMU: ``qemu_loadvm_state_main`` and ``loadvm_process_command`` in
migration/savevm.c, ``vfio_load_state`` in hw/vfio/migration.c.
"""

from __future__ import annotations

import math
from typing import Final, final

import attrs
import trio

from .._errors import ConnectionLost, PeerProtocolError
from .._link._stream import plain_stream
from .._link._tls import why_broken
from .._result import Transfer
from .._wire._idstr import is_vfio
from .._wire._machine import acks_once
from .._wire._main_decoder import MainDecoder
from .._wire._main_events import (
    Command,
    CommandType,
    Configuration,
    DeviceConfig,
    DeviceData,
    InitDataSent,
    MainEvent,
    Section,
    SectionEnd,
    SectionType,
)
from .._wire._ram import RAM
from .._wire._return_path import SWITCHOVER_ACK, pong
from ._ack import SwitchoverAck
from ._loader import IncomingDevice
from ._main_trace import MainTrace
from ._return_path import ReturnPath
from ._session import Session

_READ_SIZE: Final = 256 * 1024

_QUIET: Final = 1.0
"""Seconds without a byte after which a stream that may end has ended, at most.

For sources that send no description and, for they have a return path, keep the
connection open. All that could still come is the state of other devices.
"""


@final
@attrs.define(eq=False)
class MainChannel:
    """Takes one main stream to its end."""

    session: Session
    stream: trio.abc.Stream
    decoder: MainDecoder
    _ack: SwitchoverAck = attrs.field(init=False)
    _events: MainTrace = attrs.field(init=False)
    _return_path: ReturnPath | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    """Whether the source has closed its half of the connection."""
    _ended_by_quiet: bool = attrs.field(default=False, init=False)
    """Whether the stream was taken to have ended because nothing more came."""
    source_left: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when nothing more can come from the source, after the end of its stream."""

    def __attrs_post_init__(self) -> None:
        self._events = MainTrace(self.session.trace)

    @property
    def is_mute(self) -> bool:
        """Whether no word gets back to the source, which has opened no return path."""
        return self._return_path is None

    async def last_word_is_out(self) -> None:
        """Wait until nothing more is to be said to the source, or can be."""
        if self._return_path is not None:
            await self._return_path.ended.wait()

    async def receive(self, first: bytes) -> None:
        """Take the stream, which begins with *first*, until all devices are loaded.

        Then the source is told, and the migration is complete. If this fails or
        is cancelled, the return path's own task tells the source.

        Raises:
          PeerProtocolError: if the peer breaks the protocol, or its stream ends
            before its time.
          ConnectionLost: if the connection breaks before the stream ends.
          DeviceError: if a device refuses pre-copy data.
        """
        try:
            await self._receive_stream(first)
            await self._end()
        except PeerProtocolError as error:
            if error.channel is None and error.offset is not None:
                error.channel = "main"
            raise

    async def _receive_stream(self, data: bytes) -> None:
        while True:
            self.session.activity.touch()
            self.decoder.received(data)
            await self._handle_events()
            if self.decoder.complete:
                return
            data = await self._read()
            if not data:
                # Not by a close: then a description may come all the same.
                self._ended_by_quiet = not self._closed
                self.decoder.received_eof()
                await self._handle_events()
                return

    async def _read(self) -> bytes:
        """Return what comes next, or nothing if the stream has ended."""
        open_end = self.decoder.may_end and not self.session.router.main_ended
        with trio.move_on_after(self._quiet if open_end else math.inf):
            try:
                data = bytes(await self.stream.receive_some(_READ_SIZE))
                self._closed = not data
                return data
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                at = self.decoder.position
                reason = f"broke behind byte {at}: {why_broken(error, 'the source')}"
                raise ConnectionLost(reason, channel="main") from error
        return b""

    @property
    def _quiet(self) -> float:
        # Well before that deadline, which this is not to run into.
        silence = self.session.options.deadlines.silence
        return _QUIET if silence is None else min(_QUIET, silence / 2)

    async def _handle_events(self) -> None:
        while (event := self.decoder.next_event()) is not None:
            with self._events.traced(event):
                await self._handle(event)

    async def _handle(self, event: MainEvent) -> None:
        match event:
            case Configuration():
                self._configure(event)
            case Section(type=SectionType.START) if is_vfio(event.idstr):
                device = await self.session.router.announce(event)
                self._ack.expect(device.name, precopy=device.sink.precopy)
            case Section(type=SectionType.START, idstr=idstr) if idstr == RAM:
                self._ack.ram_announced()
            case Section(type=SectionType.PART) if is_vfio(event.idstr):
                self._ack.part_came(self._device(event).name)
            case Section(type=SectionType.END) if is_vfio(event.idstr):
                # Sources up to machine type 9.2 do not announce the switchover.
                self.session.begin_switchover()
            case DeviceData():
                await self._write(event)
            case DeviceConfig():
                await self._take_config(event)
            case InitDataSent():
                name = self._device(event.section).name
                acks = self._ack.init_data_sent(name)
                self.session.trace("loadvm_approve_switchover", self._ack.pending)
                await self._acknowledge(acks)
            case SectionEnd():
                await self._end_section(event.section)
            case Command():
                await self._command(event)
            case _:
                pass

    def _configure(self, event: Configuration) -> None:
        session = self.session
        once = session.options.legacy_switchover_ack
        self._ack = SwitchoverAck(
            once=acks_once(event.machine) if once is None else once
        )
        for device in session.router.devices.values():
            self._ack.expect(device.name, precopy=device.sink.precopy)
        session.configured(self.decoder.page_size_in_use)

    async def _command(self, command: Command) -> None:
        match command.number:
            case CommandType.OPEN_RETURN_PATH:
                if self._return_path is not None:
                    raise PeerProtocolError(
                        "second OPEN_RETURN_PATH", offset=command.offset
                    )
                self._return_path = self.session.open_return_path(self.stream)
                named = self.session.options.all_named
                await self._acknowledge(self._ack.return_path_opened(all_known=named))
            case CommandType.PING:
                if self._return_path is None:
                    reason = "PING without a return path"
                    raise PeerProtocolError(reason, offset=command.offset)
                await self._return_path.answer(pong(int.from_bytes(command.payload)))
            case CommandType.SWITCHOVER_START:
                await self.session.start_loading()
            case _:
                pass

    async def _acknowledge(self, count: int) -> None:
        # Without a return path nobody can have asked.
        if self._return_path is not None:
            for _ in range(count):
                await self._return_path.answer(SWITCHOVER_ACK)

    def _device(self, section: Section) -> IncomingDevice:
        return self.session.router.devices[section.idstr, section.instance_id]

    async def _write(self, event: DeviceData) -> None:
        device = self._device(event.section)
        precopy = self.session.activity.switchover_at is None
        if not precopy:
            device.transfer_is(Transfer.MAIN, offset=event.section.offset)
        await device.write_main(
            event.data, precopy=precopy, begins_block=event.begins_block
        )

    async def _take_config(self, event: DeviceConfig) -> None:
        device = self._device(event.section)
        device.transfer_is(Transfer.MAIN, offset=event.section.offset)
        device.put_main_config(event.blob)
        if not self.session.router.started:
            self.session.load(device)

    async def _end_section(self, section: Section) -> None:
        if is_vfio(section.idstr):
            if section.type is SectionType.FULL:
                self._decide_transfer(self._device(section), section)
        elif section.idstr == RAM and section.type is SectionType.PART:
            await self._acknowledge(self._ack.ram_round_ended())

    def _decide_transfer(self, device: IncomingDevice, section: Section) -> None:
        if device.progress.transfer is None:
            device.transfer_is(Transfer.MULTIFD)
        if device.progress.transfer is Transfer.MAIN and not device.has_main_config:
            reason = f"{device.name}: data on main, but no config"
            raise PeerProtocolError(reason, offset=section.offset)
        self.session.router.check_progress()

    async def _end(self) -> None:
        """Wait for the devices behind the end of the stream, and say so."""
        router = self.session.router
        router.check_announced()
        for device in router.devices.values():
            if not router.started and device.progress.transfer is Transfer.MULTIFD:
                queued = device.queue.waiting
                raise PeerProtocolError(
                    f"stream ended without SWITCHOVER_START, with {queued} packets"
                    f" queued for {device.name}",
                    channel="main",
                )
        await router.end_main()
        self.session.spawn(self._watch_source)
        for device in list(router.devices.values()):
            await device.done.wait()
        self.session.trace("process_incoming_migration_co_end", 0, 0)
        await self.session.conclude(self._return_path)

    async def _watch_source(self) -> None:
        """Look at what the source does behind the end of its stream, until it leaves.

        Raises:
          PeerProtocolError: if it says more.
          ConnectionLost: if the connection breaks. A source that does not wait to be
            told of success ends it properly: one that breaks it has failed, and
            lets its devices run again.
        """
        try:
            while data := await self._read():
                if not self._ended_by_quiet:
                    self.decoder.received(data)
            if self._return_path is not None:
                self._return_path.source_closed = True
        except PeerProtocolError as error:
            error.channel = "main"
            raise
        except ConnectionLost:
            # Over TLS a QEMU's main just ends, without a close alert.
            if (
                self._return_path is not None
                or plain_stream(self.stream) is self.stream
            ):
                raise
        finally:
            self.source_left.set()
