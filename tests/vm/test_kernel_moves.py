"""State moves between real VFIO devices, and registers are the same after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import pytest
import trio

from trio_vfio import (
    FileSink,
    FileSource,
    VfioSink,
    VfioSource,
    run_devices,
)
from trio_vfio._device._vfio._states import MigrationFlags
from trio_vfio.testing import check_state_source

from . import mtty
from .moving import DEVICE, Moved, move
from .mtty import SCRATCH, Mtty

Create = Callable[..., list[Mtty]]
Way = Literal["cdev", "group"]

HEADER: Final = 24
"""What an mtty gives in PRE_COPY: the head of its state, without a register."""

REGISTERS: Final = bytes([0x05, 0x1B, 0x0F, 0xA5])


async def move_device(source: VfioSource, sink: VfioSink) -> Moved:
    """Move one device, let it run, and close it."""
    async with sink:
        moved = await move({DEVICE: source}, {DEVICE: sink})
        assert moved.faults == []
        await run_devices([sink])
    return moved


@pytest.mark.parametrize("precopy", [True, False])
@pytest.mark.parametrize(
    ("here", "there"),
    [("group", "cdev"), ("cdev", "group"), ("group", "group"), ("cdev", "cdev")],
)
async def test_registers(mttys: Create, here: Way, there: Way, precopy: bool) -> None:
    a, b = mttys(count=2)
    a.set_registers(REGISTERS)
    source = VfioSource(a.uuid, through=here, precopy=precopy)
    moved = await move_device(source, VfioSink(b.uuid, through=there))
    assert moved.completed
    assert moved.received is not None
    (device,) = moved.received.devices
    assert device.precopy_bytes == (HEADER if precopy else 0)
    assert device.data_bytes == len(a.saved())
    assert b.registers() == a.registers() == REGISTERS
    assert b.state() == "RUNNING"


async def test_the_source_is_let_go_of(mttys: Create) -> None:
    a, b = mttys(count=2)
    await move_device(VfioSource(a.uuid), VfioSink(b.uuid))
    assert a.state() == "STOP"
    # And can be saved as it stands, without a pre-copy.
    moved = await move_device(VfioSource(a.uuid), VfioSink(b.uuid))
    assert moved.received is not None
    assert moved.received.devices[0].precopy_bytes == 0


async def test_a_copy_lets_the_source_run_on(mttys: Create) -> None:
    a, b = mttys(count=2)
    await move_device(VfioSource(a.uuid, run_on=True), VfioSink(b.uuid))
    assert a.state() == "RUNNING"


async def test_writes_go_on_while_it_is_saved(mttys: Create) -> None:
    """What the guest does until it is stopped arrives; nothing behind that does."""
    a, b = mttys(count=2)
    with a.opened() as fd:
        writes = 0

        def guest(stop: threading.Event) -> None:
            nonlocal writes
            while not stop.is_set():
                writes += 1
                mtty.poke_open(fd, SCRATCH, writes % 256)

        stop = threading.Event()
        thread = threading.Thread(target=guest, args=[stop])

        async def stop_guest() -> None:
            stop.set()
            await trio.to_thread.run_sync(thread.join)
            mtty.poke_open(fd, SCRATCH, 0x42)

        thread.start()
        try:
            sink = VfioSink(b.uuid)
            async with sink:
                moved = await move(
                    {DEVICE: VfioSource(fd)},
                    {DEVICE: sink},
                    before_switchover=stop_guest,
                )
                await sink.run()
        finally:
            stop.set()
        # The descriptor is still its owner's.
        assert os.readlink(f"/proc/self/fd/{fd}")
    assert moved.completed
    assert moved.received is not None
    assert moved.received.devices[0].precopy_bytes == HEADER
    assert writes > 0
    assert b.registers() == a.registers()
    assert b.registers()[-1] == 0x42


async def test_a_large_state_over_many_channels(mttys: Create) -> None:
    a, b = mttys(count=2, pad_kib=5000)
    a.set_registers(REGISTERS)
    sink = VfioSink(b.uuid)
    async with sink:
        moved = await move({DEVICE: VfioSource(a.uuid)}, {DEVICE: sink}, channels=5)
        assert moved.completed
        await sink.run()
    assert moved.received is not None
    (device,) = moved.received.devices
    assert device.buffers == 5
    assert device.data_bytes == 5000 * 1024 + len(mttys()[0].saved())
    assert b.registers() == REGISTERS


async def test_devices_with_two_ports(mttys: Create) -> None:
    a, b = mttys(ports=2, count=2)
    a.set_registers(REGISTERS + bytes(reversed(REGISTERS)))
    await move_device(VfioSource(a.uuid), VfioSink(b.uuid))
    assert b.registers() == a.registers()


async def test_several_devices_together(mttys: Create) -> None:
    """All are stopped in the order in which they may access each other, and run so."""
    sources, sinks = mttys(count=3), mttys(count=3, pad_kib=0)
    for number, each in enumerate(sources):
        each.poke(SCRATCH, 0x50 + number)
    names = [f"0000:00:0{4 + number}.0/vfio" for number in range(3)]
    opened = [VfioSink(each.uuid) for each in sinks]
    moved = await move(
        {
            name: VfioSource(each.uuid)
            for name, each in zip(names, sources, strict=True)
        },
        dict(zip(names, opened, strict=True)),
    )
    assert moved.completed
    await run_devices(opened)
    for sink in opened:
        await sink.aclose()
    assert [each.registers()[-1] for each in sinks] == [0x50, 0x51, 0x52]
    assert {each.state() for each in sinks} == {"RUNNING"}
    assert {each.state() for each in sources} == {"STOP"}


async def test_a_device_that_works_with_others_first(mttys: Create) -> None:
    """Each stands between the two states of a start that others take part in."""
    a, b = mttys(count=2)
    async with VfioSink(b.uuid) as sink:
        await move({DEVICE: VfioSource(a.uuid)}, {DEVICE: sink})
        assert mtty.state_of(sink.fileno()) == "STOP"
        await sink.run_p2p()
        assert mtty.state_of(sink.fileno()) == "RUNNING_P2P"
        await sink.run()
        assert mtty.state_of(sink.fileno()) == "RUNNING"


async def test_to_a_file_and_back(mttys: Create, tmp_path: Path) -> None:
    a, b = mttys(count=2, pad_kib=1500)
    a.set_registers(REGISTERS)
    kept = tmp_path / "state"
    first = await move({DEVICE: VfioSource(a.uuid)}, {DEVICE: FileSink(kept)})
    assert first.completed
    assert kept.read_bytes() == a.saved()
    sink = VfioSink(b.uuid)
    async with sink:
        second = await move({DEVICE: FileSource(kept)}, {DEVICE: sink})
        assert second.completed
        assert sink.config is not None
        # The Vendor ID of the sample driver.
        assert sink.config.vendor_id == 0x4348
        await sink.run()
    assert b.registers() == REGISTERS


STOP_COPY: Final = MigrationFlags.STOP_COPY
P2P: Final = MigrationFlags.P2P
PRE_COPY: Final = MigrationFlags.PRE_COPY


@pytest.mark.parametrize(
    "flags", [STOP_COPY, STOP_COPY | P2P, STOP_COPY | PRE_COPY], ids=repr
)
async def test_devices_that_can_do_less(mttys: Create, flags: MigrationFlags) -> None:
    """States that they do not have are passed over."""
    mtty.parameter("hide_flags", (P2P | PRE_COPY) & ~flags)
    a, b = mttys(count=2, pad_kib=100)
    a.set_registers(REGISTERS)
    async with VfioSink(b.uuid) as sink:
        moved = await move({DEVICE: VfioSource(a.uuid)}, {DEVICE: sink})
        assert moved.completed
        await sink.run_p2p()
        state = mtty.state_of(sink.fileno())
        assert state == ("RUNNING_P2P" if P2P in flags else "STOP")
        await sink.run()
    assert moved.received is not None
    early = HEADER if PRE_COPY in flags else 0
    assert moved.received.devices[0].precopy_bytes == early
    assert b.registers() == REGISTERS
    assert (a.state(), b.state()) == ("STOP", "RUNNING")


@pytest.mark.parametrize("parameter", ["precopy_enomsg", "eagain"])
async def test_drivers_that_say_it_another_way(mttys: Create, parameter: str) -> None:
    """ENOMSG at the end of pre-copy; EAGAIN where the device needs time."""
    a, b = mttys(count=2, pad_kib=100)
    mtty.parameter(parameter, 1)
    a.set_registers(REGISTERS)
    moved = await move_device(VfioSource(a.uuid), VfioSink(b.uuid))
    assert moved.received is not None
    assert moved.received.devices[0].precopy_bytes == HEADER
    assert b.registers() == REGISTERS


async def test_short_reads_and_writes(mttys: Create) -> None:
    a, b = mttys(count=2, pad_kib=8)
    mtty.parameter("short_io", 7)
    a.set_registers(REGISTERS)
    moved = await move_device(VfioSource(a.uuid), VfioSink(b.uuid))
    assert moved.received is not None
    # They do not make short packets.
    assert moved.received.devices[0].buffers == 1
    assert b.registers() == REGISTERS


async def test_a_kernel_source_keeps_to_the_contract(mttys: Create) -> None:
    (a,) = mttys(pad_kib=300)
    state = a.saved()
    await check_state_source(lambda: VfioSource(a.uuid, run_on=True), state)
    assert a.state() == "RUNNING"


async def test_twenty_migrations_leave_nothing_behind(mttys: Create) -> None:
    a, b = mttys(count=2, pad_kib=2100)
    devices = [a, b]
    after: list[tuple[int, int, int]] = []
    for _ in range(20):
        await move_device(VfioSource(devices[0].uuid), VfioSink(devices[1].uuid))
        devices.reverse()
        tasks = trio.lowlevel.current_statistics().tasks_living
        fds = len(os.listdir("/proc/self/fd"))
        after.append((fds, threading.active_count(), tasks))
    # Trio keeps threads for a while that it may need again, but no more of them.
    assert after[-1][0] == after[0][0]
    assert after[-1][1] <= max(threads for _, threads, _ in after[:3])
    assert after[-1][2] == after[0][2]
