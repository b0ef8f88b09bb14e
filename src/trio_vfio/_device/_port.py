"""All that a session knows of a device: what it can be asked to do.

Sessions only ever see this protocol, so anything that fulfils it can be
migrated: a kernel device, a file, a simulation in virtual time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class StateSink(Protocol):
    """A device that takes migration state.

    The session calls `begin` once, then `write` any number of times, then
    `load_config` at most once, then `finish` once; never two of them at a time.

    Only `abort` may come at any time after `begin` was called, also while
    another call is under way or after `finish` returned. It comes at most once,
    and nothing comes after it. A session that succeeds never calls it.

    Cancellation: a session is cancelled at any moment, by a fault elsewhere or
    by its user. A call that changes the device must then be seen to end, so it
    is waited for (a worker thread: ``abandon_on_cancel=False``; a simulation: a
    shielded scope around each step), and raises `trio.Cancelled` at its next
    safe point. What any call raises after `abort` was called is dropped.

    Errors: anything but `trio.Cancelled` that a call raises fails the migration.
    An `OSError` is reported with its errno.
    """

    @property
    def precopy(self) -> bool | None:
        """Whether the device takes data before switchover; None if it cannot say.

        Asked only to decide when to acknowledge the switchover.
        """
        ...

    async def begin(self) -> None:
        """Make ready to take state.

        If it raises, it has cleaned up after itself: no `abort` follows.
        """
        ...

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Write all of *buffers*, none of them empty, in order.

        Asking for the next one says that the last one is written. The iterator
        ends early when the session stops; the call then just returns. It may be
        walked from a worker thread. Each view is valid only until the next one
        is asked for.
        """
        ...

    async def load_config(self, blob: bytes) -> None:
        """Take the device's config blob, which comes after all data."""
        ...

    async def finish(self) -> None:
        """Accept the state as a whole, or raise: the last word on it."""
        ...

    async def abort(self) -> None:
        """Drop all that was taken, and end any call that is still under way."""
        ...
