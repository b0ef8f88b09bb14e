"""Collaboration: an unmodified QEMU at one end, a device of the kernel at ours."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Literal

import pytest
import trio

from trio_vfio import VfioSink, VfioSource, open_incoming, open_outgoing

from ..cli.processes import running
from . import mtty, qemu
from .checks import (
    PAD_KIB,
    Mttys,
    check_received,
    make_devices,
    registers,
)
from .moving import wait_written
from .mtty import STATES
from .qemu import FIRST_MULTIFD_MACHINE, Setup, idstr
from .receiving import migrate, receive
from .replay import accept

SETUP = Setup(machine=FIRST_MULTIFD_MACHINE, channels=4)


@pytest.mark.qemu_11
@pytest.mark.parametrize("way", ["cdev", "group"])
async def test_send_a_device(way: str, mttys: Mttys, tmp_path: Path) -> None:
    """The config that is built of its registers is one that QEMU takes."""
    devices = make_devices(mttys, 2, pad_kib=PAD_KIB)
    taking = mttys(count=2, pad_kib=PAD_KIB)
    state = [device.saved() for device in devices]
    async with qemu.destination(taking, tmp_path, SETUP) as destination:
        arguments = [
            f"--device={idstr(number)}=vfio:{device.uuid},{way}"
            for number, device in enumerate(devices)
        ]
        arguments += [f"--machine={SETUP.machine}", f"--channels={SETUP.channels}"]
        address = await destination.listen()
        async with running("send", address, "--json", "--quiet", *arguments) as run:
            pass
        assert run.process.returncode == 0
        await accept(destination)
    assert run.result["status"] == "completed"
    assert [each["precopy_bytes"] for each in run.result["devices"]] == [24, 24]
    assert [device.saved() for device in taking] == state
    for number, device in enumerate(taking):
        assert device.registers() == registers(number)


@pytest.mark.qemu_11
@pytest.mark.parametrize("through", ["cdev", "group"])
async def test_there_and_back(
    through: Literal["cdev", "group"], mttys: Mttys, tmp_path: Path
) -> None:
    """From a guest into a device without one, and from there into another guest."""
    (first,) = make_devices(mttys, pad_kib=PAD_KIB)
    (between,), (last,) = mttys(pad_kib=PAD_KIB), mttys(pad_kib=PAD_KIB)
    async with VfioSink(between.uuid, through=through) as sink:
        async with (
            qemu.source([first], tmp_path, SETUP, runs=True) as source,
            open_incoming(f"unix:{tmp_path / 'socket'}", {idstr(): sink}) as incoming,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(migrate, source, incoming.addresses[0])
            await incoming.wait_complete()
        assert sink.config is not None
        await sink.run()
    async with qemu.destination([last], tmp_path, SETUP) as destination:
        device = VfioSource(between.uuid, through=through)
        async with open_outgoing(
            await destination.listen(),
            {idstr(): device},
            machine=SETUP.machine,
            channels=4,
        ) as outgoing:
            await outgoing.migrate()
        await accept(destination)
    assert last.registers() == registers()
    assert last.saved() == first.saved()


async def test_a_device_of_another_kind(mttys: Mttys, tmp_path: Path) -> None:
    """QEMU hears of it, its guest runs on, and our device is as new."""
    (two,), (one,) = make_devices(mttys, ports=2), mttys()
    async with running(
        "receive",
        "tcp:127.0.0.1:0",
        "--quiet",
        f"--device={idstr()}=vfio:{one.uuid}",
    ) as run:
        address = await run.address()
        async with qemu.source([two], tmp_path, SETUP, runs=True) as source:
            await source.migrate(address)
            assert await source.wait_status() == "failed"
            await source.wait_running()
            assert source.traced("source_return_path_thread_shut") == ["0x1"]
            assert source.device_states()[-1] == "running"
            assert await source.quit() == 0
    assert run.process.returncode == 1
    (error,) = run.errors
    assert error.startswith(f"{idstr()}: write at byte 0: EFAULT: Bad address")
    assert one.state() == "RUNNING"
    assert two.registers() == registers(ports=2)


@pytest.mark.parametrize("state", ["RESUMING", "STOP"])
async def test_a_device_that_fails_a_step(
    state: str, mttys: Mttys, tmp_path: Path
) -> None:
    """As soon as it begins, while QEMU sends over its channels."""
    (device,), (sink,) = make_devices(mttys), mttys()
    async with qemu.source([device], tmp_path, SETUP, runs=True) as source:
        await source.wait_running()
        mtty.parameter("fail_errno", errno.EIO)
        mtty.parameter("fail_state", STATES.index(state))
        with pytest.RaisesGroup(pytest.RaisesExc(match="begin: EIO: ")):
            async with open_incoming(
                f"unix:{tmp_path / 'socket'}", {idstr(): VfioSink(sink.uuid)}
            ) as incoming:
                await source.migrate(incoming.addresses[0])
                await incoming.wait_complete()
        assert await source.wait_status() == "failed"
        mtty.clear_parameters()
        await source.wait_running()
        # And then it works.
        again = tmp_path / "again"
        again.mkdir()
        result = await receive(source, again)
    check_received(result, [device])
    assert sink.state() == "RUNNING"


async def test_cancelled_during_a_blocked_write(mttys: Mttys, tmp_path: Path) -> None:
    """The source hears of it at once; we end with the write, and the device is reset."""
    (device,), (sink,) = (
        make_devices(mttys, pad_kib=PAD_KIB),
        mttys(pad_kib=PAD_KIB),
    )
    # For a signal to be heard in the first, also on a busy machine.
    seconds_of_a_write = 6
    mtty.parameter("write_msecs", 1000 * seconds_of_a_write)
    trace = tmp_path / "ours"
    async with running(
        "receive",
        "tcp:127.0.0.1:0",
        "--quiet",
        "--json",
        f"--trace={trace}",
        f"--device={idstr()}=vfio:{sink.uuid}",
    ) as run:
        address = await run.address()
        async with qemu.source([device], tmp_path, SETUP, runs=True) as source:
            await source.migrate(address)
            await wait_written(trace, "buffer_load_start")
            began = trio.current_time()
            run.process.send_signal(signal.SIGINT)
            assert await source.wait_status() == "failed"
            await source.wait_running()
            heard = trio.current_time() - began
            await run.process.wait()
            ended = trio.current_time() - began
            assert source.traced("source_return_path_thread_shut") == ["0x1"]
            assert source.device_states()[-1] == "running"
            assert await source.quit() == 0
    assert run.process.returncode == 130
    assert run.result["status"] == "cancelled"
    # The guest did not wait for the write; we did, and for no other.
    assert heard < seconds_of_a_write < 2 * ended
    assert ended < 2 * seconds_of_a_write
    assert trace.read_text().count("buffer_load_end") <= 1
    assert sink.state() == "RUNNING"
    assert device.registers() == registers()
