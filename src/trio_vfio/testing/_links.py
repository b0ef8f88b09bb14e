"""Connections in memory, for tests that need no sockets and no real time."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, TypeAlias, TypeVar, final

import attrs
import trio

from ._ways import Way

Connect: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]

Name: TypeAlias = int | Literal["main"]
"""Of a connection: in the order in which they are opened, "main", 0, 1, 2."""

_T = TypeVar("_T")

PerConnection: TypeAlias = float | Mapping[Name, float]
"""One number for all connections, or that of each by its name."""

BytesPerConnection: TypeAlias = int | Mapping[Name, int]


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
        """How many bytes the destination has received."""
        return self._forth.received

    @property
    def sent_back(self) -> int:
        """How many bytes have left the destination."""
        return self._back.sent

    @property
    def received_back(self) -> int:
        """How many bytes the source has received."""
        return self._back.received


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
    _bandwidth: PerConnection = attrs.field(alias="bandwidth")
    _cut: BytesPerConnection | None = attrs.field(alias="cut")
    _window: BytesPerConnection | None = attrs.field(alias="window")

    connections: dict[Name, Connection] = attrs.field(
        factory=dict[Name, Connection], init=False
    )
    """Every connection that was opened, by its name."""

    async def __call__(self) -> LinkStream:
        """Open a connection and return the source's end of it. Takes no time.

        If cancelled, none was opened.

        Raises:
          trio.BrokenResourceError: if the listener is closed.
        """
        await trio.lowlevel.checkpoint()
        name: Name = len(self.connections) - 1 if self.connections else "main"
        forth, back = self._ways(name)
        self._opened.send_nowait(LinkStream(back, forth))
        self.connections[name] = Connection(forth, back)
        return LinkStream(forth, back)

    def _ways(self, name: Name) -> tuple[Way, Way]:
        delay, window = _of(self._delay, name, 0.0), _of(self._window, name, None)
        cut = _of(self._cut, name, math.inf)

        def break_both() -> None:
            why = f"{name}: cut after {cut} bytes"
            forth.break_off(why)
            back.lose(why)

        forth = Way(
            delay=delay,
            bandwidth=_of(self._bandwidth, name, math.inf),
            window=window,
            cut=cut,
            when_cut=break_both,
        )
        back = Way(delay=delay, window=window)
        if cut == 0:
            break_both()
        return forth, back


def link(
    *,
    delay: PerConnection = 0.0,
    bandwidth: PerConnection = math.inf,
    cut: BytesPerConnection | None = None,
    window: BytesPerConnection | None = None,
) -> tuple[Link, list[MemoryListener]]:
    """Make a link in memory, whose connections are as slow and as short as told.

    Without arguments everything arrives at once. Time passes in Trio's clock only.

    Each argument is one number for all connections, or a mapping from the name of
    a connection to its number: "main" for the one that is opened first, then 0, 1,
    2. Those that are not in the mapping are as without it.

    Args:
      delay: seconds from leaving to arriving, both ways. Any number of bytes can
        be on the way. The end of a connection, too, is heard of no earlier.
      bandwidth: how many bytes leave the source in a second; there is no limit
        the other way. Data goes in pieces of up to 64 KiB, and a piece arrives
        as a whole.
      cut: after how many bytes from the source the connection breaks. They still
        arrive; then the destination's ``receive_some`` raises
        `trio.BrokenResourceError`. What would send more raises it, too, and all
        that the source receives from then on, so that what was on the way back
        is lost; what the destination sends, as soon as it can know.
      window: how many bytes may be sent and not be received yet, both ways, before
        ``send_all`` waits; those on the way count. By default 256 KiB may lie
        unread at the far end, and those on the way do not count, so that a delay
        does not limit how much goes over in a second.

    Returns: for the source what opens a connection, and to look at what went over
        each; and what `open_incoming` takes as the place where to receive.

    Raises:
      ValueError: if a number is out of range, or a name is none of a connection.
    """
    _check("delay", delay, at_least=0.0)
    _check("bandwidth", bandwidth, at_least=math.ulp(0.0))
    _check("cut", cut, at_least=0, whole=True)
    _check("window", window, at_least=1, whole=True)
    # As a kernel's backlog: a connection is there before it is accepted.
    opened, accepted = trio.open_memory_channel[LinkStream](math.inf)
    opens = Link(
        delay=delay, bandwidth=bandwidth, cut=cut, window=window, opened=opened
    )
    return opens, [MemoryListener(accepted)]


def _of(option: PerConnection | None, name: Name, default: _T) -> float | _T:
    if isinstance(option, Mapping):
        return option.get(name, default)
    return default if option is None else option


def _check(
    what: str, option: PerConnection | None, *, at_least: float, whole: bool = False
) -> None:
    by_name = option if isinstance(option, Mapping) else {"main": option}
    for name, value in by_name.items():
        if name != "main" and not (isinstance(name, int) and name >= 0):
            raise ValueError(f"{what}: there is no connection {name!r}")
        if value is None:
            continue
        if not value >= at_least or (whole and value % 1 != 0):
            raise ValueError(f"{what}: {value!r} is out of range")
