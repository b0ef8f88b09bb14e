"""Move the VFIO devices of a running QEMU guest to a file, and back into another QEMU.

Both QEMUs are on this machine, of the same machine type and with the devices at the
same places. Each has ``-qmp unix:SOCKET,server=on,wait=off``, and the destination also
``-S -incoming defer``. The devices go to a snapshot, and from there to the destination.
If anything fails, takes too long or is interrupted with Ctrl-C before the destination
has them all, the guest runs on at the source, with its devices; what the destination
has got then is worth nothing, and whoever started it has to end it.

This is about devices: the guest's RAM is sent, too, and dropped. Whoever moves a whole
guest lets the source migrate to the address of the other QEMU.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import trio
from qemu.qmp import QMPClient, QMPError

import trio_vfio

CHANNELS = 4


class QemuError(Exception):
    """QEMU refuses, does not answer, or is not as it should be."""


async def execute(qmp: str, command: str, **arguments: object) -> Any:
    """Let a QEMU execute *command*, over a connection of its own."""

    async def talk() -> Any:
        client = QMPClient()
        # QEMU does not answer while it waits for a slow device.
        async with asyncio.timeout(30):
            await client.connect(qmp)
            try:
                return await client.execute(command, arguments)
            finally:
                with suppress(EOFError, OSError):  # it may have quit
                    await client.disconnect()  # noqa: ASYNC102 (of asyncio)

    try:
        # A cancel waits for it: no command is left half said.
        return await trio.to_thread.run_sync(lambda: asyncio.run(talk()))
    except (OSError, QMPError) as error:
        raise QemuError(f"{command} at {qmp}: {str(error) or 'no answer'}") from error


async def run_state(qmp: str) -> str:
    return str((await execute(qmp, "query-status"))["status"])


async def set_up(source: str, destination: str, downtime: float) -> None:
    """Prepare both QEMUs, at no cost for the guest."""
    on = [{"capability": name, "state": True} for name in ("multifd", "return-path")]
    limits = {"multifd-channels": CHANNELS, "downtime-limit": int(1000 * downtime)}
    for qmp, wanted in ((source, "running"), (destination, "inmigrate")):
        if (state := await run_state(qmp)) != wanted:
            raise QemuError(f"the guest at {qmp} is {state}, not {wanted}")
        await execute(qmp, "migrate-set-capabilities", capabilities=on)
        await execute(qmp, "migrate-set-parameters", **limits)
    # As with -S: when it has all devices, its guest is still to wait.
    await execute(destination, "stop")


async def show_progress(session: trio_vfio.Incoming | trio_vfio.Outgoing) -> None:
    while True:
        for device in session.devices.values():
            # How much there is, only the side that gives it knows.
            whole = device.expected_bytes
            share = f" ({100 * device.data_bytes // whole} %)" if whole else ""
            state = session.state.value.value
            print(f"{state}: {device.data_bytes} bytes{share} of {device.idstr}")
        await trio.sleep(0.2)


async def check_completed(qmp: str) -> None:
    """Ask QEMU: of some failures of its own it tells the other side nothing."""
    said = {"status": "active"}
    with trio.move_on_after(10):
        while said["status"] not in ("completed", "failed", "cancelled"):
            said = await execute(qmp, "query-migrate")
            await trio.sleep(0.05)
    if said["status"] != "completed":
        raise QemuError(f"the migration at {qmp} is {said}")


async def move(source: str, destination: str, where: str, downtime: float) -> None:
    """Move the devices. The guest then stands still, and could run at either side."""
    machine = await execute(destination, "qom-get", path="/machine", property="type")
    snapshot = trio_vfio.SnapshotDirectory(where)
    deadlines = trio_vfio.Deadlines(first_connection=10, switchover=downtime)
    with tempfile.TemporaryDirectory() as sockets:
        address = f"unix:{sockets}/there"
        async with (
            trio_vfio.open_incoming(
                address,
                snapshot,
                deadlines=deadlines,
                digests=True,
                before_shut=snapshot.write_manifest,
            ) as incoming,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(show_progress, incoming)
            await execute(source, "migrate", uri=address)
            await incoming.wait_complete()
            nursery.cancel_scope.cancel(reason="the migration is complete")
        await check_completed(source)
        print(f"saved in {where}; the guest stands still")

        address = f"unix:{sockets}/back"
        await execute(destination, "migrate-incoming", uri=address)
        async with (
            trio_vfio.open_outgoing(
                address,
                await snapshot.sources(),
                channels=CHANNELS,
                machine=machine.removesuffix("-machine"),
                deadlines=deadlines,
            ) as outgoing,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(show_progress, outgoing)
            await outgoing.migrate()
            nursery.cancel_scope.cancel(reason="the migration is complete")
        await check_completed(destination)


async def roll_back(source: str) -> None:
    """Let the source's guest run on, wherever the migration has come."""
    state = "in an unknown state"
    with suppress(QemuError), trio.move_on_after(60, shield=True):
        # What is under way does not stop it any more, and lets it run again. After a
        # migration that is complete it waits to be told.
        await execute(source, "migrate_cancel")
        while (state := await run_state(source)) in ("finish-migrate", "postmigrate"):
            if state == "postmigrate":
                await execute(source, "cont")
            await trio.sleep(0.05)
    print(f"the guest at the source is {state}")


async def move_or_roll_back(
    source: str, destination: str, where: str, downtime: float
) -> bool:
    """Return whether the guest runs at the destination now."""
    in_between = moved = False
    try:
        await set_up(source, destination, downtime)
        in_between = True
        await move(source, destination, where, downtime)
        # From now on it may run there, whatever we hear of it; so not here any more.
        in_between = False
        with trio.CancelScope(shield=True):
            await execute(destination, "cont")
            moved = True
            print("the guest at the destination is running")
            await execute(source, "quit")
    except* (OSError, ValueError, QemuError, trio_vfio.TrioVfioError) as failed:
        for fault in failed.exceptions:
            print("failed:", fault)
    finally:
        if in_between:
            await roll_back(source)  # noqa: ASYNC102 (has a shield and a deadline)
    return moved


async def cancel_on_signal(
    signals: AsyncIterator[int], scope: trio.CancelScope
) -> None:
    async for _ in signals:
        scope.cancel(reason="interrupted")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source-qmp", metavar="SOCKET", required=True)
    parser.add_argument("--snapshot", metavar="DIR", required=True)
    parser.add_argument("--destination-qmp", metavar="SOCKET", required=True)
    parser.add_argument("--downtime", metavar="SECONDS", type=float, default=5)
    given = parser.parse_args()
    moved = False
    # Before anything begins, so that no signal is raised as KeyboardInterrupt.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            moved = await move_or_roll_back(
                given.source_qmp,
                given.destination_qmp,
                given.snapshot,
                given.downtime,
            )
            nursery.cancel_scope.cancel(reason="it has ended")
    raise SystemExit(not moved)


if __name__ == "__main__":
    trio.run(main)
