"""Connections in memory, for tests that need no sockets and no real time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TypeAlias, TypeVar, final

import attrs
import trio

from ._fate import Blow, Fate
from ._faults import ConnectionName, LinkFault, is_name
from ._ways import Way

_T = TypeVar("_T")

PerConnection: TypeAlias = float | Mapping[ConnectionName, float]
"""One number for all connections, or that of each by its name."""

BytesPerConnection: TypeAlias = int | Mapping[ConnectionName, int]


@final
@attrs.define(eq=False)
class LinkStream(trio.abc.HalfCloseableStream):
    """One end of a connection in memory.

    One task may send while another receives.
    """

    _out: Way = attrs.field(alias="sends")
    _in: Way = attrs.field(alias="receives")
    _closed: bool = attrs.field(default=False, init=False)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*; returns when its last byte has left.

        If cancelled before anything has left, nothing was sent, and the stream is
        as before. Otherwise what has left arrives, and every further send raises
        `trio.BrokenResourceError`.

        Raises:
          trio.BrokenResourceError: if the connection was cut, or if the other end
            was closed and the news has arrived; a part may have left.
          trio.BusyResourceError: if another task is sending.
          trio.ClosedResourceError: if this end was closed, or has sent EOF.
        """
        await self._out.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the window is open.

        Raises:
          trio.BrokenResourceError: as `send_all`.
          trio.BusyResourceError: as `send_all`.
          trio.ClosedResourceError: as `send_all`.
        """
        await self._out.wait_room()

    async def send_eof(self) -> None:
        """Say that nothing more comes; that arrives behind all data.

        If cancelled, it was not said. To say it again does nothing.

        Raises:
          trio.BrokenResourceError: as `send_all`.
          trio.BusyResourceError: as `send_all`.
          trio.ClosedResourceError: if this end was closed.
        """
        if self._closed:
            raise trio.ClosedResourceError("it was closed")
        await self._out.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait until something arrives, and return it; at the end, nothing.

        If cancelled, nothing was received.

        Raises:
          trio.BrokenResourceError: if the connection was cut.
          trio.BusyResourceError: if another task is receiving.
          trio.ClosedResourceError: if this end was closed.
        """
        return await self._in.receive(max_bytes)

    def reset(self) -> None:
        """Close this end, and drop what has not arrived yet.

        As soon as the other end can know, all that it does raises
        `trio.BrokenResourceError`, also if something was still unread there. Does
        nothing if this end is closed.
        """
        if not self._closed:
            self._closed = True
            self._out.abandon()

    @property
    def was_reset(self) -> bool:
        """Whether this end knows that the other was reset.

        Or closed before something that was sent from here reached it.
        """
        return self._in.was_reset

    async def aclose(self) -> None:
        """Close this end. What was sent still arrives, and then EOF.

        Closed also if cancelled. To close it again does nothing.
        """
        if not self._closed:
            self._closed = True
            self._out.close_send()
            self._in.close_receive()
        await trio.lowlevel.checkpoint()


@final
@attrs.define(eq=False)
class Connection:
    """What has gone over a connection, to be looked at."""

    _forth: Way = attrs.field(alias="forth")
    _back: Way = attrs.field(alias="back")

    @property
    def sent(self) -> int:
        """How many bytes have left the source."""
        return self._forth.sent

    @property
    def received(self) -> int:
        """How many bytes the destination has received; garbage counts."""
        return self._forth.received

    @property
    def unread(self) -> int:
        """How many bytes have arrived at the destination and were not received.

        None if its end is closed. To ask changes nothing, so that an instrument may.
        """
        return self._forth.unread

    @property
    def sent_back(self) -> int:
        """How many bytes have left the destination."""
        return self._back.sent

    @property
    def received_back(self) -> int:
        """How many bytes the source has received; garbage counts."""
        return self._back.received

    @property
    def unread_back(self) -> int:
        """How many bytes have arrived at the source and were not received.

        As `unread`.
        """
        return self._back.unread


