"""``trio-vfio load``: the state of one device out of a snapshot."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import click

from .. import StateSink, VfioSink
from .._device import SnapshotDirectory
from .._errors import device_name
from ._devices import SINK_HELP, SINKS, DeviceType
from ._kernel_devices import opened, run_option
from ._local import DeviceKey, LocalMigration, LocalOptions, open_local
from ._migration import MigrationCommand, migration_options
from ._options import json_option, traceback_option
from ._places import device_places, snapshot_place, using
from ._trace import trace_option, tracing_to


@click.command(
    help=f"Load a device of the snapshot DIR into DEV. DEV is {SINK_HELP}.",
    short_help="Load a device of a snapshot.",
)
@click.argument(
    "snapshot",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
)
@click.argument("device", type=DeviceType(SINKS), metavar="DEV")
@click.option("--idstr", help="Which device, if there are several in the snapshot.")
@run_option
@json_option
@migration_options
@trace_option
@traceback_option
def load(
    snapshot: Path,
    device: StateSink,
    *,
    idstr: str | None,
    runs: bool,
    switchover: float | None,
    device_grace: float,
    as_json: bool,
    quiet: bool,
    trace_file: str | None,
) -> int:
    """Load one device, as by ``send --from`` and ``receive``."""
    places = [
        snapshot_place(snapshot, writes=False),
        *device_places({(idstr or "DEV", 0): device}),
    ]
    with using(places, trace_file), tracing_to(trace_file) as hook:
        options = LocalOptions(
            switchover=switchover,
            device_grace=device_grace,
            trace=hook,
        )
        opening = _open(snapshot, idstr, device, options)
        command = MigrationCommand(opening, LocalMigration.wait_ended, as_json, quiet)
        if runs:
            command.after = partial(_let_work, device)
        return command.run()


@asynccontextmanager
async def _open(
    snapshot: Path, idstr: str | None, sink: StateSink, options: LocalOptions
) -> AsyncGenerator[LocalMigration]:
    sources = await SnapshotDirectory(snapshot).sources()
    key = _choose(snapshot, [*sources], idstr)
    sinks = {key: sink}
    async with (
        opened(sinks),
        open_local({key: sources[key]}, sinks, options) as local,
    ):
        yield local


async def _let_work(device: StateSink, local: LocalMigration) -> None:
    if isinstance(device, VfioSink) and not local.causes():
        await device.run()


def _choose(snapshot: Path, keys: list[DeviceKey], idstr: str | None) -> DeviceKey:
    """Return the device that *idstr* names, the way errors and tables name it.

    Raises:
      click.UsageError: if there is none, or it does not say which of several.
    """
    names = {device_name(*key): key for key in keys}
    where = str(snapshot)
    if idstr is None and len(keys) == 1:
        return keys[0]
    if idstr in names:
        return names[idstr]
    there = f"{where!r} has {', '.join(map(repr, names)) or 'no device'}"
    if idstr is None:
        raise click.UsageError(f"{there}: say which, with --idstr.")
    raise click.UsageError(f"no device {idstr!r}: {there}.")
