"""Pure and contract: a directory of devices that a source may have named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import wait_all_tasks_blocked

from trio_vfio import DeviceState
from trio_vfio._device import SnapshotDirectory, _files, _snapshot
from trio_vfio._device._snapshot import data_name

from .snapshots import A, B, load, result_of

# What a source may send, and beyond it what a caller may.
idstrs = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=255)
wild_idstrs = st.one_of(
    idstrs,
    st.text(),
    st.lists(st.sampled_from(["/", ".", "..", "-", "a", "A", ":", "\0"])).map("".join),
)
instances = st.integers(0, 2**32 - 1)


@given(st.lists(st.tuples(wild_idstrs, instances), unique=True, max_size=10))
def test_no_two_devices_share_a_name(devices: list[tuple[str, int]]) -> None:
    names = {data_name(*device).casefold() for device in devices}
    assert len(names) == len(devices)


@given(wild_idstrs, instances)
def test_a_name_stays_in_its_directory(idstr: str, instance_id: int) -> None:
    name = data_name(idstr, instance_id)
    assert name.isascii()
    assert name.isprintable()
    assert os.path.basename(name) == name
    assert not name.startswith((".", "-"))
    assert len(f"{name}.config.part") <= 255
    directory = Path("/snapshot")
    assert (directory / name).resolve().parent == directory
    assert not {name, f"{name}.part"} & {"manifest.json", "manifest.json.part"}


@pytest.mark.parametrize(
    ("idstr", "start"),
    [
        (A, "0000-00-04.0-vfio-"),
        ("../../etc/passwd", "etc-passwd-"),
        ("..", "device-"),
        ("a\nb", "a-b-"),
        ("/" * 255, "device-"),
        ("x" * 255, "x" * 80 + "-"),
    ],
)
def test_a_name_can_be_read(idstr: str, start: str) -> None:
    name = data_name(idstr, 0)
    assert name.startswith(start)
    assert name != data_name(idstr, 1)


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


async def test_the_manifest_says_what_the_files_are(tmp_path: Path) -> None:
    snapshot = SnapshotDirectory(tmp_path / "not" / "there")
    await load(snapshot(A, 0), b"data of A", b"config")
    await load(snapshot(B, 0), b"data of B", None)
    await snapshot.write_manifest(
        result_of((A, b"data of A", b"config"), (B, b"data of B", None))
    )
    manifest = json.loads((snapshot.path / "manifest.json").read_text())
    assert manifest["format"] == 1
    first, second = manifest["devices"]
    assert first == {
        "idstr": A,
        "instance_id": 0,
        "data": data_name(A, 0),
        "config": data_name(A, 0) + ".config",
        "data_bytes": 9,
        "sha256": hashlib.sha256(b"data of A").hexdigest(),
        "config_bytes": 6,
        "config_sha256": hashlib.sha256(b"config").hexdigest(),
    }
    assert second["idstr"] == B
    assert [second[key] for key in ("config", "config_bytes", "config_sha256")] == [
        None,
        None,
        None,
    ]
    for device in (first, second):
        data = (snapshot.path / device["data"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == device["sha256"]
    assert (snapshot.path / first["config"]).read_bytes() == b"config"
    assert names(snapshot.path) == {
        "manifest.json",
        first["data"],
        first["config"],
        second["data"],
    }


def test_nothing_is_done_before_begin(tmp_path: Path) -> None:
    snapshot = SnapshotDirectory(tmp_path / "snapshot")
    device = snapshot(A, 0)
    assert device.path.parent == tmp_path / "snapshot"
    assert names(tmp_path) == set()


async def test_the_directory_is_private(tmp_path: Path) -> None:
    snapshot = SnapshotDirectory(str(tmp_path / "snapshot"))
    await snapshot(A, 0).begin()
    assert stat.S_IMODE(snapshot.path.stat().st_mode) == 0o700


async def test_a_device_is_given_out_once(tmp_path: Path) -> None:
    snapshot = SnapshotDirectory(tmp_path)
    snapshot("vfio", 0)
    snapshot("vfio", 1)
    with pytest.raises(ValueError, match=r"vfio \(instance 1\): already in"):
        snapshot("vfio", 1)


async def test_a_later_begin_leaves_the_manifest_alone(tmp_path: Path) -> None:
    snapshot = SnapshotDirectory(tmp_path)
    await load(snapshot(A, 0), b"a", None)
    await snapshot.write_manifest(result_of((A, b"a", None)))
    await snapshot(B, 0).begin()
    assert "manifest.json" in names(tmp_path)


async def test_a_directory_that_cannot_be_made_fails_begin(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    device = SnapshotDirectory(tmp_path / "file")(A, 0)
    for _ in range(2):
        with pytest.raises(FileExistsError):
            await device.begin()


async def test_no_device_at_all_is_a_snapshot_too(tmp_path: Path) -> None:
    snapshot = SnapshotDirectory(tmp_path / "snapshot")
    await snapshot.write_manifest(result_of())
    manifest = json.loads((snapshot.path / "manifest.json").read_text())
    assert manifest == {"format": 1, "devices": []}


async def test_devices_from_elsewhere_are_left_out(tmp_path: Path) -> None:
    snapshot = SnapshotDirectory(tmp_path)
    await load(snapshot(A, 0), b"a", None)
    await snapshot.write_manifest(result_of((B, b"b", None), (A, b"a", None)))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [device["idstr"] for device in manifest["devices"]] == [A]


async def test_half_a_snapshot_gets_no_manifest(tmp_path: Path) -> None:
    snapshot = SnapshotDirectory(tmp_path)
    await snapshot(A, 0).begin()
    loading = DeviceState.LOADING
    with pytest.raises(ValueError, match=f"no whole snapshot: {A} is loading"):
        await snapshot.write_manifest(result_of((A, b"a", None), status=loading))
    assert "manifest.json" not in names(tmp_path)


async def test_an_abort_takes_the_manifest_with_it(tmp_path: Path) -> None:
    """A migration may fail after its last device has finished."""
    snapshot = SnapshotDirectory(tmp_path)
    device = snapshot(A, 0)
    await load(device, b"a", None)
    await snapshot.write_manifest(result_of((A, b"a", None)))
    await device.abort()
    assert names(tmp_path) == set()
    with pytest.raises(OSError, match="was aborted") as raised:
        await snapshot.write_manifest(result_of((A, b"a", None)))
    assert raised.value.errno == errno.ECANCELED
    assert names(tmp_path) == set()


async def test_an_abort_takes_a_manifest_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its thread, which no cancel reaches, is not through with it."""
    writing = trio.Event()
    release = threading.Event()

    def write_file(path: Path, data: bytes) -> None:
        trio.from_thread.run_sync(writing.set)
        assert release.wait(10)
        _files.write_file(path, data)

    monkeypatch.setattr(_snapshot, "write_file", write_file)
    snapshot = SnapshotDirectory(tmp_path)
    device = snapshot(A, 0)
    await load(device, b"a", None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(snapshot.write_manifest, result_of((A, b"a", None)))
        await writing.wait()
        nursery.start_soon(device.abort)
        await wait_all_tasks_blocked()
        release.set()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("fails", ["fsync", "rename"])
async def test_a_manifest_that_cannot_be_written_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    snapshot = SnapshotDirectory(tmp_path)
    await load(snapshot(A, 0), b"a", None)

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if fails == "fsync":
        fake = SimpleNamespace(**{**vars(os), "fsync": fail})
        monkeypatch.setattr(_files, "os", fake)
    else:
        monkeypatch.setattr(_snapshot, "sync_directory", fail)
    with pytest.raises(OSError, match="Input/output"):
        await snapshot.write_manifest(result_of((A, b"a", None)))
    assert names(tmp_path) == {data_name(A, 0)}
