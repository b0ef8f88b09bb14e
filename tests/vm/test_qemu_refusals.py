"""Collaboration: what an unmodified QEMU refuses, and what becomes of us then.

A QEMU that refuses keeps its reason to itself, and sometimes even that it does.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs
import pytest

from trio_vfio import (
    ConnectionLost,
    Deadlines,
    DestinationFailed,
    FileSource,
    MigrationFailed,
    open_outgoing,
)

from . import qemu
from .checks import PAD_BUFFERS, PAD_KIB, Mttys
from .qemu import FIRST_MULTIFD_MACHINE, Setup, idstr
from .saved import Saved

OTHER_MACHINE: Final = "pc-q35-9.2"
SETUP: Final = Setup(machine=FIRST_MULTIFD_MACHINE)


def _same(content: bytes) -> bytes:
    return content


@attrs.frozen(kw_only=True)
class Case:
    """What differs from what would be taken, and what QEMU has to say of it."""

    qemu: str
    machine: str = FIRST_MULTIFD_MACHINE
    idstr: str = idstr()
    data: Callable[[bytes], bytes] = _same
    config: Callable[[bytes], bytes] = _same


SEEN: Final[Mapping[str, Case]] = {
    "machine type": Case(
        machine=OTHER_MACHINE,
        qemu=f"Machine type received is '{OTHER_MACHINE}'"
        f" and local is '{FIRST_MULTIFD_MACHINE}'",
    ),
    "device that is not there": Case(
        idstr=idstr(1), qemu=f" section or instance '{idstr(1)}' 0"
    ),
}


@pytest.mark.parametrize("case", SEEN.values(), ids=SEEN)
async def test_refused(case: Case, saved: Saved, mttys: Mttys, tmp_path: Path) -> None:
    (device,) = mttys(pad_kib=PAD_KIB)
    async with qemu.destination([device], tmp_path, SETUP) as destination:
        with pytest.raises(MigrationFailed) as failed:
            await send(case, saved, tmp_path, await destination.listen())
        assert await destination.process.wait() == 1
    assert case.qemu in destination.stderr
    (error,) = failed.value.exceptions
    # It leaves, and may or may not say why.
    assert isinstance(error, ConnectionLost | DestinationFailed)
    assert device.registers() == bytes(4)


UNSEEN: Final[Mapping[str, Case]] = {
    "config of another vendor": Case(
        config=lambda config: config[:4] + b"\xff\xff" + config[6:],
        qemu="get_pci_config_device: Bad config data: i=0x0 read: ff",
    ),
    "bad magic": Case(
        data=lambda data: b"\xff" + data[1:],
        qemu=f"writing state buffer 0 failed: {errno.EFAULT}",
    ),
    "too much": Case(
        data=lambda data: data + b"\0",
        qemu=f"writing state buffer {PAD_BUFFERS - 1} failed: {errno.ENOMEM}",
    ),
}


@pytest.mark.parametrize("case", UNSEEN.values(), ids=UNSEEN)
async def test_refused_in_a_load_thread(
    case: Case, saved: Saved, mttys: Mttys, tmp_path: Path
) -> None:
    """QEMU says that it has all, and then ends (W1).

    A source cannot tell, unless it is gone before all was sent.
    """
    (device,) = mttys(pad_kib=PAD_KIB)
    async with qemu.destination([device], tmp_path, SETUP) as destination:
        with suppress(MigrationFailed):
            await send(case, saved, tmp_path, await destination.listen())
        assert await destination.process.wait() == 1
    assert case.qemu in destination.stderr
    assert device.registers() == bytes(4)


async def test_truncated(saved: Saved, mttys: Mttys, tmp_path: Path) -> None:
    """QEMU says that it has all; only when its guest runs does the kernel judge.

    There is nothing of it that a source could see. QEMU resets the device.
    """
    (device,) = mttys(pad_kib=PAD_KIB)
    case = Case(
        data=lambda data: data[:-1],
        qemu="Failed setting device state to RUNNING_P2P. Recover state is ERROR."
        " Resetting device: Invalid argument",
    )
    async with qemu.destination([device], tmp_path, SETUP) as destination:
        await send(case, saved, tmp_path, await destination.listen())
        assert await destination.wait_status("completed") == "completed"
        await destination.cont()
        assert await destination.run_state() == "running"
        assert destination.device_states()[-1] == "running"
        assert await destination.quit() == 0
    assert case.qemu in destination.stderr
    assert device.registers() == bytes(4)


async def send(case: Case, saved: Saved, where: Path, address: str) -> None:
    """Send the first device that was saved, altered."""
    data, *_ = saved.paths
    config = FileSource(data).config_path.read_bytes()
    source = FileSource(where / "state")
    source.path.write_bytes(case.data(data.read_bytes()))
    source.config_path.write_bytes(case.config(config))
    # None of its deadlines is to end it.
    deadlines = Deadlines(handshake=None, silence=None)
    async with open_outgoing(
        address, {case.idstr: source}, machine=case.machine, deadlines=deadlines
    ) as outgoing:
        await outgoing.migrate()
