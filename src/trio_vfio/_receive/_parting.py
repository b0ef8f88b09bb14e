"""How a migration that fails lets go of its source: word first, then patience.

A QEMU whose channels break while it still sends may abort, or hang with its big lock
held: either way its guest is lost (``multifd_send_thread``,
``multifd_send_sync_main``). What it can bear is to hear of the failure, to lose main,
and then to end its channels itself. So nobody closes them before it does, and what it
still sends is read and discarded.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final, final

import attrs
import trio

from .._link._stream import plain_stream

PATIENCE: Final = 5.0
"""Seconds from the fault that a source has to close its channels."""

_READ_SIZE: Final = 256 * 1024


@final
@attrs.define(eq=False)
class Parting:
    """When it began, and what it keeps from being cancelled until it ends."""

    _until: float = attrs.field(default=math.inf, init=False)
    _shields: dict[trio.CancelScope, float] = attrs.field(
        factory=dict[trio.CancelScope, float], init=False
    )
    """With the seconds that each may go on when the parting has begun."""

    @property
    def has_begun(self) -> bool:
        """Whether the migration has failed."""
        return self._until < math.inf

    def begin(self) -> None:
        """The migration has failed. All shields now have a deadline."""
        self._until = trio.current_time() + PATIENCE
        for scope, patience in self._shields.items():
            scope.deadline = self._deadline(patience)

    def end(self) -> None:
        """End what the shields protect, also where there was nothing to part from."""
        self._until = -math.inf
        for scope in self._shields:
            scope.cancel(reason="the session is over")

    @contextmanager
    def shielded(self, patience: float = math.inf) -> Generator[None]:
        """Keep the block from cancels, until it ends or the parting does.

        Args:
          patience: seconds that it may go on when the parting has begun; inf: all of it.
        """
        with trio.CancelScope(shield=True) as scope:
            self._shields[scope] = patience
            scope.deadline = self._deadline(patience)
            try:
                yield
            finally:
                del self._shields[scope]

    def _deadline(self, patience: float) -> float:
        if not self.has_begun:
            return math.inf
        return min(self._until, trio.current_time() + patience)


async def discard(stream: trio.abc.Stream) -> None:
    """Read *stream* until the peer ends it, and keep nothing.

    Beneath the TLS, if there is any: that takes no alert for an end.
    If cancelled, what was read is gone as well.
    """
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while await plain_stream(stream).receive_some(_READ_SIZE):
            pass