@final
@attrs.define(eq=False)
class MemoryListener(trio.abc.Listener[LinkStream]):
    """The end of a `link` where connections are accepted, as they were opened."""

    _accepted: trio.MemoryReceiveChannel[LinkStream] = attrs.field(alias="accepted")

    async def accept(self) -> LinkStream:
        """Wait for a connection and return the destination's end of it.

        If cancelled, no connection is lost.

        Raises:
          trio.ClosedResourceError: if the listener is closed.
        """
        return await self._accepted.receive()

    async def aclose(self) -> None:
        """Close the listener; connections stay open."""
        self._accepted.close()
        await trio.lowlevel.checkpoint()


@final
@attrs.define(eq=False, kw_only=True)
class Link:
    """Opens connections when called, main first, and knows them all."""

    _opened: trio.MemorySendChannel[LinkStream] = attrs.field(alias="opened")
    _delay: PerConnection = attrs.field(alias="delay")
    _jitter: PerConnection = attrs.field(alias="jitter")
    _bandwidth: PerConnection = attrs.field(alias="bandwidth")
    _cut: BytesPerConnection | None = attrs.field(alias="cut")
    _window: BytesPerConnection | None = attrs.field(alias="window")
    _faults: Sequence[LinkFault] = attrs.field(alias="faults")
    _seed: int = attrs.field(alias="seed")
    _made_at: float = attrs.field(alias="made_at")

    connections: dict[ConnectionName, Connection] = attrs.field(
        factory=dict[ConnectionName, Connection], init=False
    )
    """Every connection that was opened, by its name."""

    async def __call__(self) -> LinkStream:
        """Open a connection and return the source's end of it. Takes no time.

        If cancelled, none was opened.

        Raises:
          trio.BrokenResourceError: if the listener is closed.
        """
        await trio.lowlevel.checkpoint()
        name: ConnectionName = len(self.connections) - 1 if self.connections else "main"
        forth, back = self._ways(name)
        self._opened.send_nowait(LinkStream(back, forth))
        self.connections[name] = Connection(forth, back)
        return LinkStream(forth, back)

    def _ways(self, name: ConnectionName) -> tuple[Way, Way]:
        forth, back = self._way(name, "forth"), self._way(name, "back")
        forth.bandwidth = _of(self._bandwidth, name, math.inf)
        forth.other, back.other = back, forth
        faults = [*self._faults_of(name)]
        forth.fate = back.fate = self._fate(faults, forth)
        for way in (forth, back):
            way.strikes(_by_byte(faults, forth, way))
        return forth, back

    def _fate(self, faults: list[LinkFault], forth: Way) -> Fate:
        now = trio.current_time()
        blows = [
            (max(self._made_at + fault.at_time, now), _blow(fault, forth))
            for fault in faults
            if fault.at_time is not None
        ]
        return Fate(deque(sorted(blows, key=itemgetter(0))))

    def _way(self, name: ConnectionName, where: str) -> Way:
        return Way(
            delay=_of(self._delay, name, 0.0),
            window=_of(self._window, name, None),
            jitter=_of(self._jitter, name, 0.0),
            seed=f"{self._seed} {name} {where}",
        )

    def _faults_of(self, name: ConnectionName) -> Iterator[LinkFault]:
        yield from (fault for fault in self._faults if fault.connection == name)
        if (cut := _of(self._cut, name, None)) is not None:
            yield LinkFault(name, "cut", at_byte=int(cut))


