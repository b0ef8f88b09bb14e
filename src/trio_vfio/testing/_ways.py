"""What goes one way over a connection in memory, in virtual time.

No task of its own: sending works out when a piece arrives, and whoever receives
sleeps until then.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Callable
from typing import Final, final

import attrs
import trio

# What is unread at the far end before a sender waits, unless told otherwise.
_UNREAD: Final = 256 * 1024

# Data leaves and arrives in pieces of at most this size.
_PIECE: Final = 64 * 1024


@final
@attrs.define(eq=False)
class _Turn:
    """Lets one task in at a time, and turns others away."""

    _doing: str = attrs.field(alias="doing")
    _taken: bool = attrs.field(default=False, init=False)

    def __enter__(self) -> None:
        if self._taken:
            raise trio.BusyResourceError(f"another task is {self._doing}")
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


@final
@attrs.define(eq=False, kw_only=True)
class Way:
    """A pipe with a length, a width and an end that may be torn off."""

    delay: float
    """Seconds from leaving to arriving."""
    window: float | None
    """How many bytes may be on the way or unread; None: 256 KiB unread."""
    bandwidth: float = math.inf
    """How many bytes leave in a second."""
    cut: float = math.inf
    """After how many bytes nothing more leaves."""
    when_cut: Callable[[], None] = lambda: None
    """Called as soon as that is so."""

    sent: int = attrs.field(default=0, init=False)
    """How many bytes have left."""
    received: int = attrs.field(default=0, init=False)
    """How many of them were received."""

    _travelling: deque[tuple[float, bytes]] = attrs.field(
        factory=deque[tuple[float, bytes]], init=False
    )
    """When what arrives."""
    _arrived: bytearray = attrs.field(factory=bytearray, init=False)
    _changed: trio.lowlevel.ParkingLot = attrs.field(
        factory=trio.lowlevel.ParkingLot, init=False
    )

    _sender: _Turn = attrs.field(factory=lambda: _Turn("sending"), init=False)
    _send_closed: bool = attrs.field(default=False, init=False)
    _fails_at: float = attrs.field(default=math.inf, init=False)
    """From when on the sender knows that it is broken, and why."""
    _fails: str = attrs.field(default="", init=False)

    _receiver: _Turn = attrs.field(factory=lambda: _Turn("receiving"), init=False)
    _receive_closed: bool = attrs.field(default=False, init=False)
    _ends_at: float = attrs.field(default=math.inf, init=False)
    """When the end arrives, and if it is none that the sender made, why."""
    _broken: str | None = attrs.field(default=None, init=False)

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of *data*; return when it has left."""
        with self._sender:
            await trio.lowlevel.checkpoint()
            self._check_sender()
            before = self.sent
            try:
                with memoryview(data) as whole, whole.cast("B") as view:
                    await self._send_pieces(view)
            except trio.Cancelled:
                if self.sent > before:
                    self._fail_sender(trio.current_time(), "a send was cancelled")
                raise

    async def wait_room(self) -> None:
        """Wait until something can be sent."""
        with self._sender:
            await trio.lowlevel.checkpoint()
            await self._wait_room()

    async def send_eof(self) -> None:
        """Say that nothing more is sent."""
        with self._sender:
            await trio.lowlevel.checkpoint()
            if not self._send_closed:
                self._check_sender()
            self.close_send()

    async def receive(self, max_bytes: int | None) -> bytes:
        """Return what has arrived, or wait for it; nothing at the end."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be 1 or more")
        with self._receiver:
            await trio.lowlevel.checkpoint()
            while not self._has_arrived():
                arrives = self._travelling[0][0] if self._travelling else self._ends_at
                await self._wait(arrives)
            data = bytes(self._arrived[:max_bytes])
            del self._arrived[: len(data)]
            self.received += len(data)
            self._changed.unpark_all()
            return data

    def close_send(self) -> None:
        """End it from the sender's side."""
        self._send_closed = True
        if self._ends_at == math.inf:
            self._ends_at = trio.current_time() + self.delay
        self._changed.unpark_all()

    def close_receive(self) -> None:
        """Receive no more, which the sender hears of in time."""
        self._receive_closed = True
        heard_at = trio.current_time() + self.delay
        self._fail_sender(heard_at, "the other end was closed")

    def break_off(self, why: str) -> None:
        """Break at the sender's end: what has left still arrives."""
        self._ends_at, self._broken = trio.current_time() + self.delay, why
        self._fail_sender(trio.current_time(), why)

    def lose(self, why: str) -> None:
        """Break at the receiver's end: what is on the way is lost."""
        self._travelling.clear()
        self._arrived.clear()
        self._ends_at, self._broken = trio.current_time(), why
        self._fail_sender(trio.current_time() + self.delay, why)

    async def _send_pieces(self, data: memoryview) -> None:
        start, paced = trio.current_time(), 0
        while data:
            if await self._wait_room():
                start, paced = trio.current_time(), 0
            piece = data[: int(min(self._room, self.cut - self.sent, _PIECE))]
            paced += len(piece)
            # From the start of all, since rounding errors would add up.
            await self._transmit(start + paced / self.bandwidth)
            self._leave(bytes(piece))
            data = data[len(piece) :]

    async def _transmit(self, until: float) -> None:
        while trio.current_time() < until:
            await self._wait(min(until, self._fails_at))
            self._check_sender()

    def _leave(self, piece: bytes) -> None:
        self.sent += len(piece)
        self._travelling.append((trio.current_time() + self.delay, piece))
        self._changed.unpark_all()
        if self.sent == self.cut:
            self.when_cut()

    @property
    def _room(self) -> float:
        self._settle()
        if self.window is None:
            return _UNREAD - len(self._arrived)
        return self.window - (self.sent - self.received)

    async def _wait_room(self) -> bool:
        """Wait until something can be sent; return whether that took waiting."""
        waited = False
        self._check_sender()
        while self._room <= 0:
            waited = True
            await self._wait(self._fails_at)
            self._check_sender()
        return waited

    def _check_sender(self) -> None:
        if self._send_closed:
            raise trio.ClosedResourceError("it was closed for sending")
        if trio.current_time() >= self._fails_at:
            raise trio.BrokenResourceError(self._fails)

    def _fail_sender(self, at: float, why: str) -> None:
        if at < self._fails_at:
            self._fails_at, self._fails = at, why
        self._changed.unpark_all()

    def _has_arrived(self) -> bool:
        """Whether there is something to receive, or the end."""
        if self._receive_closed:
            raise trio.ClosedResourceError("it was closed")
        self._settle()
        if self._arrived:
            return True
        if self._travelling or trio.current_time() < self._ends_at:
            return False
        if self._broken is not None:
            raise trio.BrokenResourceError(self._broken)
        return True

    def _settle(self) -> None:
        while self._travelling and self._travelling[0][0] <= trio.current_time():
            _, piece = self._travelling.popleft()
            self._arrived += piece

    async def _wait(self, until: float) -> None:
        """Wait until then, or until something else changes."""
        with trio.move_on_at(until):
            await self._changed.park()
