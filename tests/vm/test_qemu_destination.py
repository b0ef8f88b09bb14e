"""Collaboration: an unmodified QEMU takes what we replay, and what we send.

Its devices are looked at when its guest has run: only then does it let them accept
their state (RESUMING to STOP).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from trio_vfio import (
    FileSource,
    MigrationResult,
    StateSource,
    open_outgoing,
)
from trio_vfio._capture._player import play
from trio_vfio._link._address import connect, parse_address

from ..captures_data import COMPLETE, CaptureFiles
from ..cli.processes import running
from . import qemu
from .checks import PAD_KIB, Mttys
from .qemu import Setup, idstr
from .replay import accept, devices_for, machine_of, meta_of, setup_of
from .saved import Saved

MACHINE: Final = qemu.FIRST_MULTIFD_MACHINE


@pytest.mark.qemu_11
@pytest.mark.parametrize(
    "files",
    [files for files in COMPLETE if machine_of(files) in qemu.machines()],
    ids=lambda files: files.name,
)
async def test_replay(files: CaptureFiles, mttys: Mttys, tmp_path: Path) -> None:
    """Byte for byte; it answers as the one that was there has done."""
    devices = devices_for(files, mttys)
    async with qemu.destination(devices, tmp_path, setup_of(files)) as destination:
        address = parse_address(await destination.listen())
        answers = await play(files.directory, partial(connect, address))
        await accept(destination)
    assert answers == (files.return_path or b"")
    for device, expected in zip(devices, files.expected["devices"], strict=True):
        assert hashlib.sha256(device.saved()).hexdigest() == expected["sha256"]
    scratch = meta_of(files)["scratch_source"]
    assert [hex(device.registers()[-1]) for device in devices] == scratch


async def send(
    address: str, sources: Sequence[StateSource], **options: Any
) -> MigrationResult:
    """Send *sources* as the first devices of a guest."""
    named = {idstr(number): source for number, source in enumerate(sources)}
    async with open_outgoing(address, named, **options) as outgoing:
        return await outgoing.migrate()


@pytest.mark.qemu_11
async def test_send_command(saved: Saved, mttys: Mttys, tmp_path: Path) -> None:
    """A whole snapshot; the machine type has to be given."""
    devices = mttys(count=2, pad_kib=PAD_KIB)
    setup = Setup(machine=MACHINE, channels=4)
    async with qemu.destination(devices, tmp_path, setup) as destination:
        arguments = [
            f"--machine={MACHINE}",
            "--channels=4",
            f"--from={saved.directory}",
        ]
        async with running(
            "send", await destination.listen(), "--json", "--quiet", *arguments
        ) as run:
            pass
        assert run.process.returncode == 0
        assert run.result["status"] == "completed"
        await accept(destination)
    saved.check_loaded(devices)


@pytest.mark.parametrize("channels", [1, 2, 16])
@pytest.mark.parametrize("return_path", [True, False])
async def test_send(
    return_path: bool, channels: int, saved: Saved, mttys: Mttys, tmp_path: Path
) -> None:
    devices = mttys(count=2, pad_kib=PAD_KIB)
    setup = Setup(machine=MACHINE, channels=channels, return_path=return_path)
    sources = [FileSource(path) for path in saved.paths]
    async with qemu.destination(devices, tmp_path, setup) as destination:
        result = await send(
            await destination.listen(),
            sources,
            machine=MACHINE,
            channels=channels,
            return_path=return_path,
        )
        assert result.status == "completed"
        await accept(destination)
    saved.check_loaded(devices)


@pytest.mark.qemu_11
@pytest.mark.parametrize("machine", sorted({MACHINE, qemu.machines()[0]}))
async def test_send_with_switchover_ack(
    machine: str, saved: Saved, mttys: Mttys, tmp_path: Path
) -> None:
    """Part of the state goes early, and QEMU says that it is ready for the rest."""
    devices = mttys(count=2, pad_kib=PAD_KIB)
    setup = Setup(machine=machine, switchover_ack=True)
    sources = [FileSource(path, precopy_bytes=1000) for path in saved.paths]
    async with qemu.destination(devices, tmp_path, setup) as destination:
        result = await send(
            await destination.listen(), sources, machine=machine, switchover_ack=True
        )
        assert [each.precopy_bytes for each in result.devices] == [1000, 1000]
        await accept(destination)
    saved.check_loaded(devices)
