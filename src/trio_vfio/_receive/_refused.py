"""Multifd channels that are refused: read all the same, and blamed if one is missing."""

from __future__ import annotations

from typing import Final, final

import attrs
import trio

from .._errors import PeerProtocolError
from ._parting import discard
from ._session import Session

_SILENCE: Final = 1.0
"""Seconds that a source may be silent after its guest has stopped, where a channel was
refused that may be its own."""

_MOST: Final = 64
"""How many are read at a time. More are closed."""


class RefusedError(Exception):
    """A multifd channel, but none of this migration as far as can be known."""


@final
@attrs.define(eq=False)
class RefusedChannels:
    """Those of a session, which stay open: their source may not bear a close."""

    session: Session
    _why: str = attrs.field(default="", init=False)
    """Why the last one was refused."""
    _open: int = attrs.field(default=0, init=False)

    def add(self, why: str) -> None:
        """Take note of one."""
        if not self._why:
            self.session.spawn(self._watch)
        self._why = why

    def keep(self, stream: trio.abc.Stream) -> bool:
        """Have *stream* read, and what it says dropped, while the session lasts.

        Returns: whether that is so; False if there are too many already.
        """
        if self._open == _MOST:
            return False
        self._open += 1
        self.session.spawn(self._discard, stream)
        return True

    async def _discard(self, stream: trio.abc.Stream) -> None:
        await discard(stream)
        self._open -= 1

    async def _watch(self) -> None:
        """Fail soon if one of them seems to be what is missing.

        Raises:
          PeerProtocolError: if the source says nothing more after its guest has stopped.
        """
        activity, router = self.session.activity, self.session.router
        await activity.switchover_began.wait()
        if not await activity.silent_for(_SILENCE, activity.loaded):
            return
        # One that has stopped inside a packet has more to say.
        if not any(channel.inside_packet for channel in router.channels.values()):
            waiting_for = router.waiting_for()
            raise PeerProtocolError(
                f"{waiting_for}; a channel was refused: {self._why}"
            )
