"""The command with devices of the kernel, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Final

import pytest
import trio

from ..cli.processes import running
from . import mtty
from .checks import PAD_BUFFERS, PAD_KIB, Mttys, make_devices, registers
from .moving import DEVICE, wait_written
from .mtty import Mtty

# Of the last of what it did until it is gone. It takes about half of one, emulated on
# a machine that does nothing else. A device that hangs is given 10.
_SECONDS_TO_END: Final = 8
# Of each write to a device, for a signal to be heard in the first.
_SECONDS_OF_A_WRITE: Final = 5


@pytest.mark.parametrize(("here", "there"), [("cdev", "group"), ("group", "cdev")])
async def test_send_and_receive(here: str, there: str, mttys: Mttys) -> None:
    a, b = make_devices(mttys, pad_kib=PAD_KIB) + mttys(pad_kib=PAD_KIB)
    taken = f"--device={DEVICE}=vfio:{b.uuid},{there}"
    given = f"--device={DEVICE}=vfio:{a.uuid},{here}"
    async with running("receive", "tcp:127.0.0.1:0", "--json", taken) as receive:
        address = await receive.address()
        async with running("send", address, "--json", "--channels=4", given) as send:
            pass
    assert (send.process.returncode, receive.process.returncode) == (0, 0)
    (sent,), (received,) = send.result["devices"], receive.result["devices"]
    assert sent["sha256"] == received["sha256"]
    assert received["buffers"] == PAD_BUFFERS
    assert b.state() == "RUNNING"
    assert b.registers() == registers()
    assert a.state() == "STOP"


async def test_save_and_load(mttys: Mttys, tmp_path: Path) -> None:
    a, b = make_devices(mttys) + mttys()
    into = f"--into={tmp_path / 'snapshot'}"
    async with running("save", f"vfio:{a.uuid}", into, "--run-on", "--json") as save:
        pass
    assert save.process.returncode == 0
    assert save.result["devices"][0]["precopy_bytes"] == 24
    assert a.state() == "RUNNING"
    device = f"vfio:{b.cdev}"
    async with running("load", str(tmp_path / "snapshot"), device, "--json") as load:
        pass
    assert load.process.returncode == 0
    assert b.registers() == registers()
    assert b.state() == "RUNNING"


async def test_load_for_somebody_who_runs_it(mttys: Mttys, tmp_path: Path) -> None:
    """Whoever has the device open keeps it, loaded, and decides when it works."""
    a, b = make_devices(mttys) + mttys()
    snapshot = str(tmp_path / "snapshot")
    async with running("save", f"vfio:{a.uuid}", f"--into={snapshot}"):
        pass
    with b.opened() as fd:
        device = f"vfio:fd:{fd}"
        async with running("load", snapshot, device, "--no-run", pass_fds=(fd,)) as run:
            pass
        assert run.process.returncode == 0
        assert mtty.state_of(fd) == "STOP"
    assert b.registers() == registers()


async def load_fails(device: Mtty, snapshot: Path) -> str:
    """Load *device*; return what is said of why it fails."""
    async with running("load", str(snapshot), f"vfio:{device.uuid}", "--quiet") as run:
        pass
    assert run.process.returncode == 1
    (error,) = run.errors
    return error


def snapshot_of(directory: Path, data: bytes) -> Path:
    (directory / "vfio.data").write_bytes(data)
    entry = {
        "idstr": "vfio",
        "instance_id": 0,
        "data": "vfio.data",
        "config": None,
        "data_bytes": len(data),
        "sha256": None,
        "config_bytes": None,
        "config_sha256": None,
    }
    text = json.dumps({"format": 1, "devices": [entry]})
    (directory / "manifest.json").write_text(text)
    return directory


async def test_what_a_device_refuses(mttys: Mttys, tmp_path: Path) -> None:
    """One line, with the device, the call and the errno; and the device runs."""
    (one,), (two,) = make_devices(mttys), mttys(ports=2)
    state = one.saved()
    write = "vfio: write of buffer 0 at byte 0"
    finish = "vfio: finish: EINVAL: VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to STOP"
    said = {
        "two ports": (two.saved(), f"{write}: ENOMEM: Cannot allocate memory"),
        "truncated": (state[:-1], f"{finish}: Invalid argument; the device is in RES"),
        "magic": (bytes(8) + state[8:], f"{write}: EFAULT: Bad address"),
        "too long": (state + b"\0", f"{write}: ENOMEM: Cannot allocate memory"),
    }
    for data, expected in said.values():
        error = await load_fails(one, snapshot_of(tmp_path, data))
        assert error.startswith(expected)
        assert one.state() == "RUNNING"
        assert one.registers() == registers()


async def test_a_device_in_use(mttys: Mttys, tmp_path: Path) -> None:
    (device,) = mttys()
    snapshot = snapshot_of(tmp_path, device.saved())
    with device.opened():
        error = await load_fails(device, snapshot)
    assert error.startswith("vfio: open: EINVAL: VFIO_DEVICE_BIND_IOMMUFD: Invalid arg")
    assert "in use" in error
    assert device.state() == "RUNNING"


async def test_a_device_that_is_lost(mttys: Mttys, tmp_path: Path) -> None:
    (device,) = mttys()
    snapshot = snapshot_of(tmp_path, device.saved()[:-1])
    mtty.parameter("fail_reset", 5)
    async with running("load", str(snapshot), f"vfio:{device.uuid}", "--quiet") as run:
        pass
    assert run.process.returncode == 1
    refused, lost = run.errors
    assert refused.startswith("vfio: finish: EINVAL: ")
    assert lost.startswith("vfio: abort: EIO: VFIO_DEVICE_RESET: ")
    assert lost.endswith("the device is in RESUMING and lost")


async def test_it_ends_soon_after_a_failure(mttys: Mttys, tmp_path: Path) -> None:
    (device,) = mttys(pad_kib=PAD_KIB)
    data = tmp_path / "state"
    data.write_bytes(device.saved()[:-1])
    taken = f"--device={DEVICE}=vfio:{device.uuid}"
    given = f"--device={DEVICE}=file:{data}"
    trace = tmp_path / "trace"
    async with running(
        "receive", "tcp:127.0.0.1:0", "--quiet", f"--trace={trace}", taken
    ) as receive:
        address = await receive.address()
        async with running("send", address, "--quiet", given) as send:
            # The last that succeeds.
            await wait_written(trace, "vfio_load_device_config_state_end")
            with trio.fail_after(_SECONDS_TO_END):
                await receive.process.wait()
                await send.process.wait()
    assert (send.process.returncode, receive.process.returncode) == (1, 1)
    (said,) = receive.errors
    assert said.startswith(f"{DEVICE}: finish: EINVAL: ")
    assert device.state() == "RUNNING"


async def test_interrupted_in_a_write(mttys: Mttys, tmp_path: Path) -> None:
    """It ends with the write that it is in; the device is reset."""
    (device,) = mttys(pad_kib=PAD_KIB)
    data = tmp_path / "state"
    data.write_bytes(device.saved())
    mtty.parameter("write_msecs", 1000 * _SECONDS_OF_A_WRITE)
    trace = tmp_path / "trace"
    async with running(
        "receive",
        "tcp:127.0.0.1:0",
        f"--trace={trace}",
        "--quiet",
        f"--device={DEVICE}=vfio:{device.uuid}",
    ) as receive:
        address = await receive.address()
        given = f"--device={DEVICE}=file:{data}"
        async with running("send", address, "--quiet", given) as send:
            await wait_written(trace, "buffer_load_start")
            receive.process.send_signal(signal.SIGINT)
            with trio.fail_after(_SECONDS_OF_A_WRITE + _SECONDS_TO_END):
                await receive.process.wait()
    assert receive.process.returncode == 130
    assert send.errors == ["the destination says that the migration failed"]
    loaded = trace.read_text().count("vfio_load_state_device_buffer_load_end")
    assert loaded <= 1
    assert device.state() == "RUNNING"


# --- devices


async def listed() -> list[dict[str, object]]:
    async with running("devices", "--json") as run:
        pass
    assert run.process.returncode == 0
    return list(run.result["devices"])


async def test_list(mttys: Mttys) -> None:
    a, b = mttys(pad_kib=PAD_KIB) + mttys(ports=2)
    rows = {row["name"]: row for row in await listed()}
    assert rows[a.uuid] == {
        "name": a.uuid,
        "driver": "mtty",
        "group": a.group,
        "cdev": a.cdev,
        "migration": ["STOP_COPY", "P2P", "PRE_COPY"],
        "state": "RUNNING",
        "stop_copy_bytes": len(a.saved()),
        "problem": None,
        "advice": None,
        "usable": True,
    }
    assert rows[b.uuid]["stop_copy_bytes"] == len(b.saved())


async def test_list_one_in_use(mttys: Mttys) -> None:
    (device,) = mttys()
    with device.opened():
        (row,) = await listed()
    assert row["usable"] is False
    assert "in use" in str(row["problem"])
    assert f"(process {os.getpid()})" in str(row["advice"])


async def test_list_for_people(mttys: Mttys) -> None:
    a, b = mttys(count=2)
    with b.opened():
        async with running("devices") as run:
            pass
    said = run.stdout.decode()
    assert a.uuid in said
    assert "STOP_COPY P2P PRE_COPY" in said
    assert f"{b.uuid}: VFIO_DEVICE_BIND_IOMMUFD: " in said
    assert "  end what uses it: " in said
