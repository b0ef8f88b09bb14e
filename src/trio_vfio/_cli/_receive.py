"""``trio-vfio receive``: take a migration and put it into devices."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import click

from .. import Incoming, StateSink, open_incoming
from .._device import SnapshotDirectory
from ._devices import SINK_HELP, SINKS, NamedDeviceType
from ._kernel_devices import Sinks, let_work, opened, run_option
from ._migration import (
    MigrationCommand,
    connection_options,
    deadlines,
    migration_options,
)
from ._options import PageSize, json_option, traceback_option
from ._places import device_places, snapshot_place, using
from ._plain import plain
from ._tls import server_tls_options
from ._trace import trace_option, tracing_to


@click.command()
@click.argument("address")
@click.option(
    "--device",
    "devices",
    type=NamedDeviceType(SINKS),
    multiple=True,
    metavar="IDSTR=DEV",
    help=f"Where the state of one device goes: {SINK_HELP}.",
)
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Accept every VFIO device that the source sends, into a snapshot. One that is"
    " there is replaced when the new one is complete.",
)
@click.option(
    "--page-size",
    type=PageSize(),
    help="Of the source's machine, if its stream does not say it.  [default: 4KiB]",
)
@run_option
@server_tls_options
@json_option
@connection_options(
    first_connection="Deadline for the source to connect.",
    handshake="Deadline for each connection's first bytes.",
)
@migration_options
@trace_option
@traceback_option
def receive(
    address: str,
    *,
    devices: Sequence[tuple[str, StateSink]],
    into: Path | None,
    page_size: int | None,
    runs: bool,
    ssl_context: ssl.SSLContext | None,
    as_json: bool,
    quiet: bool,
    device_grace: float,
    trace_file: str | None,
    **seconds: float | None,
) -> int:
    """Listen on ADDRESS (tcp:HOST:PORT or unix:PATH) and receive one migration.

    A socket that a killed process has left at PATH is replaced. A file that is no
    socket, or a socket on which a process listens, is an error.

    Exit status: 0 if every device accepted its state, 1 if not.
    """
    options: dict[str, Any] = {
        "deadlines": deadlines(seconds),
        "device_grace": device_grace,
        "digests": True,
        "page_size": page_size,
        "ssl_context": ssl_context,
    }
    sinks = _sinks(devices, into)
    snapshot = None if into is None else SnapshotDirectory(into)
    places = device_places(sinks)
    if into is not None:
        places.append(snapshot_place(into, writes=True))
    with using(places, trace_file, address), tracing_to(trace_file) as hook:
        opening = _open(address, snapshot or sinks, {**options, "trace": hook})
        command = MigrationCommand(opening, _receive, as_json, quiet)
        if runs:
            command.after = lambda _: let_work(sinks)
        return command.run()


@asynccontextmanager
async def _open(
    address: str, devices: Sinks | SnapshotDirectory, options: Mapping[str, Any]
) -> AsyncGenerator[Incoming]:
    async with AsyncExitStack() as stack:
        if isinstance(devices, SnapshotDirectory):
            # Before there is a source: it is not to freeze for nothing.
            await stack.enter_async_context(devices.locked())
            options = {**options, "before_shut": devices.write_manifest}
        else:
            await stack.enter_async_context(opened(devices))
        incoming = open_incoming(address, devices, **options)
        yield await stack.enter_async_context(incoming)


async def _receive(incoming: Incoming) -> None:
    for address in incoming.addresses:
        click.echo(f"listening on {plain(address)}", err=True)
    await incoming.wait_complete()


def _sinks(devices: Sequence[tuple[str, StateSink]], into: Path | None) -> Sinks:
    """Return where the state of each device goes that was named."""
    if (into is None) == (not devices):
        raise click.UsageError("give either --device, once or more, or --into.")
    sinks = {(idstr, 0): sink for idstr, sink in devices}
    if len(sinks) < len(devices):
        raise click.UsageError("two --device of one name.")
    return sinks
