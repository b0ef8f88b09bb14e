"""``trio-vfio devices``: which devices of this host can be migrated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import attrs
import click

from .. import KernelDeviceInfo, kernel_devices
from ._options import json_option, traceback_option
from ._output import is_result_lost
from ._plain import cell
from ._run import run
from ._tables import add_rows, console, table


@click.command()
@json_option
@traceback_option
def devices(*, as_json: bool) -> int:
    """Show the VFIO devices of this host, and why one cannot be migrated.

    Each that is not in use is opened for a moment; many drivers reset their device
    then.
    """
    found: list[KernelDeviceInfo] = []

    async def ask() -> None:
        found.extend(await kernel_devices())

    if (stopped := run(ask)) is not None:
        return 128 + stopped
    if as_json:
        rows = [{**attrs.asdict(each), "usable": each.usable} for each in found]
        click.echo(json.dumps({"devices": rows}))
    else:
        _print(found)
    # This command only prints, so a lost result is its failure.
    return int(is_result_lost())


def _print(found: Sequence[KernelDeviceInfo]) -> None:
    out = console()
    if not found:
        out.print("no device is bound to a driver for VFIO")
        return
    columns = "device", "driver", "group", "cdev", "migration", "state", ">state bytes"
    made = table("devices", *columns)
    rows = (
        (
            each.name,
            each.driver or "",
            _file(each.group),
            _file(each.cdev),
            "" if each.migration is None else " ".join(each.migration) or "no",
            each.state or "",
            "" if each.stop_copy_bytes is None else each.stop_copy_bytes,
        )
        for each in found
    )
    add_rows(made, rows)
    out.print(made)
    for each in found:
        if each.problem is not None:
            out.print(cell(f"{each.name}: {each.problem}"))
        if each.advice is not None:
            out.print(cell(f"  {each.advice}"))


def _file(path: str | None) -> str:
    return "" if path is None else Path(path).name
