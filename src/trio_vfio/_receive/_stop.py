"""The one way in which a session ends before its time: a fault is recorded."""

from __future__ import annotations

import logging
from typing import Final, final

import attrs
import trio

from .._errors import TrioVfioError

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

    def fail(self, fault: TrioVfioError) -> None:
        """Record *fault* and cancel the session, if it has not succeeded."""
        if self.completed:
            log.info("after the migration: %s", fault)
            return
        log.debug("fault: %s", fault)
        self.faults.append(fault)
        self.cancel(f"failed: {fault}")

    def cancel(self, reason: str) -> None:
        """Cancel the session and the caller's block. Does not wait."""
        self.tasks.cancel(reason=reason)
        self.body.cancel(reason=reason)
