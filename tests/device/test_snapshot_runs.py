"""Contract: several runs with one directory, and what a run that fails leaves of it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from trio_vfio._device import FileSink, SnapshotDirectory, _files, _snapshot
from trio_vfio._device._snapshot import data_name
from trio_vfio._device._snapshot_files import snapshot_files

from .snapshots import A, B, load, result_of

OLD: Final = result_of((A, b"old A", b"old config"), (B, b"old B", None))
NEW: Final = result_of((A, b"new A", None), (B, b"new B", b"new config"))


async def save(snapshot: SnapshotDirectory, kind: str) -> list[FileSink]:
    """Save two devices, up to the manifest, which describes their *kind*."""
    sinks = [snapshot(A, 0), snapshot(B, 0)]
    first = kind == "old"
    await load(sinks[0], f"{kind} A".encode(), b"old config" if first else None)
    await load(sinks[1], f"{kind} B".encode(), None if first else b"new config")
    return sinks


@pytest.fixture(name="old")
async def make_old(tmp_path: Path) -> Path:
    """Make a snapshot."""
    snapshot = SnapshotDirectory(tmp_path / "snapshot")
    await save(snapshot, "old")
    await snapshot.write_manifest(OLD)
    return snapshot.path


def kind_of(directory: Path) -> str:
    """Return which snapshot there is, whose files must be whole."""
    manifest = json.loads((directory / "manifest.json").read_bytes())
    found: list[bytes] = []
    for device in manifest["devices"]:
        data = (directory / device["data"]).read_bytes()
        assert len(data) == device["data_bytes"]
        found.append(data)
        if device["config"] is not None:
            assert (directory / device["config"]).read_bytes().endswith(b" config")
    kind = found[0].decode().removesuffix(" A")
    assert found == [f"{kind} A".encode(), f"{kind} B".encode()]
    return kind


def count(directory: Path) -> int:
    return len(os.listdir(directory))


async def abort(sinks: list[FileSink]) -> None:
    for sink in sinks:
        await sink.abort()


async def test_earlier_snapshot_stays_until_the_new_one_is_complete(old: Path) -> None:
    """And then nothing is left of it."""
    snapshot = SnapshotDirectory(old)
    await save(snapshot, "new")
    assert kind_of(old) == "old"
    await snapshot.write_manifest(NEW)
    assert kind_of(old) == "new"
    assert {path.name for path in snapshot_files(old)} == set(os.listdir(old))


@pytest.mark.parametrize("in_block", [False, True])
async def test_earlier_snapshot_survives_a_run_that_is_aborted(
    old: Path, in_block: bool
) -> None:
    before = set(os.listdir(old))
    snapshot = SnapshotDirectory(old)
    if in_block:
        async with snapshot.locked():
            await abort(await save(snapshot, "new"))
    else:
        await abort(await save(snapshot, "new"))
    assert kind_of(old) == "old"
    assert set(os.listdir(old)) == before


async def test_earlier_snapshot_comes_back_with_an_abort_after_the_manifest(
    old: Path,
) -> None:
    """The source may vanish before it has heard that the destination is complete."""
    before = set(os.listdir(old))
    snapshot = SnapshotDirectory(old)
    async with snapshot.locked():
        sinks = await save(snapshot, "new")
        await snapshot.write_manifest(NEW)
        assert kind_of(old) == "new"
        await abort(sinks)
        assert kind_of(old) == "old"
    assert set(os.listdir(old)) == before


@pytest.mark.parametrize("step", ["fsync", "sync"])
async def test_earlier_snapshot_survives_a_manifest_that_cannot_be_written(
    old: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = set(os.listdir(old))
    snapshot = SnapshotDirectory(old)
    async with snapshot.locked():
        sinks = await save(snapshot, "new")
        with monkeypatch.context() as patch:
            if step == "fsync":
                patch.setattr(_snapshot, "write_file", fail)
            else:
                patch.setattr(_snapshot, "sync_directory", fail)
            with pytest.raises(OSError, match="No space"):
                await snapshot.write_manifest(NEW)
        assert kind_of(old) == "old"
        await abort(sinks)
    assert kind_of(old) == "old"
    assert set(os.listdir(old)) == before


class Crash(BaseException):
    """Stands for the end of the process: nothing is cleaned up after it."""


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the process end before that step which changes a directory, or syncs.

    Returns: the steps so far.
    """
    steps: list[str] = []

    def patched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            steps.append(name)
            if len(steps) > step:
                raise Crash
            return real(*args, **kwargs)

        return function

    for where, name in (
        *((Path, name) for name in ("replace", "rename", "unlink")),
        *((os, name) for name in ("link", "fsync")),
    ):
        monkeypatch.setattr(where, name, patched(name, getattr(where, name)))
    return steps


