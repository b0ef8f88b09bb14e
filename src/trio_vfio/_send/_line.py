"""Where packets wait for a channel, and channels for a packet.

QEMU: ``multifd_send`` in migration/multifd.c, which gives a packet to the first
channel that is idle.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import final

import attrs
import trio

from .._migration._home import Home
from .._migration._progress import DeviceProgress
from .._wire._multifd import StateHeader
from ._buffers import BufferPool, Share


@final
@attrs.define(eq=False)
class Packet:
    """A device-state packet that waits for a channel."""

    header: StateHeader
    data: memoryview
    lane: Lane
    buffer: memoryview | None = None
    """What holds the data, to be given back once it was sent."""


@final
@attrs.define(eq=False)
class Lane:
    """The packets of one device, in order of their index; its config is the last."""

    progress: DeviceProgress
    share: Share
    on_empty: Callable[[], None]
    """Called in Trio's thread when a channel has its last packet."""
    packets: deque[Packet] = attrs.field(factory=deque[Packet], init=False)


Give = Callable[[Packet | None], None]
"""Takes the packet that was asked for; None: there are no more."""


@final
@attrs.define(eq=False)
class Line:
    """All devices and all channels of a session, whichever thread they are in.

    A channel that asks gets the first packet of the device that waits longest, so
    that none starves while another has many. Thus a device's packets are handed over
    in order of their index, and that is what a destination relies upon that pauses
    channels (`OutgoingChannel` keeps the order).
    """

    pool: BufferPool
    """Where the buffers of packets come from, and go back to."""

    _home: Home = attrs.field(factory=Home, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    # What follows is guarded by it, and so is all of a lane, and what the progress
    # of its device says of packets.
    _turns: deque[Lane] = attrs.field(factory=deque[Lane], init=False)
    """Those that have packets, the one that waits longest first."""
    _idle: deque[Give] = attrs.field(factory=deque[Give], init=False)
    """Channels that have asked; if there are any, no device has packets."""
    _open: int = attrs.field(default=0, init=False)
    """How many devices will give more."""
    stopped: bool = attrs.field(default=False, init=False)
    """Whether nothing is handed over any more."""

    def lane(
        self, progress: DeviceProgress, share: Share, on_empty: Callable[[], None]
    ) -> Lane:
        """Make the lane of one more device."""
        self._open += 1
        return Lane(progress, share, on_empty)

    def put(self, packet: Packet) -> None:
        """Put *packet* behind all others of its device. Does not wait."""
        lane = packet.lane
        with self._lock:
            if packet.header.is_config:
                self._open -= 1
            lane.progress.queued_bytes += len(packet.data)
            if not lane.packets:
                self._turns.append(lane)
            lane.packets.append(packet)
        self._hand_over()

    async def take(self) -> Packet | None:
        """Wait for a packet; None: there are no more.

        If cancelled, one may be lost.
        """
        given: list[Packet | None] = []
        arrived = trio.Event()

        def give(packet: Packet | None) -> None:
            given.append(packet)
            self._home.call(arrived.set)

        self._ask(give)
        await arrived.wait()
        return given[0]

    def ask(self) -> SimpleQueue[Packet | None]:
        """Ask for one; return where a thread that is not Trio's can wait for it."""
        asked: SimpleQueue[Packet | None] = SimpleQueue()
        self._ask(asked.put)
        return asked

    def sent(self, packet: Packet) -> None:
        """Take note that *packet* has gone: its memory is free for others."""
        with self._lock:
            packet.lane.progress.queued_bytes -= len(packet.data)
        if packet.buffer is not None:
            self.pool.give_back(packet.lane.share, packet.buffer)

    def stop(self) -> None:
        """Hand over nothing more; whoever asks hears that there is none."""
        self.stopped = True
        self._hand_over()

    def _ask(self, give: Give) -> None:
        with self._lock:
            self._idle.append(give)
        self._hand_over()

    def _hand_over(self) -> None:
        while (pair := self._next()) is not None:
            give, packet = pair
            give(packet)
            if packet is not None and packet.header.is_config:
                self._home.call(packet.lane.on_empty)

    def _next(self) -> tuple[Give, Packet | None] | None:
        """Return who gets which packet next, if anybody does."""
        with self._lock:
            if not self._idle:
                return None
            if self.stopped or not (self._turns or self._open):
                return self._idle.popleft(), None
            if not self._turns:
                return None
            return self._idle.popleft(), self._first()

    def _first(self) -> Packet:
        lane = self._turns.popleft()
        packet = lane.packets.popleft()
        if lane.packets:
            self._turns.append(lane)
        if not packet.header.is_config:
            lane.progress.buffers += 1
        return packet
