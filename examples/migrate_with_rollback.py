"""A migration script: deadlines, progress, and a guest that runs on if it fails.

The first destination has no room for the state; the second takes it. Interrupt it
with Ctrl-C: the guest runs on then, too, wherever it has been stopped. The signal
cancels the migration; without a receiver, Trio would raise KeyboardInterrupt in
whichever task runs, which may be the one that lets the guest run on.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import AsyncIterator

import trio

import trio_vfio
from trio_vfio.testing import SimulatedSink

DEVICE = "0000:00:04.0/vfio"
SIZE = 32 << 20


class Guest:
    """Stands in for a virtual machine."""

    runs = True
    moved = False

    async def pause(self) -> None:
        self.runs = False
        print("the guest stands still")

    def resume(self) -> None:
        self.runs = True
        print("the guest runs on, here")

    def leave(self, result: trio_vfio.MigrationResult) -> None:
        self.moved = True
        print(f"moved; the guest stood still for {result.switchover_seconds:.3f} s")


async def destination(
    device: trio_vfio.StateSink, task_status: trio.TaskStatus[str]
) -> None:
    """Stand in for the other machine."""
    try:
        async with trio_vfio.open_incoming(
            "tcp:127.0.0.1:0", {DEVICE: device}
        ) as incoming:
            task_status.started(incoming.addresses[0])
            await incoming.wait_complete()
    except trio_vfio.MigrationFailed as failed:
        print("the destination says:", *failed.exceptions)


async def show_progress(outgoing: trio_vfio.Outgoing) -> None:
    """Say how far it has come, ten times in a second."""
    while True:
        for device in outgoing.devices.values():
            percent = 100 * device.data_bytes // SIZE
            print(f"{outgoing.state.value.value}: {percent} % of {device.idstr}")
        await trio.sleep(0.1)


async def migrate(guest: Guest, address: str, state: int) -> None:
    """Move the guest's device to *address*, or let the guest run on."""
    source = trio_vfio.FdSource(state, precopy_bytes=SIZE // 2)
    # The guest stands still for twenty seconds at most.
    deadlines = trio_vfio.Deadlines(first_connection=30, handshake=30, switchover=20)
    outgoing = None
    try:
        async with (
            trio_vfio.open_outgoing(
                address, {DEVICE: source}, channels=4, deadlines=deadlines
            ) as outgoing,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(show_progress, outgoing)
            await outgoing.migrate(before_switchover=guest.pause)
            nursery.cancel_scope.cancel(reason="the migration is complete")
    except (trio_vfio.MigrationFailed, OSError) as failed:
        for fault in getattr(failed, "exceptions", [failed]):
            print("failed:", fault)
    finally:
        # Also after a cancel, which may come a moment after all has gone well.
        result = None if outgoing is None else outgoing.result()
        if result is not None and result.status == "completed":
            guest.leave(result)
        elif not guest.runs:
            # The device runs again already; nothing at the destination does.
            guest.resume()


async def cancel_on_signal(
    signals: AsyncIterator[int], scope: trio.CancelScope
) -> None:
    async for _ in signals:
        scope.cancel(reason="interrupted")


async def migrate_twice(guest: Guest) -> None:
    state = os.memfd_create("state")
    os.truncate(state, SIZE)
    full = SimulatedSink(
        seconds_per_mib=0.02, fails={"write": errno.ENOSPC}, fails_at_byte=SIZE - 1
    )
    try:
        for device in (full, SimulatedSink(seconds_per_mib=0.02)):
            async with trio.open_nursery() as nursery:
                address: str = await nursery.start(destination, device)
                await migrate(guest, address, state)
    finally:
        os.close(state)


async def main() -> None:
    guest = Guest()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            await migrate_twice(guest)
            nursery.cancel_scope.cancel(reason="both have ended")
    raise SystemExit(not guest.moved)


if __name__ == "__main__":
    trio.run(main)
