"""Take a snapshot of a device, and load it back into another one.

Both are migrations, within one process and without a network.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import trio

import trio_vfio
from trio_vfio.testing import link

DEVICE = "0000:00:04.0/vfio"


async def snapshot(device: trio_vfio.StateSource, where: Path) -> None:
    """Save *device*: afterwards there is a whole snapshot, or none."""
    directory = trio_vfio.SnapshotDirectory(where)
    here, there = link()
    async with trio_vfio.open_incoming(
        there, directory, digests=True, before_shut=directory.write_manifest
    ) as incoming:
        async with trio_vfio.open_outgoing(here, {DEVICE: device}) as outgoing:
            await outgoing.migrate()
        result = await incoming.wait_complete()
    print(f"saved {result.devices[0].data_bytes} bytes")


async def restore(where: Path, device: trio_vfio.StateSink) -> None:
    """Load the snapshot into *device*. Its files must be as they were written."""
    sources = await trio_vfio.SnapshotDirectory(where).sources()
    here, there = link()
    async with trio_vfio.open_incoming(there, {DEVICE: device}) as incoming:
        async with trio_vfio.open_outgoing(here, sources) as outgoing:
            await outgoing.migrate()
        result = await incoming.wait_complete()
    print(f"loaded {result.devices[0].data_bytes} bytes")


def digest(fd: int) -> str:
    """Return the digest of all that is in *fd*."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def main() -> None:
    one, other = os.memfd_create("one"), os.memfd_create("other")
    os.write(one, os.urandom(5_000_000))
    os.lseek(one, 0, os.SEEK_SET)
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory) / "snapshot"
        await snapshot(trio_vfio.FdSource(one, config=b"registers"), where)
        print(*sorted(path.name for path in where.iterdir()), sep="\n")
        target = trio_vfio.FdSink(other)
        await restore(where, target)
    print("the same" if digest(one) == digest(other) else "NOT the same")
    print(f"config: {target.config!r}")


if __name__ == "__main__":
    trio.run(main)
