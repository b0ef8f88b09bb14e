"""Pure and contract: a snapshot is read back, whoever wrote it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
from hypothesis import given, strategies as st

from trio_vfio._device import FileSource, SnapshotDirectory
from trio_vfio._device._manifest import Entry, encode_manifest, read_manifest
from trio_vfio._device._snapshot import data_name

from .snapshots import A, B, load, result_of

Json: TypeAlias = dict[str, Any]


async def read_all(source: FileSource) -> bytes:
    """Drive a source to its end; return its data."""
    await source.begin()
    await source.stop()
    view = memoryview(bytearray(100))
    data = b""
    while (counts := await source.read_into([view])) != [0]:
        data += view[: counts[0]]
    return data


def put(path: Path, content: bytes) -> None:
    """Replace what is in *path*."""
    path.write_bytes(content)


async def make_snapshot(directory: Path) -> None:
    """Save two devices: B, then A without a config."""
    snapshot = SnapshotDirectory(directory)
    await load(snapshot(A, 0), b"data of A", None)
    await load(snapshot(B, 0), b"data of B", b"config")
    await snapshot.write_manifest(
        result_of((B, b"data of B", b"config"), (A, b"data of A", None))
    )


async def test_a_snapshot_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    await make_snapshot(tmp_path)
    before = sorted(os.listdir(tmp_path))
    sources = await SnapshotDirectory(tmp_path).sources()
    assert list(sources) == [(B, 0), (A, 0)]
    saved = {}
    for (idstr, _), source in sources.items():
        saved[idstr] = (await read_all(source), await source.config())
        await source.finish()
    assert saved == {A: (b"data of A", b""), B: (b"data of B", b"config")}
    assert sorted(os.listdir(tmp_path)) == before


async def test_a_snapshot_of_nothing(tmp_path: Path) -> None:
    await SnapshotDirectory(tmp_path).write_manifest(result_of())
    assert await SnapshotDirectory(tmp_path).sources() == {}


async def test_files_that_were_changed_are_not_accepted(tmp_path: Path) -> None:
    await make_snapshot(tmp_path)
    put(tmp_path / data_name(A, 0), b"Data of A")
    put(tmp_path / (data_name(B, 0) + ".config"), b"configs")
    sources = await SnapshotDirectory(tmp_path).sources()
    with pytest.raises(OSError, match="the data is not what was saved"):
        await read_all(sources[A, 0])
    await sources[A, 0].abort()
    with pytest.raises(OSError, match="the config has 7 bytes, not 6"):
        await sources[B, 0].begin()


async def test_a_config_that_was_not_saved_is_not_accepted(tmp_path: Path) -> None:
    await make_snapshot(tmp_path)
    put(tmp_path / (data_name(A, 0) + ".config"), b"?")
    sources = await SnapshotDirectory(tmp_path).sources()
    with pytest.raises(OSError, match="the config has 1 bytes, not 0"):
        await sources[A, 0].begin()


@pytest.mark.parametrize("suffix", ["", ".config"])
async def test_a_link_in_a_snapshot_is_not_followed(
    tmp_path: Path, suffix: str
) -> None:
    """It may point to whatever its writer wants to be sent."""
    await make_snapshot(tmp_path)
    name = tmp_path / (data_name(B, 0) + suffix)
    os.rename(name, tmp_path / "elsewhere")
    os.symlink("elsewhere", name)
    sources = await SnapshotDirectory(tmp_path).sources()
    with pytest.raises(OSError, match="symbolic links") as raised:
        await sources[B, 0].begin()
    assert raised.value.errno == errno.ELOOP


async def test_a_manifest_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    os.symlink("/dev/zero", tmp_path / "manifest.json")
    with pytest.raises(OSError, match=r"manifest\.json") as raised:
        await SnapshotDirectory(tmp_path).sources()
    assert raised.value.errno == errno.ELOOP


async def test_a_snapshot_without_a_manifest_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        await SnapshotDirectory(tmp_path).sources()


async def test_a_cancelled_call_does_not_read(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await SnapshotDirectory(tmp_path).sources()
    assert scope.cancelled_caught


def entry(**changes: object) -> Json:
    """Return a device as a manifest has it."""
    return {
        "idstr": A,
        "instance_id": 0,
        "data": "a.data",
        "config": "a.data.config",
        "data_bytes": 9,
        "sha256": "0" * 64,
        "config_bytes": 6,
        "config_sha256": "f" * 64,
    } | changes


def without(key: str) -> Json:
    device = entry()
    del device[key]
    return device


def read(directory: Path, text: bytes) -> list[Entry]:
    (directory / "manifest.json").write_bytes(text)
    return read_manifest(directory)


def manifest(*devices: object) -> bytes:
    return json.dumps({"format": 1, "devices": devices}).encode()


def test_what_is_right_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, manifest(entry())) == [Entry(**entry())]
    none = entry(config=None, config_bytes=None, config_sha256=None, sha256=None)
    assert read(tmp_path, manifest(none)) == [Entry(**none)]
    # A later writer may say more about a device, within this format.
    assert read(tmp_path, manifest(entry(more=[1]))) == [Entry(**entry())]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "Expecting value: line 1"),
        (b"\xff\xfe{\0}\0", "can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "manifest is a list, not an object"),
        (b"{}", "manifest has no 'format'"),
        (b'{"format": 2, "devices": []}', "format is 2, not 1"),
        (b'{"format": true, "devices": []}', "format is true, not an integer"),
        (b'{"format": 1.0, "devices": []}', "format is 1.0, not an integer"),
        (b'{"format": 1, "format": 1, "devices": []}', "a key stands twice"),
        (b'{"format": NaN, "devices": []}', "NaN is no number"),
        (b'{"format": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"format": 1}', "manifest has no 'devices'"),
        (b'{"format": 1, "devices": {}}', "devices is an object, not a list"),
        (b'{"format": 1, "devices": null}', "devices is null, not a list"),
        (manifest("\n" * 200), r"device 0 is '\n\n"),
        (manifest(*[{}] * 257), "257 devices; there may be 256"),
        (manifest(entry(), entry(data="b", config="b.config")), "instance 0: twice"),
        (manifest(entry(), entry(instance_id=1)), "file 'a.data': used twice"),
        (
            manifest(
                entry(),
                entry(
                    instance_id=1, data="a.data.config", config="a.data.config.config"
                ),
            ),
            "file 'a.data.config': used twice",
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    tmp_path: Path, text: bytes, complaint: str
) -> None:
    with pytest.raises(ValueError, match="manifest.json: ") as raised:
        read(tmp_path, text)
    assert complaint in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(tmp_path))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("key", entry())
def test_each_key_is_needed(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"device 0 has no '{key}'"):
        read(tmp_path, manifest(without(key)))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("idstr", ["", "a" * 256, "a\nb", "\x1b[2J", "\ud800", "ä", None, 1, []]),
        ("instance_id", [-1, 2**32, None, "0", 0.0, False, {}]),
        (
            "data",
            ["", ".", "..", "/etc/passwd", "../x", "a/b", "a/", "a\0", "manifest.json"]
            + ["a" * 250, "ä", None, 5, ["a"]],
        ),
        ("config", ["", "/etc/passwd", "../a.data.config", "b.config", 5, [], False]),
        ("data_bytes", [-1, 2**63, None, 9.0, True, "9"]),
        ("sha256", ["", "0" * 63, "0" * 65, "g" * 64, "F" * 64, "0" * 64 + "\n", 0]),
        ("config_bytes", [-1, 2**20 + 1, None, 6.0, True]),
        ("config_sha256", ["", "0" * 63, 0, []]),
    ],
)
def test_values_that_cannot_be_are_refused(
    tmp_path: Path, key: str, values: list[object]
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"device 0: {key} is ") as raised:
            read(tmp_path, manifest(entry(**{key: value})))
        assert str(raised.value).isascii()
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("key", ["config_bytes", "config_sha256"])
def test_nothing_is_said_of_a_config_that_is_not_there(
    tmp_path: Path, key: str
) -> None:
    device = entry(config=None, config_bytes=None, config_sha256=None)
    device[key] = entry()[key]
    with pytest.raises(ValueError, match=f"{key} is .*, not null, where there is no"):
        read(tmp_path, manifest(device))


def test_a_manifest_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    os.truncate(tmp_path / "manifest.json", 1 << 40)
    with pytest.raises(ValueError, match=r"manifest.json: larger than 1048576 bytes"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_manifest_that_is_no_file_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "manifest.json")
    with pytest.raises(OSError, match=r"manifest\.json"):
        read_manifest(tmp_path)


idstrs = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255
)
digests = st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    idstr, instance_id = draw(idstrs), draw(st.integers(0, 2**32 - 1))
    name = data_name(idstr, instance_id)
    has_config = draw(st.booleans())
    return Entry(
        idstr=idstr,
        instance_id=instance_id,
        data=name,
        config=f"{name}.config" if has_config else None,
        data_bytes=draw(st.integers(0, 2**63 - 1)),
        sha256=draw(digests),
        config_bytes=draw(st.integers(0, 2**20)) if has_config else None,
        config_sha256=draw(digests) if has_config else None,
    )


devices = st.lists(entries(), unique_by=lambda each: each.data, max_size=5)


@given(devices)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[Entry]
) -> None:
    directory = tmp_path_factory.getbasetemp()
    assert read(directory, encode_manifest(written)) == written


@given(devices, st.data())
def test_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, written: list[Entry], data: st.DataObject
) -> None:
    """Nothing but ValueError, and no name that leads out of the directory."""
    text = bytearray(encode_manifest(written))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    directory = tmp_path_factory.getbasetemp()
    try:
        found = read(directory, bytes(text))
    except ValueError:
        return
    for each in found:
        for name in filter(None, (each.data, each.config)):
            assert (directory / name).parent == directory
            assert os.path.normpath(directory / name) == str(directory / name)
