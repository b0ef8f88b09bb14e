"""Receive a migration inside a Trio application, and watch each device.

The source is a scripted one, so that the example runs by itself; give a QEMU the
address that it prints, and the rest stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import trio

import trio_vfio
from trio_vfio.testing import ScriptedSource, state_packets

DEVICE = "0000:00:04.0/vfio"


class Recorder:
    """A device of the application's own: all that `trio_vfio.StateSink` asks for."""

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
        print(f"config of {len(blob)} bytes")

    async def finish(self) -> None:
        print(f"accepted: {bytes(self.state)!r}")

    async def abort(self) -> None:
        self.state.clear()


async def announce(device: trio_vfio.DeviceProgress) -> None:
    """Say when a device is loaded."""
    await device.state.wait_value(trio_vfio.DeviceState.COMPLETED)
    print(f"{device.idstr} is loaded: {device.data_bytes} bytes")


async def source(address: str) -> None:
    """Send what a QEMU would: state out of order, over two channels."""
    _, host, port = address.split(":")

    async def connect() -> trio.abc.Stream:
        return await trio.open_tcp_stream(host, int(port))

    peer = await ScriptedSource.connect(connect)
    first, second, config = state_packets(DEVICE, [b"Hello, ", b"world"], b"config")
    await peer.begin(DEVICE)
    await peer.switch_over()
    await peer.packets(0, config, second)
    await peer.packets(1, first)
    await peer.end()
    await peer.close()


async def main() -> None:
    sinks = {DEVICE: Recorder()}
    deadlines = trio_vfio.Deadlines(first_connection=10, switchover=5)
    try:
        async with trio_vfio.open_incoming(
            "tcp:127.0.0.1:0", sinks, deadlines=deadlines
        ) as incoming:
            print("listening on", *incoming.addresses)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source, incoming.addresses[0])
                for device in incoming.devices.values():
                    nursery.start_soon(announce, device)
                result = await incoming.wait_complete()
    except trio_vfio.MigrationFailed as failed:
        raise SystemExit("\n".join(map(str, failed.exceptions))) from None
    print(f"{result.status} in {result.seconds:.3f} s")


if __name__ == "__main__":
    trio.run(main)
