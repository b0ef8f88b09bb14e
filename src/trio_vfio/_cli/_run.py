"""Run a command until it ends or a signal ends it."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable

import trio

Work = Callable[[], Awaitable[object]]


def run(work: Work) -> signal.Signals | None:
    """Run *work* under Trio; the first SIGINT or SIGTERM cancels it.

    The second ends the process then and there.

    Returns: the signal that cancelled it; None if it came to its own end.

    Raises:
      Exception: what *work* raises.
    """
    return trio.run(_supervise, work)


async def _supervise(work: Work) -> signal.Signals | None:
    failure: Exception | None = None
    scope = trio.CancelScope()
    received: list[signal.Signals] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(_cancel_on_signal, scope, received)
        with scope:
            # Caught here, so that it does not leave the nursery as a group.
            try:
                await work()
            except Exception as exc:  # noqa: BLE001 (raised below)
                failure = exc
        nursery.cancel_scope.cancel(reason="the command has ended")
    if failure is not None:
        raise failure
    return received[0] if scope.cancelled_caught else None


async def _cancel_on_signal(  # noqa: ASYNC114
    scope: trio.CancelScope,
    received: list[signal.Signals],
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if received:
                os._exit(128 + number)
            received.append(signal.Signals(number))
            scope.cancel(reason=f"by {received[0].name}")
