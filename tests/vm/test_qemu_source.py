"""Collaboration: an unmodified QEMU migrates into ours.

What came is compared with what the kernel says, afterwards, of the same device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import pytest

from trio_vfio import (
    MigrationFailed,
    MigrationResult,
    NullSink,
    open_incoming,
)

from ..cli.processes import running
from . import qemu
from .checks import PAD_BUFFERS, PAD_KIB, Mttys, check_received, make_devices
from .qemu import Setup, idstr
from .receiving import migrate, receive
from .sinks import SINKS, MakeSinks

ACKED: Final = "source_return_path_thread_switchover_acked"
SWITCHOVER: Final = "savevm_send_switchover_start"

MACHINES: Final = tuple(dict.fromkeys((qemu.machines()[0], qemu.FIRST_MULTIFD_MACHINE)))
"""The newest that there is, and the first that can."""


@pytest.mark.qemu_11
@pytest.mark.parametrize("make_sinks", SINKS.values(), ids=SINKS)
async def test_command(make_sinks: MakeSinks, mttys: Mttys, tmp_path: Path) -> None:
    """Into sinks of every kind, with several buffers for each of two devices."""
    devices = make_devices(mttys, 2, pad_kib=PAD_KIB)
    sinks = make_sinks(tmp_path, devices, mttys)
    async with (
        running(
            "receive", "tcp:127.0.0.1:0", "--json", "--quiet", *sinks.options
        ) as run,
        qemu.source(devices, tmp_path, Setup(channels=4)) as source,
    ):
        await migrate(source, await run.address())
    assert run.process.returncode == 0
    assert len(run.lines) == 1
    check_received(run.result, devices, buffers=PAD_BUFFERS)
    assert [each["id"] for each in run.result["channels"]] == [0, 1, 2, 3]
    assert sinks.loaded() in ([], [device.saved() for device in devices])


@attrs.frozen(kw_only=True)
class Case:
    """A way to migrate."""

    setup: Setup
    transfer: str = "multifd"
    ports: int = 1
    channels: int
    """How many come."""


CASES: Final[Mapping[str, Case]] = {
    "1 channel": Case(setup=Setup(channels=1), channels=1),
    "16 channels": Case(setup=Setup(channels=16), channels=16),
    "auto": Case(setup=Setup(transfer="auto"), channels=2),
    "not said": Case(setup=Setup(transfer=""), channels=2),
    "off": Case(setup=Setup(transfer="off"), transfer="main", channels=2),
    "no multifd": Case(
        setup=Setup(transfer="auto", channels=None), transfer="main", channels=0
    ),
    "nor a return path": Case(
        setup=Setup(transfer="off", channels=None, return_path=False),
        transfer="main",
        channels=0,
    ),
    "two ports": Case(setup=Setup(), ports=2, channels=2),
    "iommufd": Case(setup=Setup(iommufd=True), channels=2),
    "machine type 9.2": Case(
        setup=Setup(machine="pc-q35-9.2", transfer=""), transfer="main", channels=2
    ),
}


@pytest.mark.qemu_11
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_settings(case: Case, mttys: Mttys, tmp_path: Path) -> None:
    """However QEMU is told to do it, the whole state comes, and is said to."""
    devices = make_devices(mttys, ports=case.ports)
    async with qemu.source(devices, tmp_path, case.setup) as source:
        result = await receive(source, tmp_path)
    check_received(result, devices, transfer=case.transfer)
    assert [each.id for each in result.channels] == [*range(case.channels)]
    by_device = sum(each.device_state_packets for each in result.channels)
    assert by_device == (2 if case.transfer == "multifd" else 0)
    # Not all that ours takes for a migration has it.
    assert len(source.traced(SWITCHOVER)) == (case.setup.machine != "pc-q35-9.2")
    shut = source.traced("source_return_path_thread_shut")
    assert shut == (["0x0"] if case.setup.return_path else [])


@pytest.mark.qemu_11
@pytest.mark.parametrize("machine", MACHINES)
async def test_switchover_ack(machine: str, mttys: Mttys, tmp_path: Path) -> None:
    """QEMU's guest runs until it has heard of as many as it waits for."""
    devices = make_devices(mttys, 2)
    setup = Setup(machine=machine, channels=4, switchover_ack=True)
    async with qemu.source(devices, tmp_path, setup, runs=True) as source:
        result = await receive(source, tmp_path)
    check_received(result, devices)
    acks = 1 if machine == "pc-q35-10.0" else len(devices)
    assert len(source.traced(ACKED)) == acks
    states = source.device_states()
    assert (states[0], states[-1]) == ("pre-copy", "stop")


@pytest.mark.qemu_11
async def test_completed_when_we_say_so(mttys: Mttys, tmp_path: Path) -> None:
    """QEMU waits until then, also when all that it had to give is loaded."""
    devices = make_devices(mttys)
    said: list[str] = []

    async def before_shut(_: MigrationResult) -> None:
        said.append(await source.wait_status("device"))
        said.append(await source.run_state())

    async with qemu.source(devices, tmp_path, runs=True) as source:
        result = await receive(source, tmp_path, before_shut=before_shut)
    assert said == ["device", "finish-migrate"]
    check_received(result, devices)


async def test_without_a_return_path(mttys: Mttys, tmp_path: Path) -> None:
    """QEMU may then cut its own last packets; it says ``completed`` all the same.

    We say so only if it has not.
    """
    devices = make_devices(mttys, pad_kib=PAD_KIB)
    setup = Setup(channels=4, return_path=False)
    async with qemu.source(devices, tmp_path, setup) as source:
        try:
            result = await receive(source, tmp_path)
        except MigrationFailed as failed:
            assert failed.result.devices[0].status == "failed"
            assert not (tmp_path / "snapshot" / "manifest.json").exists()
            assert await source.wait_status() == "completed"
            return
    check_received(result, devices, buffers=PAD_BUFFERS)


async def test_multifd_transfer_that_a_machine_type_has_not(
    mttys: Mttys, tmp_path: Path
) -> None:
    """QEMU gives up before it has sent anything; so do we."""
    devices = make_devices(mttys)
    setup = Setup(machine="pc-q35-9.2", transfer="on")
    async with qemu.source(devices, tmp_path, setup, runs=True) as source:
        with pytest.raises(MigrationFailed):
            async with open_incoming(
                f"unix:{tmp_path / 'socket'}", {idstr(): NullSink()}
            ) as incoming:
                await source.migrate(incoming.addresses[0])
                await incoming.wait_complete()
        assert await source.wait_status() == "failed"
        await source.wait_running()
