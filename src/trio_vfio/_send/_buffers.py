"""Memory for data on its way from a device to a channel, used over and over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import final

import attrs
import trio

from .._migration._home import Home
from .._migration._pages import new_buffer


@final
@attrs.define(eq=False)
class Share:
    """How many of a pool's buffers one device has, and may have."""

    limit: int
    held: int = attrs.field(default=0, init=False)


@final
@attrs.define(eq=False)
class _Wish:
    """Somebody who waits for up to *most* buffers."""

    share: Share
    most: int
    notify: Callable[[], None]
    """Called when it need not wait any more."""
    buffers: list[memoryview] = attrs.field(factory=list[memoryview], init=False)
    """What it has got."""


@final
@attrs.define(eq=False)
class BufferPool:
    """The buffers of a session, for tasks and for threads. All of it is thread-safe.

    Last in, first out: what was just sent is still in the processor's cache. Who
    waits longest is served first.
    """

    size: int
    """Of each, in bytes."""
    limit: int
    """How many there may be."""

    _home: Home = attrs.field(factory=Home, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    # What follows is guarded by it, and so is what each share holds.
    _free: list[memoryview] = attrs.field(factory=list[memoryview], init=False)
    _made: int = attrs.field(default=0, init=False)
    _wishes: list[_Wish] = attrs.field(factory=list[_Wish], init=False)
    _stopped: bool = attrs.field(default=False, init=False)

    async def take(self, share: Share, most: int) -> list[memoryview]:
        """Take as many buffers as may be taken, up to *most*; wait for at least one.

        If cancelled, none was taken.
        """
        await trio.lowlevel.checkpoint()
        fulfilled = trio.Event()
        wish = _Wish(share, most, partial(self._home.call, fulfilled.set))
        self._ask(wish)
        try:
            await fulfilled.wait()
            if not wish.buffers:
                # It was stopped: the cancel is about to come.
                await trio.sleep_forever()
        except trio.Cancelled:
            self.give_back(share, *self._withdraw(wish))
            raise
        return wish.buffers

    def take_now(self, share: Share) -> memoryview | None:
        """Take one buffer; None: that would mean to wait."""
        with self._lock:
            if self._stopped or not self._room(share):
                return None
            return self._take(share, 1)[0]

    def take_in_thread(self, share: Share) -> memoryview | None:
        """Wait for a buffer, in a thread that is not Trio's; None: it was stopped."""
        box: SimpleQueue[None] = SimpleQueue()
        wish = _Wish(share, 1, partial(box.put, None))
        self._ask(wish)
        box.get()
        return wish.buffers[0] if wish.buffers else None

    def give_back(self, share: Share, *buffers: memoryview) -> None:
        """Give *buffers* back, for whoever waits for one."""
        with self._lock:
            share.held -= len(buffers)
            self._free += buffers
            fulfilled = self._fulfil()
        _notify(fulfilled)

    def stop(self) -> None:
        """Let no thread wait for a buffer any more; tasks are cancelled instead."""
        with self._lock:
            self._stopped = True
            fulfilled = self._fulfil()
        _notify(fulfilled)

    def _ask(self, wish: _Wish) -> None:
        with self._lock:
            self._wishes.append(wish)
            fulfilled = self._fulfil()
        _notify(fulfilled)

    def _withdraw(self, wish: _Wish) -> list[memoryview]:
        with self._lock:
            if wish in self._wishes:
                self._wishes.remove(wish)
            return wish.buffers

    def _fulfil(self) -> list[_Wish]:
        """Fulfil what can be, and return it, to be notified without the lock."""
        if self._stopped:
            fulfilled, self._wishes = self._wishes, []
            return fulfilled
        fulfilled = [wish for wish in self._wishes if self._fulfil_one(wish)]
        for wish in fulfilled:
            self._wishes.remove(wish)
        return fulfilled

    def _fulfil_one(self, wish: _Wish) -> bool:
        count = min(wish.most, self._room(wish.share))
        wish.buffers = self._take(wish.share, count)
        return count > 0

    def _room(self, share: Share) -> int:
        return min(share.limit - share.held, len(self._free) + self.limit - self._made)

    def _take(self, share: Share, count: int) -> list[memoryview]:
        share.held += count
        return [self._free_or_new() for _ in range(count)]

    def _free_or_new(self) -> memoryview:
        if self._free:
            return self._free.pop()
        self._made += 1
        return new_buffer(self.size)


def _notify(fulfilled: list[_Wish]) -> None:
    for wish in fulfilled:
        wish.notify()
