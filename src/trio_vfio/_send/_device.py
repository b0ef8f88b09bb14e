"""One device of an outgoing migration: its calls, its packets, its progress.

QEMU: ``vfio_save_iterate`` in hw/vfio/migration.c and
``vfio_multifd_save_complete_precopy_thread`` in hw/vfio/migration-multifd.c.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, cast, final

import attrs
import trio

from .._device._port import PeerToPeer, Pending, ReadsAll, StateSource
from .._migration._calls import DeviceCalls
from .._migration._position import Position
from .._migration._progress import DeviceProgress
from .._result import DeviceState
from .._trace import Trace
from .._wire._limits import MAX_CONFIG
from .._wire._main_events import Section
from .._wire._vfio_section import encode_config
from ._buffers import BufferPool, Share
from ._line import Line
from ._packing import LentBuffers, Packing

MOST_BUFFERS: Final = 16
"""How many buffers one call of a device fills at most."""

_LONG: Final = 0.02
"""Seconds that a call for several buffers may take."""


@final
@attrs.define(eq=False)
class OutgoingDevice:
    """A device that is being saved.

    After `stop`, `read` fills buffers as long as there are any, and puts what is in
    them in line for a channel, packet by packet: in one thread that stays where the
    source `ReadsAll`, else with a call for several buffers.
    """

    calls: DeviceCalls
    source: StateSource
    section: Section
    """Its START section, which names it."""
    position: Position
    progress: DeviceProgress
    line: Line
    share: Share
    trace: Trace

    precopy: bool = attrs.field(default=False, init=False)
    """Whether it gives data before `stop`."""
    pending: Pending = attrs.field(factory=Pending, init=False)
    """What it has said last, less what it gave since."""
    init_data_sent: bool = attrs.field(default=False, init=False)
    """Whether the destination was told that all initial data has gone."""
    stopped_p2p: trio.Event = attrs.field(factory=trio.Event, init=False)
    stopped: trio.Event = attrs.field(factory=trio.Event, init=False)
    handed_over: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when its last packet was taken by a channel."""
    _stopped_at: float = attrs.field(default=0.0, init=False)
    _packing: Packing = attrs.field(init=False)
    _lent: LentBuffers | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        lane = self.line.lane(self.progress, self.share, self._note_end)
        self._packing = Packing(self.section, self.position, self.line, lane)

    @property
    def pool(self) -> BufferPool:
        """Where its buffers come from."""
        return self.line.pool

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.calls.name

    @property
    def call_under_way(self) -> str | None:
        """What it is doing; None: nothing, or nothing but waiting for a buffer."""
        if self._lent is not None and self._lent.waiting:
            return None
        return self.calls.running

    async def begin(self) -> None:
        """Make the device ready.

        Raises:
          DeviceError: if it cannot be.
        """
        self.precopy = await self.calls.begin(self.source.begin)
        if self.precopy:
            self.progress.state.value = DeviceState.PRECOPY
        self.trace("vfio_save_setup", self.name, self.pool.size)
        await self.ask_pending()

    async def ask_pending(self) -> None:
        """Ask the device anew what there is still to read.

        Raises:
          DeviceError: if that fails.
        """
        pending: Any = await self.calls.call("pending", self.source.pending)
        if not isinstance(pending, Pending):
            raise self.calls.error("pending", f"{pending!r} is no Pending")
        self.pending = pending
        initial, dirty = pending.initial_bytes, pending.dirty_bytes
        left = pending.stop_copy_bytes or initial + dirty
        self.progress.expected_bytes = self.position.bytes + left
        # QEMU's precopy is all that is left, and nothing comes after the switchover.
        self.trace("vfio_state_pending_exact", self.name, left, 0, left, initial, dirty)

    async def read_block(self, buffer: memoryview) -> memoryview:
        """Read one block of pre-copy data; empty if there is no more for now.

        Raises:
          DeviceError: if the device fails.
        """
        if not self.progress.precopy_bytes:
            self.trace("vfio_save_iterate_start", self.name)
        count = sum(await self._read([buffer]))
        if count:
            self.trace("vfio_save_block", self.name, count)
        else:
            self.trace("vfio_save_block_precopy_empty_hit", self.name)
        data = memoryview(buffer)[:count]
        if self.position.digest is not None:
            self.position.digest.update(data)
        self.position.bytes += count
        await self._after_digest()
        self.progress.precopy_bytes += count
        self._subtract(count)
        left = self.pending
        self.trace("vfio_save_iterate", self.name, left.initial_bytes, left.dirty_bytes)
        return data

    async def stop_p2p(self) -> None:
        """Keep the device from beginning to access others, if that can be told it.

        Raises:
          DeviceError: if it fails.
        """
        self._stopped_at = trio.current_time()
        if isinstance(self.source, PeerToPeer):
            await self.calls.call("stop_p2p", self.source.stop_p2p)
        self.stopped_p2p.set()

    async def stop(self) -> None:
        """Make the device stand still.

        Raises:
          DeviceError: if it does not.
        """
        await self.calls.call("stop", self.source.stop)
        self.progress.state.value = DeviceState.SAVING
        self.stopped.set()

    async def read(self) -> None:
        """Read all that is left, in packets, and the config behind it.

        If this fails or is cancelled, the device is left for `DeviceCalls.keep`
        to abort.

        Raises:
          DeviceError: if the device fails.
        """
        self._trace_start()
        if isinstance(self.source, ReadsAll):
            await self._read_all(self.source)
        else:
            await self._read_in_runs()
        self.position.idx = None
        self._packing.add_config(await self._config())
        # Unlike elsewhere, 1 is success.
        self.trace("vfio_save_complete_precopy_thread_end", self.name, 1)

    async def _read_all(self, source: ReadsAll) -> None:
        lent = self._lent = LentBuffers(self._packing, self.calls.activity)
        try:
            await self.calls.call("read", source.read_all, lent)
        finally:
            lent.give_back()
        if self.line.stopped:
            # There is more to read, and the cancel is about to come.
            await trio.sleep_forever()

    async def _read_in_runs(self) -> None:
        count = 1
        at_end = False
        while not at_end:
            buffers = await self.pool.take(self.share, count)
            self.position.idx = self._packing.idx
            began = trio.current_time()
            counts = await self._read(buffers)
            count = self._next_count(count, trio.current_time() - began)
            if not counts:
                raise self._read_error("there is no more data, but no end of it")
            at_end = counts[-1] == 0
            filled = len(counts) - at_end
            for buffer, size in zip(buffers, counts[:filled], strict=False):
                self._packing.add(buffer, size)
                await self._after_digest()
            self.pool.give_back(self.share, *buffers[filled:])

    def _trace_start(self) -> None:
        section = self.section
        self.trace(
            "vfio_save_complete_precopy_thread_start",
            self.name,
            section.idstr,
            section.instance_id,
        )

    async def finish(self) -> None:
        """Let go of the device, whose state now lives on elsewhere.

        Raises:
          DeviceError: if it cannot be let go of.
        """
        await self.calls.call("finish", self.source.finish)
        self.trace("vfio_save_cleanup", self.name)

    def _next_count(self, count: int, seconds: float) -> int:
        """Return how many buffers to read in one call, after one of *seconds*.

        Many for a fast device, since each call costs; but where they take long,
        no buffer is to wait until the next is full.
        """
        if seconds > _LONG:
            return 1
        # Half of the share, so that the other half is sent meanwhile.
        return max(1, min(2 * count, MOST_BUFFERS, self.share.limit // 2))

    async def _read(self, buffers: Sequence[memoryview]) -> list[int]:
        views = [memoryview(buffer) for buffer in buffers]
        counts = await self.calls.call("read", self.source.read_into, views)
        if not _are_counts(counts, len(views), self.pool.size):
            raise self._read_error(
                f"the device says that it put {counts!r} bytes into {len(views)}"
                f" buffers of {self.pool.size}"
            )
        return counts

    def _read_error(self, reason: str) -> Exception:
        at = self.position
        return self.calls.error("read", reason, idx=at.idx, offset=at.bytes)

    async def _after_digest(self) -> None:
        if self.position.digest is not None:
            # Not in a thread, for this is above the port; but not all in one go.
            await trio.lowlevel.checkpoint()

    def _note_end(self) -> None:
        self.progress.seconds = trio.current_time() - self._stopped_at
        self.handed_over.set()

    def _subtract(self, count: int) -> None:
        """Take note that *count* bytes of what was pending have been read."""
        initial, dirty = self.pending.initial_bytes, self.pending.dirty_bytes
        if not count:
            # Whatever it had said, there is nothing.
            initial = dirty = 0
        from_initial = min(initial, count)
        self.pending = attrs.evolve(
            self.pending,
            initial_bytes=initial - from_initial,
            dirty_bytes=max(0, dirty - (count - from_initial)),
        )

    async def _config(self) -> bytes:
        self.trace("vfio_save_device_config_state", self.name)
        blob: Any = await self.calls.call("config", self.source.config)
        if not isinstance(blob, bytes):
            raise self.calls.error("config", f"a config of type {type(blob).__name__}")
        if len(blob) > MAX_CONFIG:
            reason = f"a config blob of {len(blob)} bytes; the most is {MAX_CONFIG}"
            raise self.calls.error("config", reason)
        self.progress.config_bytes = len(blob)
        if self.position.digest is not None:
            self.progress.config_sha256 = hashlib.sha256(blob).hexdigest()
        return encode_config(blob)


def _are_counts(given: Any, buffers: int, size: int) -> bool:
    """Whether *given* can be what `StateSource.read_into` has returned."""
    if not isinstance(given, list):
        return False
    counts = cast("list[object]", given)
    return (
        len(counts) <= buffers
        and all(isinstance(each, int) and 0 <= each <= size for each in counts)
        and 0 not in counts[:-1]
    )
