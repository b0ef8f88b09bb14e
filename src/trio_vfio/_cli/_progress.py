"""What a migration is doing, for whoever sits at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import rich.console
import rich.live
import trio

from .. import DeviceProgress, Incoming
from .._errors import device_name
from ._plain import cell
from ._tables import add_rows, channel_table, console, table

_EVERY: Final = 0.25
_MIB: Final = 1 << 20


async def show_progress(incoming: Incoming) -> None:
    """Show how far *incoming* has come until cancelled, if stderr is a terminal."""
    if not sys.stderr.isatty():
        return
    with rich.live.Live(
        console=console(sys.stderr),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as live:
        before = _bytes(incoming)
        while True:
            await trio.sleep(_EVERY)
            now = _bytes(incoming)
            live.update(render(incoming, (now - before) / _EVERY), refresh=True)
            before = now


def render(incoming: Incoming, rate: float) -> rich.console.Group:
    """Show how far *incoming* has come.

    Args:
      rate: of all connections together, in bytes per second.
    """
    devices = table("devices", "device", "state", ">bytes", ">buffers", "waits for")
    add_rows(devices, (_row(device) for device in incoming.devices.values()))
    text = f"{incoming.state.value.value}: {rate / _MIB:.1f} MiB/s"
    channels = channel_table(incoming.result().channels)
    return rich.console.Group(devices, channels, cell(text))


def _row(device: DeviceProgress) -> Sequence[object]:
    return (
        device_name(device.idstr, device.instance_id),
        device.state.value.value,
        device.data_bytes,
        device.buffers,
        "" if device.waiting_for is None else f"idx {device.waiting_for}",
    )


def _bytes(incoming: Incoming) -> int:
    result = incoming.result()
    channels = sum(channel.bytes for channel in result.channels)
    # What came over channels is counted there already.
    return channels + sum(
        device.data_bytes for device in result.devices if device.transfer != "multifd"
    )
