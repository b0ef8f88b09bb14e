"""Results as tables for a reader, or as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final, TextIO

import attrs
import click
import rich.box
import rich.console
import rich.table

from .._errors import device_name
from .._result import ChannelResult, DeviceResult, MigrationResult
from ._plain import cell

_DIGEST_SHOWN: Final = 8
_WIDTH_OF_A_FILE: Final = 160


def print_json(value: attrs.AttrsInstance, **more: object) -> None:
    """Print the fields of *value*, and *more*, as one JSON object."""
    click.echo(json.dumps({**attrs.asdict(value), **more}))


def console(file: TextIO | None = None) -> rich.console.Console:
    """Return where tables go: *file*, or stdout."""
    made = rich.console.Console(file=file, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = _WIDTH_OF_A_FILE
    return made


def table(title: str, *columns: str) -> rich.table.Table:
    """Make a table. A column whose name begins with ``>`` is aligned right."""
    made = rich.table.Table(
        title=cell(title),
        title_justify="left",
        box=rich.box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in columns:
        name = cell(column.removeprefix(">"))
        right = column.startswith(">")
        made.add_column(name, justify="right" if right else "left", overflow="fold")
    return made


def add_rows(to: rich.table.Table, rows: Iterable[Sequence[object]]) -> None:
    """Add *rows*, each value as it is."""
    for row in rows:
        to.add_row(*(cell(value) for value in row))


def device_table(devices: Iterable[DeviceResult]) -> rich.table.Table:
    """Make the table of what became of each device."""
    columns = "device", "status", ">bytes", ">buffers", ">starved", ">seconds", "sha256"
    made = table("devices", *columns)
    rows = (
        (
            device_name(device.idstr, device.instance_id),
            device.status,
            device.data_bytes,
            device.buffers,
            device.starved,
            seconds(device.seconds),
            digest(device.sha256),
        )
        for device in devices
    )
    add_rows(made, rows)
    return made


def channel_table(channels: Iterable[ChannelResult]) -> rich.table.Table:
    """Make the table of what came over each multifd channel."""
    made = table("channels", ">channel", ">bytes", ">packets", ">device state")
    rows = ((c.id, c.bytes, c.packets, c.device_state_packets) for c in channels)
    add_rows(made, rows)
    return made


def print_result(result: MigrationResult) -> None:
    """Print what a migration came to, as tables."""
    out = console()
    out.print(device_table(result.devices))
    if result.channels:
        out.print(channel_table(result.channels))
    text = f"{result.status} after {seconds(result.seconds)} s"
    if result.switchover_seconds is not None:
        text += f", switchover {seconds(result.switchover_seconds)} s"
    out.print(cell(text))


def seconds(value: float | None) -> str:
    """Return *value* to the millisecond."""
    return "" if value is None else f"{value:.3f}"


def digest(value: str | None) -> str:
    """Return enough of a digest to tell it from others."""
    return "" if value is None else f"{value[:_DIGEST_SHOWN]}..."
