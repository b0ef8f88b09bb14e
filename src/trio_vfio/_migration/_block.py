"""A migration beside the caller's block, and what leaves the two of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from .._errors import MigrationFailed
from ._migration import Migration
from ._stop import split_cancelled


@asynccontextmanager
async def beside(
    migration: Migration, run: Callable[[], Awaitable[None]]
) -> AsyncGenerator[None]:
    """Run *migration* in a task of its own while the ``async with`` block runs.

    A fault cancels the block. Leaving the block early ends the migration.

    Args:
      run: runs the migration, and then closes its connections.

    Raises:
      MigrationFailed: if faults were found.
      Whatever the block raises, as it is.
      What a function of the caller's has raised, as it is.
    """
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                with migration.stop.body:
                    yield
            except BaseException as error:  # noqa: ASYNC103 (raised below)
                if split_cancelled(error)[0] is not None:
                    raise
                # To leave as it is, not in the nursery's group.
                body_error = error
            finally:
                migration.leave()
    except BaseException as error:  # noqa: ASYNC103 (as it says)
        # What the block raised goes before a cancel, but hides no mistake.
        if body_error is None or split_cancelled(error)[1] is not None:
            raise
    if body_error is not None:
        if not migration.stop.faults:
            raise body_error
        try:
            raise migration.failure()
        except MigrationFailed:
            # A fault came first, and the block perhaps fell over its cancel.
            raise body_error  # noqa: B904
    await trio.lowlevel.checkpoint_if_cancelled()
    if migration.error is not None:
        raise migration.error
    if migration.stop.faults:
        raise migration.failure()
