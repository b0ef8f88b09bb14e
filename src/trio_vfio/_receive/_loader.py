"""One device of a session: its packets in order, its calls, its progress.

QEMU: ``vfio_load_bufs_thread`` in hw/vfio/migration-multifd.c, whose mutex and
two condition variables are here one `trio.Condition`. It is never held while
the device is called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import final

import attrs
import trio

from .._device._port import StateSink
from .._errors import PeerProtocolError
from .._migration._calls import DeviceCalls
from .._migration._home import Home
from .._migration._position import Position
from .._migration._progress import DeviceProgress
from .._result import DeviceState, Transfer
from .._trace import Trace
from .._wire._multifd import StatePacket
from .._wire._vfio_section import config_blob_untrusted
from ._reorder import PATIENCE, ReorderQueue
from ._run import AtOnce, Buffer, OneBuffer, Run, Supply


@final
@attrs.define(eq=False)
class IncomingDevice:
    """A device that is being loaded.

    Any number of channels put packets into `queue`, from tasks or threads, while a
    single task runs `load`. Only tasks wait, on `arrived`, each for something else,
    so it is always all that are notified; and only if there are any.
    """

    calls: DeviceCalls
    queue: ReorderQueue
    sink: StateSink
    position: Position
    progress: DeviceProgress
    home: Home
    spawn: Callable[[Callable[[], Awaitable[None]]], None]
    """Starts a task of the session."""
    after_release: Callable[[], None]
    """Called when bytes were given back, which other devices may wait for."""
    others_wait: Callable[[], bool]
    """Whether one does. In any thread."""
    check_progress: Callable[[], None]
    """Called when this device has to wait, or is done: raises if all wait for good."""
    trace: Trace

    name: str = attrs.field(init=False)
    """What messages call it."""
    announced: bool = attrs.field(default=False, init=False)
    """Whether a START section has named it."""

    arrived: trio.Condition = attrs.field(factory=trio.Condition, init=False)
    _waiters: int = attrs.field(default=0, init=False)
    """How many tasks wait on `arrived`."""
    done: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when the device has accepted its state."""
    _main_config: bytes | None = attrs.field(default=None, init=False)
    _said_start: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.name = self.calls.name

    @property
    def has_main_config(self) -> bool:
        """Whether its config came on the main channel."""
        return self._main_config is not None

    @property
    def missing(self) -> int | None:
        """Index of the packet that keeps the device from going on, if one does."""
        if self.done.is_set() or self.progress.transfer is Transfer.MAIN:
            return None
        return self.queue.missing

    def transfer_is(self, kind: Transfer, *, offset: int | None = None) -> None:
        """Take note of how the device's data comes after switchover. In any thread.

        Raises:
          PeerProtocolError: if it was seen to come the other way.
        """
        progress = self.progress
        if progress.transfer is kind:
            return
        with self.queue.memory.lock:
            if progress.transfer is None:
                progress.transfer = kind
        if progress.transfer is not kind:
            reason = f"{self.name}: state after switchover both on main and by multifd"
            raise PeerProtocolError(reason, offset=offset)
        self._trace_start()

    async def write_main(
        self, data: bytes, *, precopy: bool, begins_block: bool
    ) -> None:
        """Write data that came on the main channel.

        If it fails or is cancelled, part of the data may be written.

        Raises:
          DeviceError: if the device refuses it.
        """
        progress = self.progress
        if precopy and progress.state.value is DeviceState.SETUP:
            progress.state.value = DeviceState.PRECOPY
        await self._write(OneBuffer(memoryview(data)))
        if precopy:
            progress.precopy_bytes += len(data)
        elif begins_block:
            progress.buffers += 1
        self.check_progress()

    def put(self, packet: StatePacket) -> None:
        """Queue a packet that has arrived, in any thread. Does not wait."""
        self._trace_incoming(packet)
        if self.queue.put(packet) and self._waiters:
            self.home.call(self.wake)

    def write_at_once(self, packet: StatePacket) -> bool:
        """Write a packet that has arrived in this thread, if the device waits for it.

        Only if its own thread does, and has said how; and not in Trio's.

        Returns: whether it was taken; then it must not be put.
        """
        awaited = self.queue.is_awaited and not self.home.is_here
        return awaited and self.queue.do_at_once(packet)

    def put_main_config(self, blob: bytes) -> None:
        """Take the config that came on the main channel, behind all data."""
        self._main_config = blob
        self.wake()

    def wake(self) -> None:
        """Let everyone who waits for this device look again. In Trio's thread."""
        if not self._waiters:
            return
        try:
            self.arrived.acquire_nowait()
        except trio.WouldBlock:
            # It is on its way to one who was woken, but others may wait by then.
            self.spawn(self._wake)
        else:
            self.arrived.notify_all()
            self.arrived.release()

    async def _wake(self) -> None:
        async with self.arrived:
            self.arrived.notify_all()

    async def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until *ready*, which is asked again whenever something has changed."""
        # Before it is asked for the first time: another thread looks at this behind
        # what it changes.
        self._waiters += 1
        try:
            async with self.arrived:
                while not ready():
                    await self.arrived.wait()
        finally:
            self._waiters -= 1

    async def load(self) -> None:
        """Load the device, in order, until it has accepted its state.

        If this fails or is cancelled, the device is left for `DeviceCalls.keep`
        to abort.

        Raises:
          DeviceError: if the device refuses something.
          PeerProtocolError: if the config is no config.
        """
        began = trio.current_time()
        self.progress.state.value = DeviceState.LOADING
        self._trace_start()
        try:
            await self._load()
        finally:
            if self.progress.transfer is Transfer.MULTIFD:
                self.trace("vfio_load_bufs_thread_end", self.name)
        self.progress.seconds = trio.current_time() - began
        self.progress.state.value = DeviceState.COMPLETED
        self.done.set()
        self.check_progress()

    async def _load(self) -> None:
        while await self._data_is_due():
            await self._write(self)
            self._made_room()
        blob = self._take_config()
        self.trace("vfio_load_device_config_state_start", self.name)
        await self.calls.call("load_config", self.sink.load_config, blob)
        self.trace("vfio_load_device_config_state_end", self.name)
        self.progress.config_bytes = len(blob)
        if self.position.digest is not None:
            self.progress.config_sha256 = hashlib.sha256(blob).hexdigest()
        await self.calls.call("finish", self.sink.finish)

    async def _write(self, supply: Supply) -> None:
        trace = self.trace if self.trace.listening else None
        run = Run(self.position, supply, name=self.name, trace=trace)
        await self.calls.call("write", self.sink.write, run)
        if self.position.stopping:
            await trio.sleep_forever()
        if not run.exhausted:
            raise self.calls.error(
                "write",
                "returned before all buffers were taken",
                idx=self.position.idx,
                offset=self.position.bytes,
            )

    def take(self, most: int, at_once: AtOnce | None = None) -> list[Buffer]:
        """Take the data that is due, for a run; see `Supply`."""
        patience = 0 if self.home.is_here else PATIENCE
        write = None if at_once is None else partial(self._write_at_once, at_once)
        packets = self.queue.take(most, patience, self._starve, write)
        return self._buffers(packets) if packets else []

    def _write_at_once(self, at_once: AtOnce, packets: list[StatePacket]) -> bool:
        """Do *at_once* in the thread that has brought the first of *packets*."""
        self._trace_incoming(packets[0])
        buffers = self._buffers(packets)
        return not buffers or at_once(buffers)

    def _buffers(self, packets: list[StatePacket]) -> list[Buffer]:
        """Return the data of *packets*, which were taken."""
        self.progress.waiting_for = None
        # The next one may wait for memory, and now is the one that is due.
        if self._waiters and not self.queue.has_due:
            self.home.call(self.wake)
        buffers: list[Buffer] = []
        for packet in packets:
            buffer = Buffer(packet.data, packet.header.idx)
            if buffer.idx == 0:
                self.trace("vfio_load_state_device_buffer_start", self.name)
            if packet.data:
                buffers.append(buffer)
            else:
                # A device would take 0 bytes for a failure.
                self.written(buffer)
        return buffers

    def written(self, buffer: Buffer) -> None:
        """Take note that *buffer* is written."""
        self.progress.buffers += 1
        self._release(buffer.data)
        # QEMU says so if it knows by then.
        if self.queue.is_last(buffer.idx):
            self.trace("vfio_load_state_device_buffer_end", self.name)
        if self._waiters or self.others_wait():
            self.home.call(self._made_room)

    async def _data_is_due(self) -> bool:
        """Wait for the packet that is due; whether it is not the config."""
        if not self._has_next:
            await self._wait_for_next()
        # A thread of the device's may have waited, and have got no data.
        self.progress.waiting_for = None
        return self.queue.has_due_data

    async def _wait_for_next(self) -> None:
        self._starve()
        self.check_progress()
        await self.wait_until(lambda: self._has_next)

    def _starve(self) -> None:
        if self.progress.waiting_for != self.queue.due:
            self.progress.starved += 1
            self.progress.waiting_for = self.queue.due
            self._trace_starved()

    def _trace_incoming(self, packet: StatePacket) -> None:
        idx = packet.header.idx
        self.trace("vfio_load_state_device_buffer_incoming", self.name, idx)

    def _trace_start(self) -> None:
        """Say that it is loaded, once it is known to come over the channels.

        QEMU knows that from the beginning, and has no thread for the others.
        """
        multifd = self.progress.transfer is Transfer.MULTIFD
        if multifd and self.progress.state.value is DeviceState.LOADING:
            with self.queue.memory.lock:
                said, self._said_start = self._said_start, True
            if not said:
                self.trace("vfio_load_bufs_thread_start", self.name)
                self._trace_starved()

    def _trace_starved(self) -> None:
        idx = self.progress.waiting_for
        if idx is not None and self.progress.transfer is Transfer.MULTIFD:
            self.trace("vfio_load_state_device_buffer_starved", self.name, idx)

    @property
    def _has_next(self) -> bool:
        return self.queue.has_due or self._main_config is not None

    def _take_config(self) -> bytes:
        if self._main_config is not None:
            return self._main_config
        packet = self.queue.take_config()
        blob = config_blob_untrusted(packet.data, self.name)
        self._release(packet.data)
        self._made_room()
        return blob

    def _release(self, data: memoryview) -> None:
        self.queue.release(data)
        self.progress.queued_bytes = self.queue.bytes

    def _made_room(self) -> None:
        """Let those look again that wait for room, or for the due index to move."""
        self.wake()
        self.after_release()
