"""A migration from QEMU into a session of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from trio_vfio import MigrationResult, SnapshotDirectory, open_incoming

from .qemu import Qemu


async def migrate(source: Qemu, address: str) -> None:
    """Migrate, successfully, and let go of the devices."""
    await source.migrate(address)
    assert await source.wait_status("completed") == "completed"
    assert await source.run_state() == "postmigrate"
    assert await source.quit() == 0


async def receive(source: Qemu, where: Path, **options: Any) -> MigrationResult:
    """Migrate into a snapshot in *where*, and let go of the devices.

    Args:
      options: of `open_incoming`, in place of ours.
    """
    snapshot = SnapshotDirectory(where / "snapshot")
    options = {"before_shut": snapshot.write_manifest, "digests": True, **options}
    async with open_incoming(
        f"unix:{where / 'socket'}", snapshot, **options
    ) as incoming:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(migrate, source, incoming.addresses[0])
            await incoming.wait_complete()
    return incoming.result()
