"""When something last happened, and what must happen in time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

import attrs
import trio

from .._deadlines import Deadlines
from .._errors import DeadlineExceeded


@final
@attrs.define(eq=False)
class Activity:
    """The session's sense of time: its tasks report here, `watch_*` wait."""

    deadlines: Deadlines

    first_byte_at: float | None = attrs.field(default=None, init=False)
    switchover_at: float | None = attrs.field(default=None, init=False)
    completed_at: float | None = attrs.field(default=None, init=False)
    connected: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when the first connection of a source is known for what it is."""
    main_came: trio.Event = attrs.field(factory=trio.Event, init=False)
    switchover_began: trio.Event = attrs.field(factory=trio.Event, init=False)
    loaded: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when nothing is expected of the source any more."""
    calls: int = attrs.field(default=0, init=False)
    """Device calls that are under way."""
    _last: float = attrs.field(default=0.0, init=False)
    _clock: trio.abc.Clock = attrs.field(
        factory=trio.lowlevel.current_clock, init=False
    )
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _waiting: int = attrs.field(default=0, init=False)
    """Of the calls under way, those that wait for this session; guarded by the lock."""

    def touch(self) -> None:
        """Something has happened: bytes came, or a device call ended.

        May be said in any thread.
        """
        self._last = self._clock.current_time()

    @contextmanager
    def call_waiting(self) -> Generator[None]:
        """The device call that runs in this thread waits, and not for its device."""
        self.touch()
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def connection_came(self, *, is_main: bool) -> None:
        """A connection of a source is known for what it is."""
        self.touch()
        if self.first_byte_at is None:
            self.first_byte_at = self._last
        self.connected.set()
        if is_main:
            self.main_came.set()

    def begin_switchover(self) -> None:
        """The source's guest stands still."""
        self.touch()
        self.switchover_at = self._last
        self.switchover_began.set()

    def complete(self) -> None:
        """The last device has accepted its state."""
        self.completed_at = trio.current_time()
        self.loaded.set()

    @property
    def seconds(self) -> float:
        """From the first byte to completion, or to now."""
        if self.first_byte_at is None:
            return 0.0
        if self.completed_at is None:
            return trio.current_time() - self.first_byte_at
        return self.completed_at - self.first_byte_at

    @property
    def switchover_seconds(self) -> float | None:
        """From the switchover to completion."""
        if self.switchover_at is None or self.completed_at is None:
            return None
        return self.completed_at - self.switchover_at

    async def watch_first_connection(self) -> None:
        """Wait for a source.

        Raises:
          DeadlineExceeded: if none comes in time.
        """
        if (seconds := self.deadlines.first_connection) is None:
            return
        with trio.move_on_after(seconds):
            await self.connected.wait()
            return
        raise DeadlineExceeded("first_connection", seconds, "no source has connected")

    async def watch_switchover(self, waiting_for: Callable[[], str]) -> None:
        """Give the switchover its time.

        Args:
          waiting_for: says what has not come.

        Raises:
          DeadlineExceeded: when it is over and not all is loaded.
        """
        if (seconds := self.deadlines.switchover) is None:
            return
        await self.switchover_began.wait()
        with trio.move_on_after(seconds):
            await self.loaded.wait()
            return
        raise DeadlineExceeded("switchover", seconds, waiting_for())

    async def watch_silence(
        self,
        since: trio.Event,
        until: trio.Event,
        waiting_for: Callable[[], str],
        drained: Callable[[], object] = lambda: None,
    ) -> None:
        """Watch from *since* until *until*, while the other side must not be silent.

        Args:
          waiting_for: says what has not come.
          drained: returns something else when the other side has taken bytes, which
            nobody else reports here: the system may send what it was given for
            longer than the deadline. What that says is noticed a little late.

        Raises:
          DeadlineExceeded: if nothing happens.
        """
        if (seconds := self.deadlines.silence) is None:
            return
        await since.wait()
        if await self.silent_for(seconds, until, drained):
            raise DeadlineExceeded("silence", seconds, waiting_for())

    async def silent_for(
        self,
        seconds: float,
        until: trio.Event,
        drained: Callable[[], object] = lambda: None,
    ) -> bool:
        """Wait until nothing has happened for so long: True; or until *until*: False.

        Args:
          drained: as in `watch_silence`.
        """
        before = drained()
        while not until.is_set():
            if (now := drained()) != before:
                before = now
                self.touch()
            if self.calls > self._waiting:
                # Its end counts as an event, so it is soon enough to look then.
                self.touch()
            left = self._last + seconds - trio.current_time()
            if left <= 0:
                return True
            with trio.move_on_after(left if now is None else min(left, seconds / 8)):
                await until.wait()
        return False
