"""What ``send`` and ``receive`` have in common: one migration, shown as it goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Generic, TypeVar, final

import attrs
import click
import trio

from .. import Deadlines, MigrationResult, SessionState
from ._faults import leaves, line
from ._options import Seconds, Size
from ._plain import show_error
from ._progress import Migrating, show_progress
from ._run import run, show_too_late
from ._tables import print_json, print_result

_C = TypeVar("_C", bound=Callable[..., Any])
_M = TypeVar("_M", bound=Migrating)
_SECONDS = Seconds(min=0, min_open=True)
_NONE = MigrationResult(SessionState.FAILED, (), (), (), None, 0.0)


def connection_options(*, first_connection: str, handshake: str) -> Callable[[_C], _C]:
    """Give a command the deadlines of what another machine may be slow at.

    Args:
      first_connection: what that deadline is for, as the help says it.
      handshake: the same.
    """
    silence = "Longest silence after switchover began."
    options = [
        click.option("--first-connection", type=_SECONDS, help=first_connection),
        click.option("--handshake", type=_SECONDS, help=handshake),
        click.option("--silence", type=_SECONDS, help=silence),
    ]
    return lambda command: _with(command, options)


def precopy_options(command: _C) -> _C:
    """Give *command* the options of a source that may give data before it stops."""
    options = [
        click.option(
            "--precopy",
            type=Size(),
            default=0,
            help="How much of each file: or fd: device goes before the switchover.",
        ),
        click.option(
            "--max-rounds",
            type=click.IntRange(1),
            default=16,
            show_default=True,
            help="How many rounds before the switchover, at most.",
        ),
        click.option(
            "--downtime",
            type=Seconds(min=0),
            default=0.3,
            show_default=True,
            help="Switch over when what is left would take no longer.",
        ),
    ]
    return _with(command, options)


def migration_options(command: _C) -> _C:
    """Give *command* the options of every migration."""
    options = [
        click.option(
            "--switchover",
            type=_SECONDS,
            help="Deadline for the switchover as a whole.",
        ),
        click.option(
            "--device-grace",
            type=_SECONDS,
            default=10.0,
            show_default=True,
            help="How long a device's call may outlast a failure before it is"
            " broken off.",
        ),
        click.option("--quiet", "-q", is_flag=True, help="Show no progress."),
    ]
    return _with(command, options)


def _with(command: _C, options: Iterable[Callable[[_C], _C]]) -> _C:
    for option in reversed([*options]):
        command = option(command)
    return command


def deadlines(given: dict[str, float | None]) -> Deadlines:
    """Return the deadlines that options have given, and the usual others."""
    return Deadlines(**{name: each for name, each in given.items() if each is not None})


@final
@attrs.define(eq=False)
class MigrationCommand(Generic[_M]):
    """One run of a command that migrates."""

    opening: AbstractAsyncContextManager[_M]
    """Opens the session."""
    work: Callable[[_M], Awaitable[object]]
    """Takes an open session to its end."""
    after: Callable[[_M], Awaitable[None]] | None = attrs.field(
        default=None, kw_only=True
    )
    """What is still to be done when the session has ended."""
    as_json: bool
    quiet: bool
    _session: _M | None = attrs.field(default=None, init=False)
    _all_done: bool = attrs.field(default=False, init=False)

    def run(self) -> int:
        """Migrate, and show the result, whatever it is. Returns the exit status."""
        try:
            stopped = run(self._migrate)
        except click.UsageError:
            raise
        except Exception as error:
            self._show(_failed(self._result(), error))
            raise
        result = self._result()
        if stopped is None:
            self._show(result)
            return 0
        if result.status is not SessionState.COMPLETED:
            self._show(attrs.evolve(result, status=SessionState.CANCELLED))
            return 128 + stopped
        self._show(result)
        if self._all_done or self.after is None:
            show_too_late(stopped)
            return 0
        show_error("the migration is complete, but not all devices were started")
        return 128 + stopped

    async def _migrate(self) -> None:
        async with AsyncExitStack() as stack:
            try:
                session = await stack.enter_async_context(self.opening)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            self._session = session
            async with trio.open_nursery() as nursery:
                if not self.quiet:
                    nursery.start_soon(_show_progress, session)
                await self.work(session)
                if self.after is not None:
                    await self.after(session)
                self._all_done = True
                nursery.cancel_scope.cancel(reason="the migration is complete")

    def _result(self) -> MigrationResult:
        return _NONE if self._session is None else self._session.result()

    def _show(self, result: MigrationResult) -> None:
        if self.as_json:
            print_json(result)
        else:
            print_result(result)


async def _show_progress(migration: Migrating) -> None:
    """Show how far *migration* has come until cancelled.

    A fault of the display ends the display only.
    """
    try:
        await show_progress(migration)
    except Exception as error:  # noqa: BLE001 (the migration goes on)
        show_error(f"no more progress is shown: {line(error)}")


def _failed(result: MigrationResult, error: Exception) -> MigrationResult:
    """Return *result* with *error*, which a session may have missed, in it.

    What comes behind a migration that is complete does not undo it: then the devices
    are here, and not at the source.
    """
    completed = result.status is SessionState.COMPLETED
    return attrs.evolve(
        result,
        status=result.status if completed else SessionState.FAILED,
        errors=result.errors or tuple(map(line, leaves(error))),
    )
