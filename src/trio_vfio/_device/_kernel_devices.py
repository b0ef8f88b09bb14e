"""The VFIO devices of this host, asked what they are."""

from __future__ import annotations

import trio

from ._vfio._locate import Located, vfio_devices
from ._vfio._probe import KernelDeviceInfo, probe
from ._worker import Worker


async def kernel_devices() -> tuple[KernelDeviceInfo, ...]:
    """Ask every device of this host that is bound to a driver for VFIO.

    Each is opened for a moment, unless it is in use; many drivers reset their device
    then. If cancelled, those that are being asked are waited for.

    Returns: all of them, in the order of their buses and names.
    """
    located = await Worker().run(vfio_devices)
    found: dict[str, KernelDeviceInfo] = {}

    async def ask(devices: list[Located]) -> None:
        # One after another: only one of a group can be open at a time.
        for device in devices:
            found[device.name] = await Worker().run(probe, device)

    groups: dict[str, list[Located]] = {}
    for device in located:
        groups.setdefault(device.group or device.name, []).append(device)
    async with trio.open_nursery() as nursery:
        for devices in groups.values():
            nursery.start_soon(ask, devices)
    return tuple(found[device.name] for device in located)
