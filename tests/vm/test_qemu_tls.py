"""Collaboration: TLS between an unmodified QEMU and ours, on all connections."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from trio_vfio import NullSink, open_incoming

from ..cli.processes import running
from . import qemu
from .checks import PAD_BUFFERS, PAD_KIB, Mttys, check_received, make_devices
from .credentials import Credentials
from .firmware import HALT
from .qemu import FIRST_MULTIFD_MACHINE, Setup, idstr
from .receiving import migrate
from .replay import accept
from .saved import Saved


@pytest.mark.qemu_11
async def test_from_qemu(mttys: Mttys, tmp_path: Path) -> None:
    devices = make_devices(mttys, 2, pad_kib=PAD_KIB)
    credentials = Credentials.make(tmp_path / "tls")
    setup = Setup(channels=4, tls=credentials.directory)
    options = ["--json", "--quiet", f"--into={tmp_path / 'snapshot'}"]
    options += credentials.options("server")
    async with (
        running("receive", "tcp:127.0.0.1:0", *options) as run,
        qemu.source(devices, tmp_path, setup) as source,
    ):
        await migrate(source, await run.address())
    assert run.process.returncode == 0
    check_received(run.result, devices, buffers=PAD_BUFFERS)


@pytest.mark.qemu_11
async def test_to_qemu(saved: Saved, mttys: Mttys, tmp_path: Path) -> None:
    devices = mttys(count=2, pad_kib=PAD_KIB)
    credentials = Credentials.make(tmp_path / "tls")
    setup = Setup(machine=FIRST_MULTIFD_MACHINE, channels=4, tls=credentials.directory)
    options = ["--json", "--quiet", f"--from={saved.directory}", "--channels=4"]
    options += [f"--machine={setup.machine}", *credentials.options("client")]
    async with qemu.destination(devices, tmp_path, setup) as destination:
        async with running("send", await destination.listen(), *options) as run:
            pass
        assert run.process.returncode == 0
        await accept(destination)
    assert run.result["status"] == "completed"
    saved.check_loaded(devices)


async def test_a_qemu_that_is_not_trusted(mttys: Mttys, tmp_path: Path) -> None:
    """It fails, and its guest runs on; another one can still come."""
    devices = make_devices(mttys)
    ours, others = (Credentials.make(tmp_path / name) for name in ("ours", "others"))
    async with open_incoming(
        f"unix:{tmp_path / 'socket'}",
        {idstr(): NullSink()},
        digests=True,
        ssl_context=ours.server_context(),
    ) as incoming:
        (address,) = incoming.addresses
        setup = Setup(tls=others.directory, firmware=HALT)
        async with qemu.source(devices, tmp_path, setup, runs=True) as source:
            await source.migrate(address)
            assert await source.wait_status() == "failed"
            await source.wait_running()
            assert await source.quit() == 0
        setup = Setup(tls=ours.directory)
        async with (
            qemu.source(devices, tmp_path, setup) as source,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(migrate, source, address)
            await incoming.wait_complete()
    check_received(incoming.result(), devices)
