"""Collaboration: what becomes of QEMU when ours fails. It always goes on.

With a return path it hears so, or sees the connection break, and says ``failed``;
its guest runs on, its device too, and it can be migrated again.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from trio_vfio import (
    DeviceError,
    DeviceState,
    MigrationFailed,
    MigrationResult,
    NullSink,
    StateSink,
    open_incoming,
)
from trio_vfio._wire._limits import MIB
from trio_vfio.testing import SimulatedSink

from ..cli.processes import Running, running
from . import qemu
from .checks import (
    PAD_BUFFERS,
    PAD_KIB,
    PRECOPY_BYTES,
    Mttys,
    check_received,
    make_devices,
)
from .firmware import HALT
from .qemu import Qemu, Setup, idstr
from .receiving import receive

SETUP: Final = Setup(channels=4, firmware=HALT)


@asynccontextmanager
async def surviving(mttys: Mttys, where: Path) -> AsyncGenerator[Qemu]:
    """Run a QEMU that goes on after the migration in the block has failed.

    The block begins the migration, and ends when ours has failed.
    """
    devices = make_devices(mttys, pad_kib=PAD_KIB)
    async with qemu.source(devices, where, SETUP, runs=True) as source:
        yield source
        assert await source.wait_status() == "failed"
        await source.wait_running()
        # Back from wherever it was, if it was anywhere.
        assert source.device_states()[-1:] in ([], ["running"])
        again = where / "again"
        again.mkdir()
        result = await receive(source, again)
    check_received(result, devices, buffers=PAD_BUFFERS)


MIDDLE: Final = PRECOPY_BYTES + 2 * MIB
"""Where in the state of a device the guest stands still, and more is to come."""


@pytest.mark.qemu_11
@pytest.mark.parametrize(
    ("operation", "fails", "at"),
    [
        ("begin", "begin", None),
        ("write", "write", 0),
        ("write", "write", MIDDLE),
        ("load_config", "load_config", None),
        ("finish", "finish", None),
    ],
    ids=["begin", "first write", "later write", "load_config", "finish"],
)
async def test_a_device_that_fails(
    operation: str, fails: str, at: int | None, mttys: Mttys, tmp_path: Path
) -> None:
    number = errno.EREMOTEIO
    sink = SimulatedSink(fails={fails: number}, fails_at_byte=at)
    async with surviving(mttys, tmp_path) as source:
        with pytest.raises(MigrationFailed) as failed:
            await receive_into(sink, source, tmp_path)
    # The second one is of the migration that came after it.
    assert source.traced("source_return_path_thread_shut") == ["0x1", "0x0"]
    (error,) = failed.value.exceptions
    assert isinstance(error, DeviceError)
    assert (error.operation, error.errno) == (operation, number)


async def test_the_last_check_fails(mttys: Mttys, tmp_path: Path) -> None:
    """All devices were loaded, but the machine around them was not."""

    async def before_shut(_: MigrationResult) -> None:
        raise ZeroDivisionError

    async with surviving(mttys, tmp_path) as source:
        with pytest.raises(ZeroDivisionError):
            await receive_into(NullSink(), source, tmp_path, before_shut=before_shut)


async def test_left_in_the_middle(mttys: Mttys, tmp_path: Path) -> None:
    """Whose block ends while a device is stuck in a write."""
    sink = SimulatedSink(hangs_at_byte=MIDDLE)
    async with (
        surviving(mttys, tmp_path) as source,
        open_incoming(
            f"unix:{tmp_path / 'socket'}", {idstr(): sink}, device_grace=0.1
        ) as incoming,
    ):
        await source.migrate(incoming.addresses[0])
        device = incoming.devices[idstr()]
        await device.state.wait_value(DeviceState.LOADING)
    assert sink.aborted
    assert incoming.result().status == "cancelled"


async def test_a_destination_that_stops_listening(mttys: Mttys, tmp_path: Path) -> None:
    """After the main channel, and before the others."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()
    async with surviving(mttys, tmp_path) as source:
        async with listener:
            await source.migrate(f"tcp:{host}:{port}")
            main = await listener.accept()
        with pytest.raises(MigrationFailed):
            async with main, open_incoming([main], {idstr(): NullSink()}) as incoming:
                await incoming.wait_complete()


async def receive_into(
    sink: StateSink, source: Qemu, where: Path, **options: Any
) -> None:
    """Migrate from *source* into *sink*."""
    async with open_incoming(
        f"unix:{where / 'socket'}", {idstr(): sink}, **options
    ) as incoming:
        await source.migrate(incoming.addresses[0])
        await incoming.wait_complete()


async def test_command_with_a_device_that_is_full(mttys: Mttys, tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with surviving(mttys, tmp_path) as source:
            async with receiving_into(full) as run:
                await source.migrate(await run.address())
            assert run.process.returncode == 1
    finally:
        os.close(full)
    (error,) = run.errors
    assert idstr() in error
    assert "ENOSPC" in error


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 128 + signal.SIGINT),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
async def test_command_that_is_ended(
    number: signal.Signals, status: int, mttys: Mttys, tmp_path: Path
) -> None:
    """In the middle of a write, while the source's guest stands still."""
    reading, writing = os.pipe()
    try:
        async with surviving(mttys, tmp_path) as source:
            async with (
                trio.lowlevel.FdStream(reading) as pipe,
                receiving_into(writing) as run,
            ):
                await source.migrate(await run.address())
                taken = 0
                while taken <= PRECOPY_BYTES:
                    taken += len(await pipe.receive_some(PRECOPY_BYTES + 1))
                assert await source.wait_status("device") == "device"
                run.process.send_signal(number)
            assert run.process.returncode == status
    finally:
        os.close(writing)
    shut = source.traced("source_return_path_thread_shut")
    # The second one is of the migration that came after it.
    assert shut == (["0x0"] if number == signal.SIGKILL else ["0x1", "0x0"])


@asynccontextmanager
async def receiving_into(fd: int) -> AsyncGenerator[Running]:
    """Run the command with a descriptor as its only device."""
    arguments = [f"--device={idstr()}=fd:{fd}", "--json", "--quiet"]
    async with running("receive", "tcp:127.0.0.1:0", *arguments, pass_fds=(fd,)) as run:
        yield run
