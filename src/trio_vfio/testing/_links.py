"""Connections in memory, for tests that need no sockets and no real time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import final

import attrs
import trio
import trio.testing

Connect = Callable[[], Awaitable[trio.abc.Stream]]


@final
@attrs.define(eq=False)
class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener whose connections are pairs of memory streams."""

    _send: trio.MemorySendChannel[trio.abc.Stream] = attrs.field(init=False)
    _accepted: trio.MemoryReceiveChannel[trio.abc.Stream] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # As a kernel's backlog: a connection is there before it is accepted.
        self._send, self._accepted = trio.open_memory_channel[trio.abc.Stream](4096)

    async def connect(self) -> trio.abc.Stream:
        """Open a connection and return its far end.

        Raises:
          trio.BrokenResourceError: if the listener is closed.
        """
        here, there = trio.testing.memory_stream_pair()
        await self._send.send(there)
        return here

    async def accept(self) -> trio.abc.Stream:
        """Wait for a connection and return the near end.

        If cancelled, no connection is lost.

        Raises:
          trio.ClosedResourceError: if the listener is closed.
        """
        return await self._accepted.receive()

    async def aclose(self) -> None:
        """Close the listener; connections stay open."""
        self._accepted.close()
        await trio.lowlevel.checkpoint()


def link() -> tuple[Connect, list[MemoryListener]]:
    """Make a link in memory.

    Returns: for the source what opens a connection, main first; and what
    `open_incoming` takes as the place where to receive.
    """
    listener = MemoryListener()
    return listener.connect, [listener]
