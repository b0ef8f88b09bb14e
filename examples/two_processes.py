"""Migrate two devices from this process to another, over a unix socket.

The other process is the command: it could be on another machine, or a QEMU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

import trio_vfio

DEVICES = "0000:00:04.0/vfio", "0000:00:05.0/vfio"
MIB = 1 << 20


async def destination(
    address: str, where: Path, task_status: trio.TaskStatus[None]
) -> None:
    """Run ``trio-vfio receive`` to its end; it is started when it listens."""
    devices = [f"--device={each}=file:{where / each[5:12]}" for each in DEVICES]
    # Quiet: the only line on stderr says that it listens, however long it runs.
    command = [sys.executable, "-m", "trio_vfio", "receive", "--quiet", address]
    command += devices
    async with trio.open_nursery() as nursery:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        run = partial(trio.run_process, command, **streams)
        process: trio.Process = await nursery.start(run)
        assert process.stderr is not None
        async for line in process.stderr:
            print("destination:", line.decode().strip())
            task_status.started()


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        sources = {}
        for number, idstr in enumerate(DEVICES, 1):
            path = where / f"state{number}"
            path.write_bytes(os.urandom(number * 8 * MIB))
            sources[idstr] = trio_vfio.FileSource(path, precopy_bytes=2 * MIB)
        address = f"unix:{where / 'socket'}"
        async with trio.open_nursery() as nursery:
            await nursery.start(destination, address, where)
            async with trio_vfio.open_outgoing(
                address, sources, channels=4
            ) as outgoing:
                result = await outgoing.migrate()
        for number, device in enumerate(result.devices, 1):
            state = (where / f"state{number}").read_bytes()
            same = (where / device.idstr[5:12]).read_bytes() == state
            mib = device.data_bytes / MIB
            print(f"{device.idstr}: {mib:.0f} MiB, {'the same' if same else 'NOT'}")


if __name__ == "__main__":
    trio.run(main)
