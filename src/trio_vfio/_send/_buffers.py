"""Memory for data on its way from a device to a channel, used over and over."""

from __future__ import annotations

from typing import final

import attrs
import trio


@final
@attrs.define(eq=False)
class Share:
    """How many of a pool's buffers one device has, and may have."""

    limit: int
    held: int = attrs.field(default=0, init=False)


@final
@attrs.define(eq=False)
class BufferPool:
    """The buffers of a session.

    Last in, first out: what was just sent is still in the processor's cache.
    """

    size: int
    """Of each, in bytes."""
    limit: int
    """How many there may be."""

    _free: list[bytearray] = attrs.field(factory=list[bytearray], init=False)
    _made: int = attrs.field(default=0, init=False)
    _given_back: trio.Condition = attrs.field(factory=trio.Condition, init=False)

    async def take(self, share: Share, most: int) -> list[bytearray]:
        """Take as many buffers as may be taken, up to *most*; wait for at least one.

        If cancelled, none was taken.
        """
        async with self._given_back:
            while not (count := min(most, self._room(share))):
                await self._given_back.wait()
            share.held += count
            return [self._take() for _ in range(count)]

    async def give_back(self, share: Share, buffers: list[bytearray]) -> None:
        """Give *buffers* back, for whoever waits for one."""
        share.held -= len(buffers)
        self._free += buffers
        async with self._given_back:
            self._given_back.notify_all()

    def _room(self, share: Share) -> int:
        return min(share.limit - share.held, len(self._free) + self.limit - self._made)

    def _take(self) -> bytearray:
        if self._free:
            return self._free.pop()
        self._made += 1
        return bytearray(self.size)
