"""``trio-vfio save``: the state of one device into a snapshot."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from .._device import SnapshotDirectory
from ._devices import SOURCE_HELP, SOURCES, DeviceType, MakeSource, SourceOptions
from ._kernel_devices import Sources, opened
from ._local import LocalMigration, LocalOptions, open_local
from ._migration import MigrationCommand, migration_options, precopy_options
from ._options import json_option, traceback_option
from ._places import device_places, snapshot_place, using
from ._trace import trace_option, tracing_to


@click.command(help=f"Save the state of DEV in a snapshot. DEV is {SOURCE_HELP}.")
@click.argument("device", type=DeviceType(SOURCES), metavar="DEV")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    required=True,
    help="The snapshot. One that is there is replaced when the new one is complete.",
)
@click.option(
    "--idstr",
    default="vfio",
    show_default=True,
    help="The device's name in the snapshot: its path in the guest, as"
    " 0000:00:04.0/vfio, if a QEMU is to get it.",
)
@click.option(
    "--run-on",
    is_flag=True,
    help="Let a vfio: device go on afterwards, as it was before.",
)
@precopy_options
@json_option
@migration_options
@trace_option
@traceback_option
def save(
    device: MakeSource,
    *,
    into: Path,
    idstr: str,
    run_on: bool,
    precopy: int,
    max_rounds: int,
    downtime: float,
    switchover: float | None,
    device_grace: float,
    as_json: bool,
    quiet: bool,
    trace_file: str | None,
) -> int:
    """Save one device, as by ``send`` and ``receive --into``."""
    snapshot = SnapshotDirectory(into)
    how = SourceOptions(precopy_bytes=precopy, run_on=run_on)
    sources = {(idstr, 0): device(how)}
    places = [*device_places(sources), snapshot_place(into, writes=True)]
    with using(places, trace_file), tracing_to(trace_file) as hook:
        options = LocalOptions(
            max_rounds=max_rounds,
            downtime=downtime,
            switchover=switchover,
            device_grace=device_grace,
            trace=hook,
        )
        opening = _open(sources, snapshot, options)
        work = LocalMigration.wait_ended
        return MigrationCommand(opening, work, as_json, quiet).run()


@asynccontextmanager
async def _open(
    sources: Sources, snapshot: SnapshotDirectory, options: LocalOptions
) -> AsyncGenerator[LocalMigration]:
    written = snapshot.write_manifest
    async with (
        snapshot.locked(),
        opened(sources),
        open_local(sources, snapshot, options, before_shut=written) as local,
    ):
        yield local
