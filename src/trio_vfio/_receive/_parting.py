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
    """The time in which a migration that has failed lets go of its source."""

    _until: float = attrs.field(default=math.inf, init=False)
    _shields: list[trio.CancelScope] = attrs.field(
        factory=list[trio.CancelScope], init=False
    )

    @property
    def has_begun(self) -> bool:
        """Whether the migration has failed."""
        return self._until < math.inf

    def begin(self) -> None:
        """The migration has failed. All shields now have a deadline."""
        self._until = trio.current_time() + PATIENCE
        for scope in self._shields:
            scope.deadline = self._until

    def end(self) -> None:
        """End what the shields protect, also where there was nothing to part from."""
        self._until = -math.inf
        for scope in self._shields:
            scope.cancel(reason="the session is over")

    @contextmanager
    def shielded(self) -> Generator[None]:
        """Keep the block from cancels, until it ends or the parting does."""
        with trio.CancelScope(shield=True, deadline=self._until) as scope:
            self._shields.append(scope)
            try:
                yield
            finally:
                self._shields.remove(scope)


async def discard(stream: trio.abc.Stream) -> None:
    """Read *stream* until the peer ends it, and keep nothing.

    Beneath the TLS, if there is any: that takes no alert for an end.
    If cancelled, what was read is gone as well.
    """
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while await plain_stream(stream).receive_some(_READ_SIZE):
            pass
