"""``trio-vfio inspect``: what is in a recorded stream."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from .._capture._extract import extract
from .._capture._report import CaptureReport, inspect_capture
from .._errors import device_name
from .._result import CaptureStatus
from ._options import PageSize, json_option, traceback_option
from ._plain import cell, show_error
from ._run import run
from ._tables import (
    add_rows,
    channel_table,
    console,
    digest,
    print_json,
    table,
)

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("capture", type=_DIRECTORY)
@json_option
@click.option(
    "--extract",
    "into",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the state of each whole device to this directory.",
)
@click.option(
    "--page-size",
    type=PageSize(),
    help="Of the machine that migrated, if its stream does not say it.",
)
@traceback_option
def inspect(
    capture: Path, *, as_json: bool, into: Path | None, page_size: int | None
) -> int:
    """Show what is in CAPTURE, a directory with a recorded migration.

    Exit status: 0 if it is a whole migration, 1 if not.
    """
    try:
        report = inspect_capture(capture, page_size=page_size)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    stopped = None
    if into is not None:
        stopped = run(
            lambda: extract(capture, into, page_size=page_size), what="extraction"
        )
    if as_json:
        print_json(report, reason=report.reason)
    else:
        _print_tables(report)
    for error in report.errors:
        show_error(error)
    if stopped is not None:
        return 128 + stopped
    return 0 if report.status is CaptureStatus.COMPLETE else 1


def _print_tables(report: CaptureReport) -> None:
    out = console()
    out.print(_device_table(report))
    out.print(channel_table(report.channels))
    out.print(_packet_table(report))
    out.print(_main_table(report))
    out.print(cell(f"{report.status}: {report.main_bytes} bytes on the main channel"))


def _device_table(report: CaptureReport) -> Table:
    sizes = ">pre-copy", ">bytes", ">buffers", ">config"
    made = table("devices", "device", "status", "transfer", *sizes, "sha256")
    rows = (
        (
            device_name(device.idstr, device.instance_id),
            device.status,
            device.transfer,
            device.precopy_bytes,
            device.data_bytes,
            device.buffers,
            device.config_bytes,
            digest(device.sha256),
        )
        for device in report.devices
    )
    add_rows(made, rows)
    return made


def _packet_table(report: CaptureReport) -> Table:
    columns = ">channel", "device", ">idx", ">flags", ">bytes", ">offset"
    made = table("device-state packets", *columns)
    rows = (
        (
            packet.channel,
            device_name(packet.idstr, packet.instance_id),
            packet.idx,
            packet.flags,
            packet.bytes,
            packet.offset,
        )
        for packet in report.packets
    )
    add_rows(made, rows)
    return made


def _main_table(report: CaptureReport) -> Table:
    made = table("main channel", ">offset", "kind", ">section", "what")
    rows = (
        (each.offset, each.kind, each.section_id, each.what) for each in report.main
    )
    add_rows(made, rows)
    return made
