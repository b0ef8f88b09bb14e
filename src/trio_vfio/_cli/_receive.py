"""``trio-vfio receive``: take a migration and put it into devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, final

import attrs
import click
import trio

from .. import (
    Deadlines,
    Incoming,
    MigrationResult,
    SessionState,
    StateSink,
    open_incoming,
)
from .._device import SnapshotDirectory
from .._errors import describe
from ._options import DeviceArgument, Seconds, json_option, traceback_option
from ._plain import plain, show_error
from ._progress import show_progress
from ._run import run
from ._tables import print_json, print_result
from ._trace import trace_option, tracing_to

_SECONDS = Seconds(min=0, min_open=True)
_NONE = MigrationResult(SessionState.FAILED.value, (), (), (), None, 0.0)


@click.command()
@click.argument("address")
@click.option(
    "--device",
    "devices",
    type=DeviceArgument(),
    multiple=True,
    metavar="IDSTR=DEV",
    help="Where the state of one device goes: file:PATH (data; the config goes to"
    " PATH.config) or null: (nowhere).",
)
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Accept every VFIO device that the source sends, into a snapshot.",
)
@json_option
@click.option(
    "--first-connection", type=_SECONDS, help="Deadline for the source to connect."
)
@click.option(
    "--handshake", type=_SECONDS, help="Deadline for each connection's first bytes."
)
@click.option(
    "--silence", type=_SECONDS, help="Longest silence after switchover began."
)
@click.option(
    "--switchover", type=_SECONDS, help="Deadline for the switchover as a whole."
)
@click.option(
    "--device-grace",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    help="How long a device's call may outlast a failure before it is broken off.",
)
@trace_option
@traceback_option
def receive(
    address: str,
    *,
    devices: Sequence[tuple[str, StateSink]],
    into: Path | None,
    as_json: bool,
    device_grace: float,
    trace_file: str | None,
    **deadlines: float | None,
) -> int:
    """Listen on ADDRESS (tcp:HOST:PORT or unix:PATH) and receive one migration.

    Exit status: 0 if every device accepted its state, 1 if not.
    """
    given = {name: value for name, value in deadlines.items() if value is not None}
    session: dict[str, Any] = {
        "deadlines": Deadlines(**given),
        "device_grace": device_grace,
        "digests": True,
        **_sinks(devices, into),
    }
    with tracing_to(trace_file) as hook:
        return _Reception(address, {**session, "trace": hook}, as_json).run()


def _sinks(
    devices: Sequence[tuple[str, StateSink]], into: Path | None
) -> dict[str, Any]:
    """Return the arguments of `open_incoming` that say where state goes."""
    if (into is None) == (not devices):
        raise click.UsageError("give either --device, once or more, or --into.")
    if into is not None:
        snapshot = SnapshotDirectory(into)
        return {"devices": snapshot, "before_shut": snapshot.write_manifest}
    sinks = dict(devices)
    if len(sinks) < len(devices):
        raise click.UsageError("two --device of one name.")
    return {"devices": sinks}


@final
@attrs.define(eq=False)
class _Reception:
    """One run of the command."""

    address: str
    session: Mapping[str, Any]
    as_json: bool
    _incoming: Incoming | None = attrs.field(default=None, init=False)

    def run(self) -> int:
        """Receive, and show the result, whatever it is. Returns the exit status."""
        try:
            stopped = run(self._receive)
        except click.UsageError:
            raise
        except Exception as error:
            self._show(_failed(self._result(), error))
            raise
        result = self._result()
        if stopped is None or result.status == SessionState.COMPLETED.value:
            self._show(result)
            return 0
        self._show(attrs.evolve(result, status=SessionState.CANCELLED.value))
        show_error(f"cancelled by {stopped.name}")
        return 128 + stopped

    async def _receive(self) -> None:
        async with AsyncExitStack() as stack:
            opening = open_incoming(self.address, **self.session)
            try:
                self._incoming = await stack.enter_async_context(opening)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            for address in self._incoming.addresses:
                click.echo(f"listening on {plain(address)}", err=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(show_progress, self._incoming)
                await self._incoming.wait_complete()
                nursery.cancel_scope.cancel(reason="the migration is complete")

    def _result(self) -> MigrationResult:
        return _NONE if self._incoming is None else self._incoming.result()

    def _show(self, result: MigrationResult) -> None:
        if self.as_json:
            print_json(result)
        else:
            print_result(result)


def _failed(result: MigrationResult, error: Exception) -> MigrationResult:
    """Return *result* with *error*, which a session may have missed, in it."""
    return attrs.evolve(
        result,
        status=SessionState.FAILED.value,
        errors=result.errors or (describe(error),),
    )
