"""One device into a snapshot and back, without a network. Collaboration.

In this process where nothing has to be interrupted, else in one of its own.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio
import trio.lowlevel

from trio_vfio import (
    ConnectionLost,
    DestinationFailed,
    DeviceError,
    MigrationFailed,
    MigrationResult,
    PeerProtocolError,
    SessionState,
    SnapshotDirectory,
)
from trio_vfio._cli import _local
from trio_vfio._cli._local import LocalOptions, open_local
from trio_vfio._cli._main import run_command
from trio_vfio._cli._progress import render
from trio_vfio._cli._tables import console
from trio_vfio._device import _snapshot
from trio_vfio.testing import SimulatedSink, SimulatedSource

from ..device.snapshots import load, result_of
from .processes import Running, names, running

pytestmark = pytest.mark.usefixtures("warm")

Captured = pytest.CaptureFixture[str]

IDSTR: Final = "0000:00:04.0/vfio"
KEY: Final = ("vfio", 0)
MIB: Final = 1 << 20
STATE: Final = os.urandom(3 * MIB + 1)


@pytest.fixture(name="run")
def make_run(capsys: Captured) -> Callable[..., tuple[int, dict[str, Any], list[str]]]:
    """Run a command: its exit status, its one JSON object, and its lines on stderr."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], list[str]]:
        status = run_command([*arguments, "--json", "--quiet"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out), captured.err.splitlines()

    return run


Run = Callable[..., tuple[int, dict[str, Any], list[str]]]


def check_failed(ran: tuple[int, dict[str, Any], list[str]], error: str) -> None:
    """Check that a command has failed for one reason, a regex, and says so once."""
    status, result, lines = ran
    (line,) = lines
    assert status == 1
    assert re.match(f"trio-vfio: error: {error}", line)
    assert result["status"] == "failed"
    assert result["errors"] == [line.removeprefix("trio-vfio: error: ")]
    (device,) = result["devices"]
    assert device["status"] == "failed"


@pytest.fixture(name="source")
def make_source(tmp_path: Path) -> Path:
    """Make a device in a file."""
    path = tmp_path / "source"
    path.write_bytes(STATE)
    (tmp_path / "source.config").write_bytes(b"registers")
    return path


@pytest.fixture(name="snapshot")
def make_snapshot(source: Path, tmp_path: Path, capsys: Captured) -> Path:
    """Save it."""
    into = tmp_path / "snapshot"
    assert run_command(["save", f"file:{source}", f"--into={into}"]) == 0
    assert "completed after " in capsys.readouterr().out
    return into


def data_file(snapshot: Path) -> Path:
    """Return where the data of the one device in *snapshot* is."""
    (path,) = snapshot.glob("*.data")
    return path


@contextmanager
def opened(path: str, flags: int) -> Generator[int, None, None]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def test_there_and_back(run: Run, source: Path, tmp_path: Path) -> None:
    """What comes out is what went in, and all say so."""
    into, copy = tmp_path / "snapshot", tmp_path / "copy"
    arguments = [f"--into={into}", f"--idstr={IDSTR}", "--precopy=1MiB"]
    status, saved, lines = run("save", f"file:{source}", *arguments)
    assert (status, lines, saved["status"], saved["errors"]) == (
        0,
        [],
        "completed",
        [],
    )
    manifest = json.loads((into / "manifest.json").read_bytes())
    (entry,) = manifest["devices"]
    (device,) = saved["devices"]
    assert device["sha256"] == entry["sha256"] == hashlib.sha256(STATE).hexdigest()
    assert (device["idstr"], entry["idstr"]) == (IDSTR, IDSTR)
    assert (device["precopy_bytes"], device["data_bytes"]) == (MIB, len(STATE))
    assert saved["switchover_seconds"] > 0
    (channel,) = saved["channels"]
    assert channel["device_state_packets"] == device["buffers"] + 1

    status, loaded, lines = run("load", str(into), f"file:{copy}")
    assert (status, lines, loaded["status"]) == (0, [], "completed")
    assert copy.read_bytes() == STATE
    assert (tmp_path / "copy.config").read_bytes() == b"registers"
    assert loaded["devices"][0]["sha256"] == device["sha256"]
    assert loaded["devices"][0]["config_sha256"] == device["config_sha256"]


def test_what_happens_can_be_followed(snapshot: Path, tmp_path: Path) -> None:
    """On both sides, in one file."""
    trace = tmp_path / "trace"
    arguments = ["load", str(snapshot), "null:", f"--trace={trace}", "--quiet"]
    assert run_command(arguments) == 0
    said = trace.read_text()
    assert "multifd_send_thread_start 0" in said
    assert "vfio_load_state_device_buffer_load_end  (vfio) idx 0" in said


async def _several(directory: Path) -> None:
    """Make a snapshot of one device in three places."""
    snapshot = SnapshotDirectory(directory)
    result = result_of(("a/vfio", b"first", None), ("b/vfio", b"second", None))
    again = attrs.evolve(result.devices[1], instance_id=1)
    for device, data in [
        (result.devices[0], b"first"),
        (result.devices[1], b"second"),
        (again, b"second"),
    ]:
        await load(snapshot(device.idstr, device.instance_id), data, None)
    devices = (*result.devices, again)
    await snapshot.write_manifest(attrs.evolve(result, devices=devices))


@pytest.mark.parametrize(
    ("idstr", "data"),
    [
        ("a/vfio", b"first"),
        ("b/vfio", b"second"),
        ("b/vfio (instance 1)", b"second"),
    ],
)
def test_one_of_several(run: Run, idstr: str, data: bytes, tmp_path: Path) -> None:
    trio.run(_several, tmp_path / "snapshot")
    where, copy = str(tmp_path / "snapshot"), tmp_path / "copy"
    status, result, _ = run("load", where, f"file:{copy}", f"--idstr={idstr}")
    assert status == 0
    assert copy.read_bytes() == data
    assert len(result["devices"]) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["save"], "Missing argument 'DEV'"),
        (["save", "null:"], "Missing option '--into'"),
        (
            ["save", "null", "--into=x"],
            "'null' is no device; known are vfio:DEVICE[,cdev|,group], file:PATH, fd:",
        ),
        (
            ["save", "fd:x", "--into=x"],
            "'fd:x' is no device; known are vfio:DEVICE[,cdev|,group], file:PATH, fd:",
        ),
        (["save", "null:x", "--into=x"], "'DEV': 'x' is no size, as 4096 or 4KiB"),
        (["save", "null:", "--into=x", "--idstr=a"], "'a' is no VFIO device's idstr"),
        (["load"], "Missing argument 'DIR'"),
        (["load", "{tmp}"], "Missing argument 'DEV'"),
        (["load", "{tmp}/no", "null:"], "Directory '{tmp}/no' does not exist"),
        (
            ["load", "{tmp}", "null:1"],
            "'null:1' is no device; known are vfio:DEVICE[,cdev|,group], file:PATH, fd",
        ),
        (["load", "{tmp}", "null:"], "'{tmp}' has 'a/vfio', 'b/vfio', 'b/vfio (instan"),
        (["load", "{tmp}", "null:", "--idstr=c"], "no device 'c': '{tmp}' has 'a/vfio"),
        (["load", "{tmp}/bad", "null:"], "manifest.json: Expecting value: line 1"),
        (["load", "{tmp}/empty", "null:"], "'{tmp}/empty' has no device: say which"),
    ],
)
def test_usage_errors(
    arguments: list[str], error: str, tmp_path: Path, capsys: Captured
) -> None:
    trio.run(_several, tmp_path)
    for name, text in {"bad": "x", "empty": '{"format": 1, "devices": []}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert run_command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert error.replace("{tmp}", str(tmp_path)) in captured.err
    assert not Path("x").exists()


def _cut(snapshot: Path) -> str:
    path = data_file(snapshot)
    os.truncate(path, len(STATE) - 1)
    return f"vfio: begin: EIO: the data has {len(STATE) - 1} bytes, not {len(STATE)}"


def _flip(snapshot: Path) -> str:
    path = data_file(snapshot)
    path.write_bytes(STATE[:-1] + bytes([STATE[-1] ^ 1]))
    return r"vfio: read of buffer \d at byte \d+: EIO: the data is not what was saved"


def _remove(snapshot: Path) -> str:
    data_file(snapshot).unlink()
    return "vfio: begin: ENOENT: No such file or directory: "


def _exchange_config(snapshot: Path) -> str:
    data_file(snapshot).with_suffix(".data.config").write_bytes(b"REGISTERS")
    return "vfio: begin: EIO: the config is not what was saved"


@pytest.mark.parametrize("damage", [_cut, _flip, _remove, _exchange_config])
def test_a_snapshot_that_is_not_what_was_saved(
    damage: Callable[[Path], str], run: Run, snapshot: Path, tmp_path: Path
) -> None:
    """The device does not get it: whatever it has taken is gone."""
    error = damage(snapshot)
    copy = tmp_path / "copy"
    check_failed(run("load", str(snapshot), f"file:{copy}"), error)
    assert [name for name in names(tmp_path) if name.startswith("copy")] == []


def test_no_snapshot(tmp_path: Path, capsys: Captured) -> None:
    assert run_command(["load", str(tmp_path), "null:", "--json"]) == 1
    captured = capsys.readouterr()
    error = f"ENOENT: No such file or directory: {tmp_path}/manifest.json"
    assert captured.err == f"trio-vfio: error: {error}\n"
    assert json.loads(captured.out)["errors"] == [error]


def test_a_device_that_refuses(run: Run, snapshot: Path) -> None:
    """Only what the device says is said, not what the source then hears."""
    with opened("/dev/full", os.O_WRONLY) as fd:
        ran = run("load", str(snapshot), f"fd:{fd}")
    check_failed(ran, "vfio: write of buffer 0 at byte 0: ENOSPC: ")
    (device,) = ran[1]["devices"]
    assert device["errors"] == ran[1]["errors"]


def test_a_source_that_fails(run: Run, tmp_path: Path) -> None:
    """Nothing is left of what came before."""
    into = tmp_path / "snapshot"
    read_end, write_end = os.pipe()
    os.write(write_end, b"state")
    with opened(str(tmp_path), os.O_RDONLY) as fd:
        ran = run("save", f"fd:{fd}", f"--into={into}")
    check_failed(ran, "vfio: read of buffer 0 at byte 0: EISDIR: Is a directory")
    assert names(into) == []
    os.close(read_end)
    os.close(write_end)


def test_a_source_that_cannot_begin(run: Run, tmp_path: Path) -> None:
    """It is named, though the destination has not yet heard of it."""
    ran = run("save", f"file:{tmp_path}/none", f"--into={tmp_path}/snapshot")
    check_failed(ran, "vfio: begin: ENOENT: No such file or directory: ")
    assert names(tmp_path) == []


def test_a_snapshot_that_cannot_be_completed(
    run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is none, and the source has not let go of its device."""

    def full(_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_snapshot, "encode_manifest", full)
    into = tmp_path / "snapshot"
    ran = run("save", f"file:{source}", f"--into={into}")
    check_failed(ran, "ENOSPC: No space left on device")
    assert names(into) == []


def test_a_deadline(run: Run, tmp_path: Path) -> None:
    """One side watches it, so one line says that it has passed."""
    read_end, write_end = os.pipe()
    into = tmp_path / "snapshot"
    ran = run("save", f"fd:{read_end}", f"--into={into}", "--switchover=1")
    assert os.get_blocking(read_end)
    os.close(read_end)
    os.close(write_end)
    check_failed(ran, "switchover deadline of 1 s passed: waiting for ")
    assert names(into) == []


async def _interrupt(run: Running, ready: Callable[[], bool]) -> None:
    while not ready():  # noqa: ASYNC110
        await trio.sleep(0.005)
    run.process.send_signal(signal.SIGINT)


def check_cancelled(run: Running) -> None:
    """Check that a command says that it was cancelled, and nothing else."""
    assert run.process.returncode == 130
    assert run.errors == ["cancelled by SIGINT"]
    assert (run.result["status"], run.result["errors"]) == ("cancelled", [])
    assert [each["status"] for each in run.result["devices"]] == ["failed"]


async def test_save_cancelled(tmp_path: Path) -> None:
    """The source's device is as it was, and nothing of a snapshot is left."""
    read_end, write_end = os.pipe()
    into = tmp_path / "snapshot"
    arguments = [f"fd:{read_end}", f"--into={into}", "--json"]
    async with running("save", *arguments, pass_fds=(read_end,)) as run:
        os.write(write_end, b"state")
        # As the lines of progress say.
        await _interrupt(run, lambda: b"waiting for vfio: read to end" in run.stderr)
        assert len(list(into.glob("*.part"))) == 1
    assert os.get_blocking(read_end)
    os.close(read_end)
    os.close(write_end)
    check_cancelled(run)
    assert names(into) == []


async def test_load_cancelled(snapshot: Path) -> None:
    """A device that takes no more is not waited for."""
    read_end, write_end = os.pipe()
    arguments = [str(snapshot), f"fd:{write_end}", "--json", "--quiet"]
    async with running("load", *arguments, pass_fds=(write_end,)) as run:
        await _interrupt(run, lambda: bool(_unread(read_end)))
    assert os.get_blocking(write_end)
    os.close(read_end)
    os.close(write_end)
    check_cancelled(run)
    assert len(names(snapshot)) == 3


def _unread(fd: int) -> bytes:
    """Return what can be read of *fd* now."""
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1)
    except BlockingIOError:
        return b""


async def test_both_devices_are_aborted_by_a_cancel() -> None:
    """What is shown until then is how far the source has come."""
    source, sink = SimulatedSource(size=10), SimulatedSink(hangs_in="write")
    options, shown = LocalOptions(device_grace=0), io.StringIO()
    with trio.CancelScope() as scope:
        async with open_local({KEY: source}, {KEY: sink}, options) as local:
            while "write" not in {call.name for call in sink.calls}:  # noqa: ASYNC110
                await trio.sleep(0.001)
            console(shown).print(render(local, 0.0))
            scope.cancel()
            await local.wait_ended()
    assert scope.cancelled_caught
    assert source.aborted and sink.aborted
    assert re.search(r"vfio +(saving|completed) +10 ", shown.getvalue())


def _ended(error: Exception) -> _local._Side[Any]:
    """Return a side that has ended with *error*."""
    side: _local._Side[Any] = _local._Side(None, None, [])  # type: ignore[arg-type]
    side.error = error
    return side


def _failed(*faults: Exception) -> MigrationFailed:
    nothing = MigrationResult(SessionState.FAILED, (), (), (), None, 0.0)
    return MigrationFailed(faults, nothing)  # type: ignore[arg-type]


LOST: Final = ConnectionLost("broke", channel="main")
ENDED: Final = PeerProtocolError("stream ends", ended=True)
BROKEN: Final = PeerProtocolError("a packet too large")
TOLD: Final = DestinationFailed()
DEVICE: Final = DeviceError("vfio", 0, "write", "EIO")
DISK: Final = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("source", "destination", "causes"),
    [
        (_failed(TOLD), _failed(DEVICE), [DEVICE]),
        (_failed(DEVICE), _failed(LOST), [DEVICE]),
        (_failed(DEVICE), _failed(ENDED, DEVICE), [DEVICE, DEVICE]),
        (_failed(TOLD), DISK, [DISK]),
        (_failed(TOLD), _failed(BROKEN), [BROKEN]),
        (_failed(DEVICE), _failed(BROKEN), [DEVICE]),
        (_failed(TOLD), ExceptionGroup("", [DISK, ValueError()]), [DISK, ...]),
        # Whatever it was, it is said once.
        (_failed(TOLD), _failed(LOST), [TOLD]),
    ],
)
def test_what_has_really_happened(
    source: Exception, destination: Exception, causes: list[object]
) -> None:
    found = _local.LocalMigration(_ended(source), _ended(destination)).causes()
    assert len(found) == len(causes)
    for each, expected in zip(found, causes, strict=True):
        assert expected is ... or each is expected


async def test_several_causes_come_together() -> None:
    """A device that fails, and then cannot be aborted either."""

    source = SimulatedSource(size=10)
    sink = SimulatedSink(fails={"write": errno.EIO, "abort": errno.EIO})
    with pytest.RaisesGroup(DeviceError, DeviceError) as caught:
        async with open_local({KEY: source}, {KEY: sink}, LocalOptions()) as local:
            await local.wait_ended()
    assert [str(each) for each in caught.value.exceptions] == [
        "vfio: write of buffer 0 at byte 0: EIO: Input/output error",
        "vfio: abort: EIO: Input/output error",
    ]
    assert local.result().errors == tuple(map(str, caught.value.exceptions))
    assert source.aborted