def end_process(snapshot: SnapshotDirectory) -> None:
    """Close the descriptors that a process which ends does not keep."""
    for sink in snapshot._devices.values():
        sink._close()
    if snapshot._held is not None:
        snapshot._held.release()


@pytest.mark.parametrize("in_block", [False, True])
async def test_crash_at_any_step_leaves_one_whole_snapshot(
    tmp_path: Path, in_block: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the one run or of the other; and the next run removes what is left over."""
    kinds: list[str] = []
    for step in range(100):
        path = tmp_path / f"{step}"
        snapshot = SnapshotDirectory(path)
        await save(snapshot, "old")
        await snapshot.write_manifest(OLD)
        snapshot = SnapshotDirectory(path)
        with monkeypatch.context() as patch:
            steps = crash_at(step, patch)
            try:
                if in_block:
                    async with snapshot.locked():
                        await save(snapshot, "new")
                        await snapshot.write_manifest(NEW)
                else:
                    await save(snapshot, "new")
                    await snapshot.write_manifest(NEW)
            except Crash:
                pass
        kinds.append(kind_of(path))
        end_process(snapshot)
        async with SnapshotDirectory(path).locked():
            pass
        assert kind_of(path) == kinds[-1]
        assert {each.name for each in snapshot_files(path)} == set(os.listdir(path))
        if len(steps) <= step:
            break
    assert kinds == sorted(kinds, reverse=True)
    assert {*kinds} == {"old", "new"}
    assert kinds[-1] == "new"


async def test_second_run_fails_before_it_takes_anything(old: Path) -> None:
    first, second = SnapshotDirectory(old), SnapshotDirectory(old)
    sink = first(A, 0)
    await sink.begin()
    with pytest.raises(OSError, match="another migration of this process") as raised:
        await second(B, 0).begin()
    assert raised.value.errno == errno.EBUSY
    assert raised.value.filename == str(old)
    with pytest.raises(OSError, match="is writing there"):
        async with second.locked():
            raise AssertionError
    await sink.abort()
    assert kind_of(old) == "old"
    await abort(await save(SnapshotDirectory(old), "new"))


async def test_second_run_names_the_process_that_writes(old: Path) -> None:
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), 2);"
        " print(flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    holder = await trio.to_thread.run_sync(
        lambda: subprocess.Popen(
            [sys.executable, "-c", code, old], stdin=pipe, stdout=pipe
        )
    )
    with holder:
        assert holder.stdout is not None
        await trio.to_thread.run_sync(holder.stdout.readline)
        with pytest.raises(OSError, match=f"^.*process {holder.pid} is writing there"):
            await SnapshotDirectory(old)(A, 0).begin()
        holder.kill()
    assert kind_of(old) == "old"


async def test_late_abort_leaves_what_another_run_has_completed_since(
    old: Path,
) -> None:
    """Neither its manifest nor its files, under whatever names they are."""
    first = SnapshotDirectory(old)
    sinks = await save(first, "old")
    await first.write_manifest(OLD)
    second = SnapshotDirectory(old)
    await save(second, "new")
    await second.write_manifest(NEW)
    await abort(sinks)
    assert kind_of(old) == "new"
    assert {path.name for path in snapshot_files(old)} == set(os.listdir(old))


async def test_late_abort_leaves_a_run_alone_that_is_under_way(old: Path) -> None:
    first = SnapshotDirectory(old)
    sinks = await save(first, "old")
    await first.write_manifest(OLD)
    second = SnapshotDirectory(old)
    await save(second, "new")
    await abort(sinks)
    await second.write_manifest(NEW)
    assert kind_of(old) == "new"


async def test_device_whose_begin_fails_lets_go_of_the_directory(old: Path) -> None:
    snapshot = SnapshotDirectory(old)
    sink = snapshot(A, 0)
    part = old / f"{sink.path.name}.part"
    part.mkdir()
    with pytest.raises(OSError, match="a directory, which no file may replace"):
        await sink.begin()
    part.rmdir()
    await abort(await save(SnapshotDirectory(old), "new"))
    assert kind_of(old) == "old"


async def test_name_that_another_run_has_taken_since_fails_begin(
    tmp_path: Path,
) -> None:
    first, second = SnapshotDirectory(tmp_path), SnapshotDirectory(tmp_path)
    late = first(A, 0)
    await load(second(A, 0), b"a", None)
    await second.write_manifest(result_of((A, b"a", None)))
    with pytest.raises(FileExistsError, match="another run has made it since"):
        await late.begin()
    await SnapshotDirectory(tmp_path)(B, 0).begin()


async def test_name_that_is_taken_leaves_the_directory_to_devices_that_began(
    tmp_path: Path,
) -> None:
    snapshot = SnapshotDirectory(tmp_path)
    late = snapshot(A, 0)
    await snapshot(B, 0).begin()
    late.path.write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        await late.begin()
    with pytest.raises(OSError, match="is writing there"):
        await SnapshotDirectory(tmp_path)(B, 0).begin()


async def test_manifest_of_no_device_that_cannot_be_written_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_snapshot, "write_file", fail)
    with pytest.raises(OSError, match="No space"):
        await SnapshotDirectory(tmp_path).write_manifest(result_of())
    await SnapshotDirectory(tmp_path)(B, 0).begin()


async def test_files_that_are_not_of_a_snapshot_stay(old: Path) -> None:
    """Even if a manifest, which may be anybody's, names them."""
    (old / "notes").write_bytes(b"mine")
    text = (old / "manifest.json").read_text().replace(data_name(B, 0), "notes", 1)
    (old / "manifest.json").write_text(text)
    snapshot = SnapshotDirectory(old)
    await save(snapshot, "new")
    await snapshot.write_manifest(NEW)
    assert (old / "notes").read_bytes() == b"mine"


async def test_unknown_manifest_is_replaced_and_its_files_stay(old: Path) -> None:
    (old / "manifest.json").write_text('{"format": 2}')
    before = set(os.listdir(old))
    snapshot = SnapshotDirectory(old)
    await save(snapshot, "new")
    await snapshot.write_manifest(NEW)
    assert kind_of(old) == "new"
    assert before < set(os.listdir(old))


async def test_manifest_that_is_no_file_fails_begin(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(OSError, match="a FIFO, which no file may replace"):
        await SnapshotDirectory(tmp_path)(A, 0).begin()
    assert os.listdir(tmp_path) == ["manifest.json"]


@pytest.mark.parametrize("there", [False, True])
async def test_block_without_a_device_leaves_the_directory_as_it_was(
    tmp_path: Path, there: bool
) -> None:
    path = tmp_path / "snapshot"
    if there:
        path.mkdir()
    async with SnapshotDirectory(path).locked():
        assert path.is_dir()
    assert path.exists() == there


async def test_cancelled_block_lets_go_of_the_directory(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with SnapshotDirectory(tmp_path).locked():
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    async with SnapshotDirectory(tmp_path).locked():
        pass


async def test_file_system_without_locks_or_links(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then names that differ must do, and what was left over is not removed."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(os, "link", refuse)
    left = old / f"{data_name(A, 1)}.part"
    left.write_bytes(b"of somebody who may still write it")
    snapshot = SnapshotDirectory(old)
    async with snapshot.locked():
        sinks = await save(snapshot, "new")
        await snapshot.write_manifest(NEW)
        await abort(sinks)
    assert kind_of(old) == "old"
    assert left.exists()


def own_file(path: Path, content: bytes) -> _files.FileId:
    path.write_bytes(content)
    return _files.FileId.of(path.lstat())


def test_remove_own_takes_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that gets its name after the look at it."""
    path, other = tmp_path / "file", tmp_path / "other"
    own = own_file(path, b"first")
    _files.remove_own(path, own)
    _files.remove_own(path, own)
    assert not path.exists()

    own = own_file(path, b"first")
    other.write_bytes(b"second")
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        other.replace(path)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    _files.remove_own(path, own)
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]