def link(
    *,
    delay: PerConnection = 0.0,
    jitter: PerConnection = 0.0,
    bandwidth: PerConnection = math.inf,
    cut: BytesPerConnection | None = None,
    window: BytesPerConnection | None = None,
    faults: Sequence[LinkFault] = (),
    seed: int = 0,
) -> tuple[Link, list[MemoryListener]]:
    """Make a link in memory, whose connections are as slow and as short as told.

    Without arguments everything arrives at once. Time passes in Trio's clock only.

    Each argument but the last two is one number for all connections, or a mapping
    from the name of a connection to its number: "main" for the one that is opened
    first, then 0, 1, 2. Those that are not in the mapping are as without it.

    Args:
      delay: seconds from leaving to arriving, both ways. Any number of bytes can
        be on the way. The end of a connection, too, is heard of no earlier.
      jitter: up to how many seconds longer a piece takes, both ways: another part of
        them for each, so that connections overtake each other. What goes one way
        over a connection stays in order.
      bandwidth: how many bytes leave the source in a second; there is no limit
        the other way. Data goes in pieces of up to 64 KiB, and a piece arrives
        as a whole.
      cut: after how many bytes from the source the connection breaks: short for a
        `LinkFault` of that kind, behind those in *faults*.
      window: how many bytes may be sent and not be received yet, both ways, before
        ``send_all`` waits; those on the way count. By default 256 KiB may lie
        unread at the far end, and those on the way do not count, so that a delay
        does not limit how much goes over in a second.
      faults: what befalls which connection, and when.
      seed: what decides about the jitter, for each way of each connection apart.

    Returns: for the source what opens a connection, and to look at what went over
        each; and what `open_incoming` takes as the place where to receive.

    Raises:
      ValueError: if a number is out of range, or a name is none of a connection.
      RuntimeError: if a fault has a time, and there is no Trio that has one.
    """
    _check("delay", delay, at_least=0.0)
    _check("jitter", jitter, at_least=0.0)
    _check("bandwidth", bandwidth, at_least=math.ulp(0.0))
    _check("cut", cut, at_least=0, whole=True)
    _check("window", window, at_least=1, whole=True)
    # As a kernel's backlog: a connection is there before it is accepted.
    opened, accepted = trio.open_memory_channel[LinkStream](math.inf)
    timed = any(fault.at_time is not None for fault in faults)
    opens = Link(
        delay=delay,
        jitter=jitter,
        bandwidth=bandwidth,
        cut=cut,
        window=window,
        faults=faults,
        seed=seed,
        made_at=trio.current_time() if timed else 0.0,
        opened=opened,
    )
    return opens, [MemoryListener(accepted)]


def _by_byte(faults: list[LinkFault], forth: Way, way: Way) -> list[tuple[float, Blow]]:
    blows = [
        (fault.at_byte, _blow(fault, forth))
        for fault in faults
        if fault.at_byte is not None and _way_of(fault, forth) is way
    ]
    return sorted(blows, key=itemgetter(0))


def _way_of(fault: LinkFault, forth: Way) -> Way:
    return forth.other if fault.back else forth


def _blow(fault: LinkFault, forth: Way) -> Blow:
    """Return what does it to the way that it is on."""
    way = _way_of(fault, forth)
    match fault.does:
        case "cut":
            return partial(way.cut, why=fault.why)
        case "reset":
            return partial(way.reset, why=fault.why)
        case "half_close":
            return partial(way.half_close, why=fault.why)
        case "garbage":
            return partial(way.insert, data=fault.data)
        case "stall":
            return partial(way.stall, seconds=fault.seconds)


def _of(option: PerConnection | None, name: ConnectionName, default: _T) -> float | _T:
    if isinstance(option, Mapping):
        return option.get(name, default)
    return default if option is None else option


def _check(
    what: str, option: PerConnection | None, *, at_least: float, whole: bool = False
) -> None:
    by_name = option if isinstance(option, Mapping) else {"main": option}
    for name, value in by_name.items():
        if not is_name(name):
            raise ValueError(f"{what}: there is no connection {name!r}")
        if value is None:
            continue
        if not value >= at_least or (whole and value % 1 != 0):
            raise ValueError(f"{what}: {value!r} is out of range")
