"""Embed both ends of a migration in a Trio program, and watch the devices.

The destination's device is the program's own. Both ends are in one process here, so
that the example runs by itself; each works as well alone, or with a QEMU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import trio

import trio_vfio

DEVICE = "0000:00:04.0/vfio"
MIB = 1 << 20


class Recorder:
    """A device of the program's own: all that `trio_vfio.StateSink` asks for."""

    precopy = None

    def __init__(self) -> None:
        self.state = bytearray()

    async def begin(self) -> None:
        await trio.lowlevel.checkpoint()

    async def write(self, buffers: Iterator[memoryview]) -> None:
        for buffer in buffers:
            self.state += buffer
            await trio.lowlevel.checkpoint()

    async def load_config(self, blob: bytes) -> None:
        print(f"config: {blob!r}")

    async def finish(self) -> None:
        print(f"accepted: {len(self.state)} bytes")

    async def abort(self) -> None:
        self.state.clear()


async def announce(device: trio_vfio.DeviceProgress) -> None:
    """Say when a device is loaded."""
    await device.state.wait_value(trio_vfio.DeviceState.COMPLETED)
    print(f"{device.idstr} is loaded from {device.buffers} buffers")


async def source(address: str) -> None:
    """Send a device whose state is in memory; 1 MiB of it before the switchover."""
    fd = os.memfd_create("state")
    os.truncate(fd, 5 * MIB)
    device = trio_vfio.FdSource(fd, precopy_bytes=MIB, config=b"registers")
    async with trio_vfio.open_outgoing(
        address, {DEVICE: device}, channels=4
    ) as outgoing:
        result = await outgoing.migrate()
    print(f"sent: {result.status}")
    os.close(fd)


async def main() -> None:
    recorder = Recorder()
    deadlines = trio_vfio.Deadlines(first_connection=30, switchover=20)
    try:
        async with trio_vfio.open_incoming(
            "tcp:127.0.0.1:0", {DEVICE: recorder}, deadlines=deadlines
        ) as incoming:
            print("listening on", *incoming.addresses)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source, incoming.addresses[0])
                for device in incoming.devices.values():
                    nursery.start_soon(announce, device)
                result = await incoming.wait_complete()
    except trio_vfio.MigrationFailed as failed:
        raise SystemExit("\n".join(map(str, failed.exceptions))) from None
    print(f"received: {result.status} in {result.seconds:.3f} s")


if __name__ == "__main__":
    trio.run(main)
