"""What goes one way over a connection in memory, in virtual time.

No task of its own: sending works out when a piece arrives, and whoever receives
sleeps until then. So with what goes wrong at some time: whoever uses the connection
first from then on finds that it has gone wrong, and nobody sleeps any longer.
"""

from __future__ import annotations

import math
import operator
import random
from collections import deque
from collections.abc import Iterable
from typing import Final, final

import attrs
import trio

from ._fate import Blow, Fate

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
    jitter: float = 0.0
    """Seconds that a piece may take longer."""
    seed: str = ""
    """What decides how much longer."""

    other: Way = attrs.field(init=False, repr=False)
    """The way from where this one leads to."""
    fate: Fate = attrs.field(init=False, repr=False)
    """Shared by both ways."""
    _blows: deque[tuple[float, Blow]] = attrs.field(
        factory=deque[tuple[float, Blow]], init=False
    )
    """What goes wrong when how many bytes have left, in this order."""
    _blow_at: float = attrs.field(default=math.inf, init=False)
    """When the first of them does."""
    _random: random.Random | None = attrs.field(default=None, init=False, repr=False)

    sent: int = attrs.field(default=0, init=False)
    """How many bytes have left."""
    received: int = attrs.field(default=0, init=False)
    """How many were received, which may be more if some came from elsewhere."""
    _inserted: int = attrs.field(default=0, init=False)
    """How many came from elsewhere."""
    _held: int = attrs.field(default=0, init=False)
    """How many left while it was stalled."""
    _stalled_until: float = attrs.field(default=-math.inf, init=False)

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
    """When the end arrives, and if it is a break, why."""
    _broken: str | None = attrs.field(default=None, init=False)
    _lost_at: float = attrs.field(default=math.inf, init=False)
    """From when on nothing can be received, whatever has arrived, and why."""
    _lost: str = attrs.field(default="", init=False)
    reset_at: float = attrs.field(default=math.inf, init=False)
    """From when on the receiver knows that it was reset."""
    refused_at: float = attrs.field(default=math.inf, init=False)
    """From when on the sender knows that what it sent met a closed end."""

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
                    self.fail_sender(trio.current_time(), "a send was cancelled")
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
                await self._wait(min(arrives, self._lost_at))
            data = bytes(self._arrived[:max_bytes])
            del self._arrived[: len(data)]
            self.received += len(data)
            self.wake()
            return data

    def strikes(self, blows: Iterable[tuple[float, Blow]]) -> None:
        """Have *blows* struck, each when so many bytes have left, in this order."""
        self._blows.extend(blows)
        self._strike()

    @property
    def unread(self) -> int:
        """How many bytes have arrived and were not received. Wakes nobody."""
        self._settle()
        return 0 if self._receive_closed else len(self._arrived)

    @property
    def was_reset(self) -> bool:
        """Whether its receiver knows that the other end was reset."""
        now = self._settle()
        return now >= self.reset_at or now >= self.other.refused_at

    def close_send(self) -> None:
        """End it from the sender's side."""
        self._send_closed = True
        self._end(trio.current_time(), None)
        self.wake()

    def close_receive(self) -> None:
        """Receive no more, which the sender hears of in time."""
        now = self._settle()
        self._receive_closed = True
        heard_at = self.other.heard_at(now)
        self.fail_sender(heard_at, "the other end was closed")
        if self._travelling:
            self._refuse(self._travelling[0][0])
        self.wake()

    def abandon(self) -> None:
        """Close both ways from this one's sender, who wants nothing to arrive."""
        now, why = self._settle(), "the other end was reset"
        self._send_closed = True
        heard_at = self.heard_at(now)
        if self._ends_at > now:
            self._ends_at = math.inf
        self.lose(heard_at, why)
        self.reset_at = min(self.reset_at, heard_at)
        self.other.fail_sender(heard_at, why)
        self.other.close_receive()
        self.wake()

    def heard_at(self, at: float) -> float:
        """Return when the far end hears of what happens at the near one."""
        return max(at + self.delay, self._stalled_until)

    def fail_sender(self, at: float, why: str) -> None:
        """Let nothing be sent from then on."""
        if at < self._fails_at:
            self._fails_at, self._fails = at, why

    def lose(self, at: float, why: str) -> None:
        """Let nothing be received from then on, nor arrive that has not yet."""
        self._travelling.clear()
        if at < self._lost_at:
            self._lost_at, self._lost = at, why

    def wake(self) -> None:
        """Have those look again who wait at either end."""
        self._changed.unpark_all()

    # What goes wrong at some time. Whoever sleeps wakes by then anyway.

    def cut(self, at: float, why: str) -> None:
        """Break at the sender's end: what has left still arrives."""
        self.fail_sender(at, why)
        self._end(at, why)
        self.other.lose(at, why)
        self.other.fail_sender(self.heard_at(at), why)

    def reset(self, at: float, why: str) -> None:
        """Break at both ends, both ways: what is on the way is lost."""
        for way in (self, self.other):
            way.fail_sender(at, why)
            way.lose(at, why)
            way.reset_at = min(way.reset_at, at)

    def half_close(self, at: float, why: str) -> None:
        """End it, and let the sender know."""
        self.fail_sender(at, why)
        self._end(at, None)

    def insert(self, at: float, data: bytes) -> None:
        """Put in what the sender did not send."""
        if math.inf == self._ends_at == self._lost_at:
            self._inserted += len(data)
            self._travel(at, data)

    def stall(self, at: float, seconds: float) -> None:
        """Let nothing arrive for so long that leaves from now on."""
        self._stalled_until = max(self._stalled_until, at + seconds)

    async def _send_pieces(self, data: memoryview) -> None:
        start, paced = trio.current_time(), 0
        while data:
            if await self._wait_room():
                start, paced = trio.current_time(), 0
            piece = data[: int(min(self._room, self._blow_at - self.sent, _PIECE))]
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
        self._travel(trio.current_time(), piece)
        self.wake()
        if self.sent >= self._blow_at:
            self._strike()

    def _travel(self, at: float, data: bytes) -> None:
        arrives = at + self.delay
        if self.jitter:
            if self._random is None:
                self._random = random.Random(self.seed)  # noqa: S311
            arrives += self.jitter * self._random.random()
        if at < self._stalled_until:
            arrives = max(arrives, self._stalled_until)
            self._held += len(data)
        if self._receive_closed:
            self._refuse(arrives)
        if self._lost_at == math.inf:
            self._travelling.append((arrives, data))

    def _strike(self) -> None:
        while self._blows and self._blows[0][0] <= self.sent:
            _, blow = self._blows.popleft()
            blow(trio.current_time())
        self._blow_at = self._blows[0][0] if self._blows else math.inf
        self.wake()
        self.other.wake()

    def _refuse(self, arrives: float) -> None:
        self.refused_at = min(self.refused_at, self.other.heard_at(arrives))

    def _end(self, at: float, why: str | None) -> None:
        # Behind an end that the sender made nothing can break.
        if self._ends_at == math.inf:
            self._ends_at, self._broken = self.heard_at(at), why

    @property
    def _room(self) -> float:
        self._settle()
        if self.window is None:
            return _UNREAD - len(self._arrived) - self._held
        return self.window - (self.sent + self._inserted - self.received)

    async def _wait_room(self) -> bool:
        """Wait until something can be sent; return whether that took waiting."""
        waited = False
        self._check_sender()
        while self._room <= 0:
            waited = True
            until = self._stalled_until if self._held else math.inf
            await self._wait(min(self._fails_at, until))
            self._check_sender()
        return waited

    def _check_sender(self) -> None:
        if self._send_closed:
            raise trio.ClosedResourceError("it was closed for sending")
        now = trio.current_time()
        if self.fate.next_at <= now:
            self.fate.fulfil(now)
        if now >= self._fails_at:
            raise trio.BrokenResourceError(self._fails)

    def _has_arrived(self) -> bool:
        """Whether there is something to receive, or the end."""
        if self._receive_closed:
            raise trio.ClosedResourceError("it was closed")
        now = self._settle()
        if now >= self._lost_at:
            raise trio.BrokenResourceError(self._lost)
        if self._arrived:
            return True
        if self._travelling or now < self._ends_at:
            return False
        if self._broken is not None:
            raise trio.BrokenResourceError(self._broken)
        return True

    def _settle(self) -> float:
        """Work out what has happened until now, and return when that is.

        Wakes nobody.
        """
        now = trio.current_time()
        if self.fate.next_at <= now:
            self.fate.fulfil(now)
        while self._travelling and self._travelling[0][0] <= now:
            _, piece = self._travelling.popleft()
            self._arrived += piece
        if self._held and self._stalled_until <= now:
            self._held = 0
        if self._lost_at <= now:
            self._arrived.clear()
        return now

    async def _wait(self, until: float) -> None:
        """Wait until then, or until something else changes."""
        with trio.move_on_at(min(until, self.fate.next_at)):
            await self._changed.park()
