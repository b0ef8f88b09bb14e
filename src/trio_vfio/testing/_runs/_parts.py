"""What a migration in virtual time is made of, and what can go wrong in it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, final

import attrs

from .._costs import Cost
from .._faults import DeviceFault, LinkFault

Side: TypeAlias = Literal["source", "destination"]

GRACE: Final = 1.0
"""Seconds that a device call may take after a cancel before the device is aborted."""


@final
@attrs.frozen(kw_only=True)
class DevicePlan:
    """One device, at both ends, as long as nothing goes wrong."""

    size: int
    """Bytes of state in all."""
    initial_bytes: int = 0
    dirty_bytes: int = 0
    dirty_per_second: float = 0.0
    ends_precopy: bool = False
    most_per_read: int | None = None
    """These as in `SimulatedSource`."""
    config: bytes = b""
    takes_precopy: bool | None = None
    """Whether the sink says that it takes data before switchover."""
    read_seconds: Cost = 0.0
    """What each call of the source takes, and each buffer."""
    write_seconds: Cost = 0.0
    """The same at the sink."""
    threaded: bool = False
    """Whether the sink works as one that calls a thread."""


@final
@attrs.frozen
class SourceFault:
    """A fault of a device at the source."""

    device: int
    """Its place in the plan, from 0."""
    fault: DeviceFault


@final
@attrs.frozen
class SinkFault:
    """A fault of a device at the destination."""

    device: int
    """Its place in the plan, from 0."""
    fault: DeviceFault


@final
@attrs.frozen(kw_only=True)
class Cancel:
    """One side is cancelled from outside. Give one of the two, time or event."""

    side: Side
    at_time: float | None = None
    """In seconds since the migration began."""
    at_event: int | str | None = None
    """When so many events have happened in all; or at the first one that begins so,
    as ``migrate_send_rp_message``."""

    def __attrs_post_init__(self) -> None:
        if (self.at_time is None) == (self.at_event is None):
            raise ValueError("a cancel needs a time or the number of an event")


@final
@attrs.frozen
class CallbackFault:
    """A function of the caller's raises."""

    name: Literal["before_switchover", "before_shut"]


Fault: TypeAlias = SourceFault | SinkFault | LinkFault | Cancel | CallbackFault
