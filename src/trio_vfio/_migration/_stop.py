"""The one way in which a session ends before its time: a fault is recorded."""

from __future__ import annotations

import logging
from typing import Final, cast, final

import attrs
import trio

from .._errors import ConnectionLost, PeerProtocolError, TrioVfioError

log: Final = logging.getLogger("trio_vfio")


@final
@attrs.define(eq=False)
class Stop:
    """Collects the faults of a session's tasks; the first cancels all of them."""

    tasks: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Around all tasks of the session."""
    body: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Around the caller's block."""
    faults: list[TrioVfioError] = attrs.field(factory=list[TrioVfioError], init=False)
    completed: bool = attrs.field(default=False, init=False)
    """Whether the migration has succeeded, after which nothing can fail it."""
    last_word: trio.Event | None = attrs.field(default=None, init=False)
    """There while the source is being told of success, and set when it was told or
    cannot be. Meanwhile nobody knows whether it has let go of its devices, so
    neither a fault nor a cancel may make us drop them."""

    abort_after: trio.Event | None = attrs.field(default=None, init=False)
    """If there, no device is aborted before it is set: until then the other side may
    still succeed, and then the devices are its own."""

    def fail(self, fault: TrioVfioError) -> None:
        """Record *fault* and cancel the session, if it has not succeeded."""
        if self.completed:
            log.info("after the migration: %s", fault)
            return
        ending = self.tasks.cancel_called or any(map(_is_end, self.faults))
        if ending and _is_end(fault):
            # After a cancel connections end because of it; after the end of one, the
            # others end with it, and the first to be noticed says it all.
            log.info("after the end: %s", fault)
        else:
            log.debug("fault: %s", fault)
            self.faults.append(fault)
        if self.last_word is None or self.last_word.is_set():
            self.cancel(f"failed: {fault}")

    def succeed(self) -> None:
        """The source has let go: from now on the devices are ours."""
        self.completed = True
        for fault in self.faults:
            log.info("after the migration: %s", fault)
        self.faults.clear()

    def cancel(self, reason: str) -> None:
        """Cancel the session and the caller's block. Does not wait."""
        self.tasks.cancel(reason=reason)
        self.body.cancel(reason=reason)


def _is_end(fault: TrioVfioError) -> bool:
    """Whether *fault* is that a connection has ended, one way or another."""
    if isinstance(fault, PeerProtocolError):
        return fault.ended
    return isinstance(fault, ConnectionLost)


def split_cancelled(
    error: BaseException,
) -> tuple[BaseException | None, BaseException | None]:
    """Split *error* into what is a cancel and what is not.

    A function with tasks of its own may be cancelled and fail at once.
    """
    if isinstance(error, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", error).split(trio.Cancelled)
    return (error, None) if isinstance(error, trio.Cancelled) else (None, error)
