"""``trio-vfio send``: take devices to a destination."""

from __future__ import annotations

import ssl
import uuid as uuids
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from .. import Outgoing, open_outgoing
from .._device import SnapshotDirectory
from ._devices import SOURCE_HELP, SOURCES, MakeSource, NamedDeviceType, SourceOptions
from ._kernel_devices import Sources, opened
from ._migration import (
    MigrationCommand,
    connection_options,
    deadlines,
    migration_options,
    precopy_options,
)
from ._options import json_option, traceback_option
from ._places import device_places, snapshot_place, using
from ._tls import client_tls_options
from ._trace import trace_option, tracing_to


@click.command()
@click.argument("address")
@click.option(
    "--device",
    "devices",
    type=NamedDeviceType(SOURCES),
    multiple=True,
    metavar="IDSTR=DEV",
    help=f"Where the state of one device comes from: {SOURCE_HELP}.",
)
@click.option(
    "--from",
    "snapshot",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Send every device of a snapshot.",
)
@click.option(
    "--channels",
    type=click.IntRange(1, 255),
    default=2,
    show_default=True,
    help="How many multifd channels.",
)
@click.option(
    "--machine",
    default="none",
    show_default=True,
    help="Machine type, which a QEMU compares with its own.",
)
@click.option(
    "--uuid",
    type=click.UUID,
    help="The machine's UUID, which a QEMU compares with its own.",
)
@click.option(
    "--return-path/--no-return-path",
    default=True,
    show_default=True,
    help="Whether the destination is to answer.",
)
@click.option(
    "--switchover-ack",
    is_flag=True,
    help="Wait until the destination is ready for the switchover.",
)
@precopy_options
@client_tls_options
@json_option
@connection_options(
    first_connection="Deadline for all connections to be made.",
    handshake="Deadline for the destination's first answer.",
)
@migration_options
@trace_option
@traceback_option
def send(
    address: str,
    *,
    devices: Sequence[tuple[str, MakeSource]],
    snapshot: Path | None,
    precopy: int,
    max_rounds: int,
    downtime: float,
    as_json: bool,
    quiet: bool,
    channels: int,
    machine: str,
    uuid: uuids.UUID | None,
    return_path: bool,
    switchover_ack: bool,
    ssl_context: ssl.SSLContext | None,
    server_hostname: str | None,
    device_grace: float,
    trace_file: str | None,
    **seconds: float | None,
) -> int:
    """Connect to ADDRESS (tcp:HOST:PORT or unix:PATH) and send one migration there.

    Exit status: 0 if the destination has every device, 1 if not.
    """
    options = {
        "channels": channels,
        "machine": machine,
        "uuid": uuid,
        "return_path": return_path,
        "switchover_ack": switchover_ack,
        "deadlines": deadlines(seconds),
        "device_grace": device_grace,
        "ssl_context": ssl_context,
        "server_hostname": server_hostname,
        "digests": True,
    }
    sources = _named(devices, snapshot, precopy)
    work = partial(_send, max_rounds=max_rounds, downtime=downtime)
    places = device_places(sources)
    if snapshot is not None:
        places.append(snapshot_place(snapshot, writes=False))
    with using(places, trace_file), tracing_to(trace_file) as hook:
        opening = _open(address, sources, snapshot, {**options, "trace": hook})
        return MigrationCommand(opening, work, as_json, quiet).run()


async def _send(outgoing: Outgoing, *, max_rounds: int, downtime: float) -> None:
    await outgoing.migrate(max_rounds=max_rounds, downtime=downtime)


@asynccontextmanager
async def _open(
    address: str,
    named: Sources,
    snapshot: Path | None,
    options: Mapping[str, Any],
) -> AsyncGenerator[Outgoing]:
    sources = named
    if snapshot is not None:
        sources = await SnapshotDirectory(snapshot).sources()
    async with opened(named), open_outgoing(address, sources, **options) as outgoing:
        yield outgoing


def _named(
    devices: Sequence[tuple[str, MakeSource]], snapshot: Path | None, precopy: int
) -> Sources:
    if (snapshot is None) == (not devices):
        raise click.UsageError("give either --device, once or more, or --from.")
    how = SourceOptions(precopy_bytes=precopy)
    sources = {(idstr, 0): make(how) for idstr, make in devices}
    if len(sources) < len(devices):
        raise click.UsageError("two --device of one name.")
    return sources
