"""The worker threads of one device, and how they are told to end."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, final

import attrs
import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@final
@attrs.define(eq=False)
class Worker:
    """Runs a device's calls in threads: one at a time, each seen to end.

    An abort goes ``stop()``, then whatever ends a call that is stuck in the
    kernel (a reset, by way of `run_abort`), then ``await wait_idle()``; only
    after that is it safe to close a descriptor.
    """

    # Its own, so that no device waits for a thread of another device or of the
    # application; and an abort not for the thread that it is to end.
    _limiter: trio.CapacityLimiter = attrs.field(
        factory=lambda: trio.CapacityLimiter(2), init=False
    )
    _abort_limiter: trio.CapacityLimiter = attrs.field(
        factory=lambda: trio.CapacityLimiter(1), init=False
    )
    _ended: trio.Event = attrs.field(factory=_set_event, init=False)
    # Written in Trio's thread, read in the worker.
    _stopped: bool = attrs.field(default=False, init=False)

    async def restart(self) -> None:
        """Make ready for calls again after an abort. Waits until no call is under way.

        If cancelled, nothing has changed.
        """
        await self.wait_idle()
        self._stopped = False

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call *function* in a thread and wait until it has ended.

        If cancelled before, it is not called. If cancelled meanwhile, it is
        `check` that ends it; if it returns all the same, so does this.
        """
        ended = self._ended = trio.Event()
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)
        finally:
            ended.set()

    async def run_abort(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call *function* in a thread, beside a call that may be under way."""
        return await trio.to_thread.run_sync(
            function, *args, limiter=self._abort_limiter
        )

    def check(self) -> None:
        """Look, in the thread of a call, whether it shall end.

        Raises:
          trio.Cancelled: if the call was cancelled.
          OSError: (ECANCELED) if the device was aborted.
        """
        if self._stopped:
            raise OSError(errno.ECANCELED, "the device was aborted")
        trio.from_thread.check_cancelled()

    def stop(self) -> None:
        """Let the call that is under way end where it looks next. Does not wait."""
        self._stopped = True

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way."""
        return self._ended.is_set()

    async def wait_idle(self) -> None:
        """Wait until no call is under way."""
        await self._ended.wait()
