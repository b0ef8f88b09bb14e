"""What the tasks of an outgoing migration share, and how it begins and ends.

::

    connected > greeted > announced > pre-copy rounds > answered > guest stopped
      > devices stopped > SWITCHOVER_START > state, END > FULL, end > last word

Before the last word, a fault or a cancel closes all connections and then lets
every device run again; behind it nothing can fail.

QEMU: ``migration_thread`` in migration/migration.c.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, final

import attrs
import trio

from .._deadlines import Deadlines
from .._device._port import ReadsAll, StateSource
from .._errors import DeadlineExceeded, TrioVfioError
from .._link._stream import end, reset, unacknowledged
from .._migration._activity import Activity
from .._migration._calls import DeviceCalls
from .._migration._migration import Migration
from .._migration._position import Position
from .._migration._progress import DeviceProgress
from .._migration._stop import log
from .._result import ChannelResult, DeviceState, SessionState, Transfer
from .._types import BeforeSwitchover
from .._wire._limits import MIB
from .._wire._machine import acks_once
from .._wire._main_events import Section, SectionType
from .._wire._vfio_section import VFIO_VERSION
from ._answers import Answers
from ._buffers import BufferPool, Share
from ._channel import OutgoingChannel
from ._connect import Connections
from ._device import OutgoingDevice
from ._line import Line
from ._main import MainChannel
from ._precopy import Limits, Precopy

DeviceKey = tuple[str, int]
# Ids are the source's to choose. A QEMU has given away some before its devices'.
_FIRST_SECTION_ID: Final = 42

_FINISH_GRACE: Final = 10.0
"""Seconds to let go of the devices, once the destination has them."""

_at_least_0: Final = attrs.validators.ge(0)


@attrs.frozen(kw_only=True)
class Options:
    """What the caller decides; see `open_outgoing`."""

    sources: dict[DeviceKey, StateSource]
    machine: str
    return_path: bool
    switchover_ack: bool
    deadlines: Deadlines
    device_grace: float | None = attrs.field(
        validator=attrs.validators.optional(_at_least_0)
    )
    digests: bool
    buffer_size: int
    max_queued_bytes: int = attrs.field(validator=_at_least_0)
    max_session_bytes: int = attrs.field(validator=_at_least_0)

    def __attrs_post_init__(self) -> None:
        if self.switchover_ack and not self.return_path:
            raise ValueError("switchover_ack needs a return path")


@attrs.frozen(kw_only=True)
class Plan:
    """What `Outgoing.migrate` was asked for."""

    before_switchover: BeforeSwitchover | None
    limits: Limits


@final
@attrs.define(eq=False)
class Session(Migration):
    """One outgoing migration."""

    options: Options
    connections: Connections

    activity: Activity = attrs.field(init=False)
    devices: dict[DeviceKey, OutgoingDevice] = attrs.field(init=False)
    _main: MainChannel = attrs.field(init=False)
    _answers: Answers = attrs.field(init=False)
    _channels: list[OutgoingChannel] = attrs.field(init=False)
    _pool: BufferPool = attrs.field(init=False)
    _line: Line = attrs.field(init=False)
    _switched_over: trio.Event = attrs.field(factory=trio.Event, init=False)
    _all_sent: trio.Event = attrs.field(factory=trio.Event, init=False)
    _may_abort: trio.Event = attrs.field(factory=trio.Event, init=False)
    _plan: Plan | None = attrs.field(default=None, init=False)
    _asked: trio.Event = attrs.field(factory=trio.Event, init=False)
    _greeted: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        options = self.options
        self.activity = Activity(options.deadlines)
        self._answers = Answers(
            stream=self.connections.main,
            return_path=options.return_path,
            stop=self.stop,
            activity=self.activity,
            trace=self.trace,
            all_sent=self._all_sent,
            fail=self.fail,
            on_success=self._let_go,
            on_failure=self._disconnect,
        )
        self._main = MainChannel(
            self.connections.main,
            options.machine,
            self._answers,
            self.activity,
            self.trace,
        )
        self._channels = [
            OutgoingChannel(id_, stream, self._answers, self.activity, self.trace)
            for id_, stream in enumerate(self.connections.channels)
        ]
        size = options.buffer_size
        self._pool = BufferPool(size, max(1, options.max_session_bytes // size))
        self._line = Line(self._pool)
        self.devices = {
            key: self._device(key, source, _FIRST_SECTION_ID + number)
            for number, (key, source) in enumerate(options.sources.items())
        }

    def all_devices(self) -> Iterable[OutgoingDevice]:
        """Return the devices, in the caller's order."""
        return self.devices.values()

    def channel_results(self) -> Iterable[ChannelResult]:
        """Return what went over each channel, by id."""
        return (channel.result() for channel in self._channels)

    async def serve(self) -> None:
        """Greet the destination, and listen to it until the migration has ended."""
        self.stop.abort_after = self._may_abort
        self.activity.connection_came(is_main=True)
        self.spawn(self._interrupt_threads)
        self.spawn(self._answers.listen)
        self.spawn(self._greet)
        self.spawn(self._migrate)
        activity = self.activity
        self.spawn(activity.watch_switchover, self.waiting_for)
        # Not from the guest's stop on: that is the caller's, and may take its time.
        began, sent = self._switched_over, self._all_sent
        self.spawn(activity.watch_silence, began, sent, self.waiting_for, self._drained)
        await self.ended.wait()

    def begin(self, plan: Plan) -> None:
        """Let the migration begin, as soon as the destination is greeted.

        Raises:
          RuntimeError: if it was called before.
        """
        if self._plan is not None:
            raise RuntimeError("this migration has begun before")
        self._plan = plan
        self._asked.set()

    async def _migrate(self) -> None:
        """Take the devices to the destination, up to the last byte."""
        await self._greeted.wait()
        await self._asked.wait()
        assert self._plan is not None
        plan = self._plan
        self.trace("savevm_state_setup")
        self.enter(SessionState.ACTIVE)
        for device in self.all_devices():
            self.keep(device)
            await device.begin()
            await self._main.announce(device.section)
        precopying = [device for device in self.all_devices() if device.precopy]
        acks = self._acks(len(precopying))
        await Precopy(self._main, precopying, self._pool, plan.limits, acks).run()
        if self.options.return_path:
            await self._answers.ponged.wait()
        await self._switch_over(plan.before_switchover)
        await self._send_state()
        if not self.options.return_path:
            await self._see_out()

    async def _greet(self) -> None:
        for channel in self._channels:
            channel.begin()
            self.spawn(channel.watch)
        await self._main.begin()
        self._greeted.set()
        if self.options.return_path:
            await self._await_pong()

    async def _await_pong(self) -> None:
        seconds = self.options.deadlines.handshake
        if seconds is None:
            return
        with trio.move_on_after(seconds):
            await self._answers.ponged.wait()
            return
        reason = "the destination does not answer"
        raise DeadlineExceeded("handshake", seconds, reason)

    def _acks(self, devices: int) -> int:
        if not (self.options.switchover_ack and devices):
            return 0
        return 1 if acks_once(self.options.machine) else devices

    async def _switch_over(self, before: BeforeSwitchover | None) -> None:
        self.activity.begin_switchover()
        self.enter(SessionState.DEVICE)
        if before is not None:
            await self.call_back("before_switchover", before)
        # A device that stands still does not answer those that do not yet.
        for device in self.all_devices():
            self.spawn(device.stop_p2p)
        for device in self.all_devices():
            await device.stopped_p2p.wait()
        for device in self.all_devices():
            self.spawn(device.stop)
        for device in self.all_devices():
            await device.stopped.wait()
        # Before any packet: a destination may hold channels up until it came.
        await self._main.switch_over()
        self._switched_over.set()

    async def _send_state(self) -> None:
        for channel in self._channels:
            self.spawn(channel.send, self._line)
            # They wait in line for packets, and not in any order.
            await channel.ready.wait()
        for device in self.all_devices():
            self.spawn(device.read)
        sections = [device.section for device in self.all_devices()]
        await self._main.end(sections)
        for device in self.all_devices():
            await device.handed_over.wait()
        await self._main.complete(sections)
        for channel in self._channels:
            await channel.sent.wait()
        self._all_sent.set()

    async def _see_out(self) -> None:
        """End all streams, and wait until the destination has done so, too.

        Raises:
          DeadlineExceeded: if it does not: nobody knows what it has.
        """
        for stream in self.connections.channels:
            await end(stream, close=True)
        await end(self.connections.main, close=False)
        seconds = self.options.deadlines.silence
        if seconds is None:
            return
        with trio.move_on_after(seconds):
            await self.ended.wait()
            return
        reason = "the destination does not close the connection"
        raise DeadlineExceeded("silence", seconds, reason)

    async def _let_go(self) -> None:
        """The destination has all devices."""
        self.activity.complete()
        self.succeed()
        self._may_abort.set()
        with trio.move_on_after(_FINISH_GRACE, shield=True):
            # Side by side, lest a slow one use up the time of those behind it.
            async with trio.open_nursery() as nursery:
                for device in self.all_devices():
                    nursery.start_soon(_finish, device)
        for device in self.all_devices():
            device.progress.state.value = DeviceState.COMPLETED
        self.complete()

    async def _disconnect(self) -> None:
        """The destination will never have them: see to that, and then let them run."""
        try:
            await reset(self.connections.main)
            self._stop_sending()
            for channel in self._channels:
                # A closed descriptor's number may be another's when a thread uses it.
                await channel.at_rest.wait()
                await reset(channel.stream)
        finally:
            self._may_abort.set()

    async def _interrupt_threads(self) -> None:
        """Let the threads of channels end as soon as the tasks are to."""
        try:
            await trio.sleep_forever()
        finally:
            self._stop_sending()

    def _stop_sending(self) -> None:
        self._line.stop()
        self._pool.stop()
        for channel in self._channels:
            channel.interrupt()

    def waiting_for(self) -> str:
        """Say what has not happened yet."""
        what = [
            f"{device.name}: {device.call_under_way} to end"
            for device in self.all_devices()
            if device.call_under_way is not None
        ]
        what += [
            f"{channel.name}: the destination to take more"
            for channel in self._channels
            if channel.sending
        ]
        return "waiting for " + (", ".join(what) or self._answer_wanted())

    def _drained(self) -> object:
        """Return what changes when the destination takes something; None: unknown."""
        streams = (self.connections.main, *self.connections.channels)
        left = tuple(map(unacknowledged, streams))
        return left if any(each is not None for each in left) else None

    def _answer_wanted(self) -> str:
        if self._all_sent.is_set():
            return "the destination's last word"
        if self.options.return_path and not self._answers.ponged.is_set():
            return "the destination to answer"
        if self.activity.switchover_at is None:
            return "the time to switch over"
        return "the guest and the devices to stop"

    def _most_buffers(self, source: StateSource) -> int:
        """Return how many buffers a device may have."""
        options = self.options
        most = max(1, options.max_queued_bytes // options.buffer_size)
        if not isinstance(source, ReadsAll):
            return most
        # Two packets for each channel and one for each device keep all of them busy.
        # With more, what a channel sends is in the processor's cache no more: all of
        # 16 MiB for each of 4 devices make it 10 % slower.
        packets = 1 + 2 * len(self._channels) // len(options.sources)
        return min(most, packets * MIB // options.buffer_size)

    def _device(
        self, key: DeviceKey, source: StateSource, section_id: int
    ) -> OutgoingDevice:
        options = self.options
        position = Position(hashlib.sha256() if options.digests else None)
        progress = DeviceProgress(*key, position)
        progress.transfer = Transfer.MULTIFD
        calls = DeviceCalls(
            *key,
            device=source,
            stop=self.stop,
            grace=options.device_grace,
            position=position,
            activity=self.activity,
        )
        return OutgoingDevice(
            calls=calls,
            source=source,
            section=Section(SectionType.START, section_id, *key, VFIO_VERSION, 0),
            position=position,
            progress=progress,
            line=self._line,
            share=Share(self._most_buffers(source)),
            trace=self.trace,
        )


async def _finish(device: OutgoingDevice) -> None:
    try:
        await device.finish()
    except TrioVfioError as error:
        # Too late to be a fault: the device lives on elsewhere.
        log.warning("after the migration: %s", error)
