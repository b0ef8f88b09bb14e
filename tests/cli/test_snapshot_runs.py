"""Several commands with one snapshot directory, in processes of their own.

Collaboration.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import trio

from trio_vfio._cli._main import run_command

from .processes import HOUR, names, running

DEVICE = "0000:00:04.0/vfio"


@pytest.fixture(name="snapshot")
def make_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Save 8 MiB."""
    into = tmp_path / "snapshot"
    arguments = [f"--into={into}", f"--idstr={DEVICE}", "--quiet"]
    assert run_command(["save", "null:8MiB", *arguments]) == 0
    capsys.readouterr()
    return into


def is_written(snapshot: Path) -> bool:
    """Whether a run has begun with a device."""
    return any(name.endswith(".part") for name in names(snapshot))


def sizes(snapshot: Path) -> list[int]:
    """Return how much there is of each device, which must be what the manifest says."""
    manifest = json.loads((snapshot / "manifest.json").read_bytes())
    for device in manifest["devices"]:
        assert (snapshot / device["data"]).stat().st_size == device["data_bytes"]
    return [device["data_bytes"] for device in manifest["devices"]]


async def test_second_receive_names_the_first_and_takes_nothing(snapshot: Path) -> None:
    """It does not even listen. What the first one has taken is as it was."""
    read_end, write_end = os.pipe()
    into = f"--into={snapshot}"
    async with running("receive", "tcp:127.0.0.1:0", into, "--json", *HOUR) as there:
        address = await there.address()
        arguments = [address, f"--device={DEVICE}=fd:{read_end}", "--json", *HOUR]
        async with running("send", *arguments, pass_fds=(read_end,)) as here:
            os.write(write_end, b"state")
            while not is_written(snapshot):  # noqa: ASYNC110
                await trio.sleep(0.005)
            async with running("receive", "tcp:127.0.0.1:0", into, "--json") as second:
                pass
            async with running("save", "null:", into, "--json") as third:
                pass
            os.close(write_end)
    os.close(read_end)
    for refused in second, third:
        assert refused.process.returncode == 1
        (error,) = refused.errors
        who = f"EBUSY: process {there.process.pid} is writing there; wait until "
        assert error.startswith(who)
        assert error.endswith(f": {snapshot}")
        assert refused.result["errors"] == [error]
        assert "listening" not in refused.lines[0]
    assert (there.process.returncode, here.process.returncode) == (0, 0)
    assert sizes(snapshot) == [len(b"state")]
    assert len(names(snapshot)) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_save_that_is_ended_leaves_the_earlier_snapshot(
    number: signal.Signals, snapshot: Path
) -> None:
    """Its files go with it, or with the next save."""
    before = names(snapshot)
    read_end, write_end = os.pipe()
    arguments = [f"fd:{read_end}", f"--into={snapshot}", f"--idstr={DEVICE}"]
    async with running("save", *arguments, pass_fds=(read_end,)) as run:
        os.write(write_end, b"state")
        while not is_written(snapshot):  # noqa: ASYNC110
            await trio.sleep(0.005)
        run.process.send_signal(number)
    os.close(read_end)
    os.close(write_end)
    assert sizes(snapshot) == [8 << 20]
    assert (names(snapshot) == before) == (number == signal.SIGINT)
    async with running("save", "null:1MiB", *arguments[1:]) as run:
        pass
    assert run.process.returncode == 0
    assert sizes(snapshot) == [1 << 20]
    assert len(names(snapshot)) == len(before)


def test_save_without_room_leaves_the_earlier_snapshot(
    snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of a file stands for a disk that is full."""
    before = names(snapshot)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, limits[1]))
    try:
        arguments = [f"--into={snapshot}", f"--idstr={DEVICE}", "--quiet"]
        assert run_command(["save", "null:9MiB", *arguments]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert ": EFBIG: " in capsys.readouterr().err
    assert sizes(snapshot) == [8 << 20]
    assert names(snapshot) == before


def has_finished(directory: Path) -> bool:
    """Whether a device has replaced earlier files."""
    there = names(directory)
    return any(name.endswith(".old") for name in there) and "a.part" not in there


async def test_receive_that_fails_brings_back_files_of_devices_that_had_finished(
    tmp_path: Path,
) -> None:
    """One device is whole before the other turns out to be cut short."""
    (tmp_path / "a").write_bytes(b"earlier a")
    (tmp_path / "a.config").write_bytes(b"earlier config")
    (tmp_path / "b").write_bytes(b"earlier b")
    read_end, write_end = os.pipe()
    devices = [f"--device={name}/vfio=file:{tmp_path}/{name}" for name in "ab"]
    async with running("receive", "tcp:127.0.0.1:0", *devices, *HOUR) as there:
        address = await there.address()
        sources = ["--device=a/vfio=null:1MiB", f"--device=b/vfio=fd:{read_end}"]
        fds = (read_end,)
        async with running("send", address, *sources, *HOUR, pass_fds=fds) as here:
            while not has_finished(tmp_path):  # noqa: ASYNC110
                await trio.sleep(0.005)
            here.process.send_signal(signal.SIGINT)
    os.close(read_end)
    os.close(write_end)
    assert (here.process.returncode, there.process.returncode) == (130, 1)
    assert names(tmp_path) == ["a", "a.config", "b"]
    for name, content in {"a": b"earlier a", "a.config": b"earlier config"}.items():
        assert (tmp_path / name).read_bytes() == content
