"""What happens in a simulated migration, on both sides, in one line of time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import final

import attrs
import trio

from ... import TraceEvent


@final
@attrs.frozen
class Event:
    """Something that happened."""

    time: float
    """In seconds since the migration began."""
    who: str
    """``source``, ``destination``, or a device at one of them, as
    ``0000:00:04.0/vfio at the source``."""
    what: str
    """A line of `TraceEvent`, or a call of the device."""

    def __str__(self) -> str:
        return f"{self.time:12.6f}  {self.who}: {self.what}"


@final
@attrs.define(eq=False)
class EventLog:
    """All events, in order; something may be done at one of them.

    The clock begins with the migration, as a new mock clock does.
    """

    events: list[Event] = attrs.field(factory=list[Event], init=False)
    at_number: dict[int, Callable[[], None]] = attrs.field(
        factory=dict[int, Callable[[], None]], init=False
    )
    """What to do at once when there are so many events."""
    at_first: dict[str, Callable[[], None]] = attrs.field(
        factory=dict[str, Callable[[], None]], init=False
    )
    """What to do at once at the first event that begins so."""
    _time: float = attrs.field(default=0.0, init=False)

    def add(self, who: str, what: str) -> None:
        """Note an event of now."""
        self.events.append(Event(self.now(), who, what))
        if (call := self.at_number.pop(len(self.events), None)) is not None:
            call()
        for begin in [begin for begin in self.at_first if what.startswith(begin)]:
            self.at_first.pop(begin)()

    def hook(self, who: str) -> Callable[[TraceEvent], None]:
        """Return what notes all trace events of one side."""

        def note(event: TraceEvent) -> None:
            self.add(who, str(event))

        return note

    def now(self) -> float:
        """Return the time, in seconds since the migration began."""
        # In a device's thread there is no virtual time: as the event before.
        with suppress(RuntimeError):
            self._time = trio.current_time()
        return self._time


def digest(events: tuple[Event, ...]) -> str:
    """Return the SHA-256 of *events*, in hex."""
    lines = (f"{event.time!r} {event.who} {event.what}\n" for event in events)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
