"""What a migration is doing, for whoever sits at the terminal or reads a log."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, final

import attrs
import click
import rich.console
import rich.live
import trio

from .. import DeviceProgress, MigrationResult
from .._errors import device_name
from .._result import Transfer
from ._plain import cell, plain
from ._tables import add_rows, channel_table, console, table

_EVERY: Final = 0.25
_EVERY_LINE: Final = 1.0
_MIB: Final = 1 << 20


class Migrating(Protocol):
    """What both directions of a migration show of themselves."""

    @property
    def devices(self) -> Mapping[Any, DeviceProgress]:
        """Its devices."""
        ...

    def result(self) -> MigrationResult:
        """Return how far it has come."""
        ...

    def waiting_for(self) -> str:
        """Say what it waits for; empty if it does not wait."""
        ...


async def show_progress(migration: Migrating) -> None:
    """Show how far *migration* has come until cancelled: on stderr.

    That is a table that is drawn anew if it is a terminal, and else a line for
    each second.
    """
    if sys.stderr.isatty():
        await _show_tables(migration)
    else:
        await _show_lines(migration)


async def _show_tables(migration: Migrating) -> None:
    with rich.live.Live(
        console=console(sys.stderr),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as live:
        speed = _Speed(migration)
        while True:
            await trio.sleep(_EVERY)
            live.update(render(migration, speed.measure()), refresh=True)


async def _show_lines(migration: Migrating) -> None:
    speed = _Speed(migration)
    while True:
        await trio.sleep(_EVERY_LINE)
        click.echo(line(migration, speed.measure()), err=True)


def render(migration: Migrating, rate: float) -> rich.console.Group:
    """Show how far *migration* has come.

    Args:
      rate: of all connections together, in bytes per second.
    """
    columns = "device", "state", ">bytes", ">expected", ">buffers", "waits for"
    devices = table("devices", *columns)
    add_rows(devices, (_row(device) for device in migration.devices.values()))
    channels = channel_table(migration.result().channels)
    return rich.console.Group(devices, channels, cell(_summary(migration, rate)))


def line(migration: Migrating, rate: float) -> str:
    """Say in one line how far *migration* has come; see `render`."""
    result = migration.result()
    return plain(f"{result.seconds:.0f} s: {_summary(migration, rate)}")


def _summary(migration: Migrating, rate: float) -> str:
    result = migration.result()
    mib = _bytes(result) / _MIB
    text = f"{result.status}: {mib:.1f} MiB, {rate / _MIB:.1f} MiB/s"
    waiting_for = migration.waiting_for()
    return f"{text}; {waiting_for}" if waiting_for else text


def _row(device: DeviceProgress) -> Sequence[object]:
    return (
        device_name(device.idstr, device.instance_id),
        device.state.value,
        device.data_bytes,
        device.expected_bytes,
        device.buffers,
        "" if device.waiting_for is None else f"idx {device.waiting_for}",
    )


@final
@attrs.define(eq=False)
class _Speed:
    """Measures from one call to the next."""

    migration: Migrating
    _at: float = attrs.field(factory=trio.current_time, init=False)
    _bytes: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._bytes = _bytes(self.migration.result())

    def measure(self) -> float:
        """Return the speed since the last call, in bytes per second."""
        before, self._at = self._at, trio.current_time()
        bytes_before, self._bytes = self._bytes, _bytes(self.migration.result())
        return (self._bytes - bytes_before) / max(self._at - before, 1e-9)


def _bytes(result: MigrationResult) -> int:
    """Return how many bytes all connections have carried, more or less."""
    channels = sum(channel.bytes for channel in result.channels)
    # What goes over channels is counted there already.
    return channels + sum(
        device.precopy_bytes
        if device.transfer is Transfer.MULTIFD
        else device.data_bytes
        for device in result.devices
    )
