"""Run a command until it ends or a signal ends it.

Signal handlers run in the main thread, between any two instructions. The handler here
raises nothing, so a signal can interrupt no device call and no cleanup: it notes the
signal and has Trio's loop cancel the work. Python's own handler, and Trio's in place of
it, would raise KeyboardInterrupt in whichever task runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType

import trio

Work = Callable[[], Awaitable[object]]


def run(work: Work) -> signal.Signals | None:
    """Run *work* under Trio; the first SIGINT or SIGTERM cancels it.

    The second ends the process then and there. The handlers stay when *work* has
    ended: a signal that comes too late must not hide what was achieved.

    Returns: the signal that cancelled it; None if it came to its own end.

    Raises:
      Exception: what *work* raises.
    """
    received: list[signal.Signals] = []
    scope = trio.CancelScope()
    token: trio.lowlevel.TrioToken | None = None

    def cancel() -> None:
        scope.cancel(reason=f"by {received[0].name}")

    def note(number: int, _: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(signal.Signals(number))
        if token is not None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(cancel)

    async def supervise() -> None:
        nonlocal token
        # Set before the check, so that no signal goes unseen between the two.
        token = trio.lowlevel.current_trio_token()
        if received:
            cancel()
        with scope:
            await work()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    trio.run(supervise)
    return received[0] if scope.cancelled_caught else None
