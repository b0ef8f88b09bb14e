"""One side of a simulated migration, looked at whenever nothing can run.

Then every task waits: for bytes, for time, for a device, for memory. What is so
at such a moment stays so until one of them comes, so it must be how it should be.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Final, final

import attrs
import trio

from ... import Incoming, Outgoing
from ..._receive._session import Session as IncomingSession
from ..._send._session import Session as OutgoingSession
from .._at_rest import held_up, over_limits
from .._links import Link
from ._events import EventLog
from ._parts import Side
from ._violations import Violations

_SWITCHOVER_START: Final = "loadvm_process_command com=SWITCHOVER_START"


@attrs.define(eq=False, kw_only=True)
class Watch(abc.ABC):
    """What is known of one side while it runs."""

    side: Side
    log: EventLog
    violations: Violations
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Around all of that side, for a cancel from outside."""
    stopped_at: float | None = attrs.field(default=None, init=False)
    """When it was found to be cancelled, from in- or outside, and nothing could run."""
    last_call_end: float = attrs.field(default=0.0, init=False)
    """When a device call ended last; as all times, since the migration began."""
    ended_at: float | None = attrs.field(default=None, init=False)
    """When its block was left."""

    @property
    @abc.abstractmethod
    def session(self) -> IncomingSession | OutgoingSession | None:
        """The session, once there is one."""

    @property
    def switched_over(self) -> bool:
        """Whether a device may be loaded."""
        return True

    @property
    def is_cancelled(self) -> bool:
        """Whether it has to end, and without success."""
        if self.session is None or self.session.stop.completed:
            return False
        return self.scope.cancel_called or self.session.stop.tasks.cancel_called

    def has_stopped_for(self, seconds: float) -> bool:
        """Whether it was cancelled that long ago, and every task knows."""
        if self.stopped_at is None or not self.is_cancelled:
            return False
        return self.log.now() >= self.stopped_at + seconds - 1e-9

    def call_ended(self) -> None:
        """A device call has ended."""
        self.last_call_end = self.log.now()

    def violated(self, invariant: str, what: str) -> None:
        """Note that an invariant does not hold."""
        self.violations.add(invariant, what)

    def look(self) -> None:
        """Check what must be so whenever nothing can run."""
        if self.ended_at is not None or self.session is None:
            return
        if self.stopped_at is None and self.is_cancelled:
            self.stopped_at = self.log.now()
        self._look()

    @abc.abstractmethod
    def _look(self) -> None: ...


@final
@attrs.define(eq=False, kw_only=True)
class SourceWatch(Watch):
    """The source."""

    guest_stopped: bool = attrs.field(default=False, init=False)
    """Whether the guest stands still, by what the user of the source says."""
    outgoing: Outgoing | None = attrs.field(default=None, init=False)

    @property
    def session(self) -> OutgoingSession | None:
        """The session, once there is one."""
        if self.outgoing is None:
            return None
        return self.outgoing._session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def _look(self) -> None:
        assert self.session is not None
        for device in self.session.all_devices():
            share = device.share
            if share.held > share.limit:
                held = f"{device.name} at the source holds {share.held} buffers"
                self.violated("memory", f"{held}; the most is {share.limit}")


@final
@attrs.define(eq=False, kw_only=True)
class DestinationWatch(Watch):
    """The destination."""

    link: Link
    incoming: Incoming | None = attrs.field(default=None, init=False)
    _seen: int = attrs.field(default=0, init=False)
    """How many events were searched for the switchover."""
    _switched_over: bool = attrs.field(default=False, init=False)

    @property
    def session(self) -> IncomingSession | None:
        """The session, once there is one."""
        if self.incoming is None:
            return None
        return self.incoming._session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    @property
    def switched_over(self) -> bool:
        """Whether SWITCHOVER_START has come."""
        if not self._switched_over:
            new = self.log.events[self._seen :]
            self._seen = len(self.log.events)
            self._switched_over = any(e.what.startswith(_SWITCHOVER_START) for e in new)
        return self._switched_over

    @property
    def main_received(self) -> int:
        """How many bytes have come on main."""
        return self.link.connections["main"].received

    def _look(self) -> None:
        assert self.session is not None
        router = self.session.router
        if not self.is_cancelled:
            for what in held_up(router, self._unread):
                self.violated("delivery", what)
        most = self.session.options.max_session_bytes
        for what in over_limits(list(router.devices.values()), most):
            self.violated("memory", what)

    def _unread(self, channel_id: int) -> int:
        connection = self.link.connections.get(channel_id)
        return 0 if connection is None else connection.unread


@final
@attrs.define(eq=False)
class Idle(trio.abc.Instrument):
    """Has every side looked at whenever nothing can run."""

    watches: Sequence[Watch] = ()

    def before_io_wait(self, timeout: float) -> None:
        """Look, unless a task can run, or could if the time were looked at."""
        now = trio.lowlevel.current_statistics()
        if now.tasks_runnable or now.seconds_to_next_deadline <= 0:
            return
        for watch in self.watches:
            watch.look()
