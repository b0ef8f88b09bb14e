"""Run a command until it ends or a signal ends it.

Signal handlers run in the main thread, between any two instructions. The handler here
raises nothing, so a signal can interrupt no device call and no cleanup: it notes the
signal and has Trio's loop cancel the work. Python's own handler, and Trio's in place of
it, would raise KeyboardInterrupt in whichever task runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import final

import attrs
import click
import trio

from ._plain import show_error, show_note

Work = Callable[[], Awaitable[object]]


def run(work: Work, *, what: str = "") -> signal.Signals | None:
    """Run *work* under Trio; the first SIGINT, SIGTERM or SIGHUP cancels it.

    The cancel is announced on stderr at once, as an error. *work* may then need some
    seconds to clean up. If it completes nevertheless, that is said, too.

    The second signal ends the process then and there. The handlers stay when *work* has
    ended: a signal that comes too late must not hide what was achieved. SIGHUP stays
    ignored if it is ignored when this is called, as by ``nohup``.

    Args:
      work: the work of the command. A cancel reaches it from outside.
      what: what is cancelled, for the announcement; nothing is the whole command.

    Returns: the signal that cancelled it; None if it came to its own end.

    Raises:
      Exception: what *work* raises.
    """
    interruption = _Interruption(f"{what} cancelled" if what else "cancelled")
    for number in filter(_is_ours, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
        signal.signal(number, interruption.note)
    trio.run(partial(interruption.supervise, work))
    return interruption.outcome()


@contextmanager
def signals_as_interrupts() -> Generator[list[signal.Signals]]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as SIGINT does.

    That is for work without Trio. SIGHUP stays ignored if it is.

    Yields: those of the two that have come.

    Raises:
      click.exceptions.Exit: in place of a KeyboardInterrupt that leaves the block, with
        the exit status for the signal.
    """
    received: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        # Whoever handles SIGINT for a while, as simulations do, handles this.
        signal.raise_signal(signal.SIGINT)

    # SIGINT, too: a shell lets what it runs in the background ignore it.
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: note,
        signal.SIGHUP: note,
    }
    before = {each: signal.getsignal(each) for each in handlers if _is_ours(each)}
    for number in before:
        signal.signal(number, handlers[number])
    try:
        yield received
    except KeyboardInterrupt:
        number = received[0] if received else signal.SIGINT
        raise click.exceptions.Exit(128 + number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ours(number: signal.Signals) -> bool:
    return number is not signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN


def show_too_late(number: signal.Signals) -> None:
    """Say that the migration is complete although *number* has cancelled it."""
    show_note(f"complete nevertheless: {number.name} came too late")


@final
@attrs.define(eq=False)
class _Interruption:
    """Cancels the work when the first signal comes, and announces that."""

    verb: str
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Around the work."""
    _received: signal.Signals | None = attrs.field(default=None, init=False)
    """The first signal. The handler sets it, and nobody else."""
    _token: trio.lowlevel.TrioToken | None = attrs.field(default=None, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    """Whether the work has ended, so that there is nothing to cancel any more."""
    _announced: bool = attrs.field(default=False, init=False)

    def note(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        if self._received is None:
            self._received = signal.Signals(number)
            if self._token is not None:
                with suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._cancel)
        else:
            os._exit(128 + number)

    async def supervise(self, work: Work) -> None:
        """Run *work*. If a signal cancels it, it ends by that."""
        # Set before the check, so that no signal goes unseen between the two.
        self._token = trio.lowlevel.current_trio_token()
        if self._received is not None:
            self._cancel()
        try:
            with self._scope:
                await work()
        finally:
            self._ended = True

    def outcome(self) -> signal.Signals | None:
        """Return the signal that has cancelled the work, or None. Announce it."""
        if self._received is None:
            return None
        if self._scope.cancelled_caught:
            self._announce()
            return self._received
        if self._announced:
            show_too_late(self._received)
        return None

    def _cancel(self) -> None:
        if self._ended:
            return
        assert self._received is not None
        self._scope.cancel(reason=f"by {self._received.name}")
        trio.lowlevel.spawn_system_task(self._announce_soon)

    async def _announce_soon(self) -> None:
        """Announce the cancel. If cancelled, because the loop ends: `outcome` does."""
        # Tasks that were cancelled are run once meanwhile. A progress display takes
        # itself away then, and would take a line that is written before with it.
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        if not self._ended:
            self._announce()

    def _announce(self) -> None:
        assert self._received is not None
        if not self._announced:
            self._announced = True
            show_error(f"{self.verb} by {self._received.name}")
