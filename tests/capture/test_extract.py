"""`extract`: captures written out as snapshots. Collaboration, on real files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import trio

from trio_vfio._capture._extract import extract
from trio_vfio._device import FileSink
from trio_vfio._wire._main_encode import encode_data

from ..captures_data import COMPLETE, CaptureFiles
from .build import (
    BLOB,
    IDSTR,
    PRECOPY,
    config_packet,
    main_stream,
    packet,
    write_capture,
)


@pytest.mark.parametrize("files", COMPLETE, ids=lambda files: files.name)
async def test_real(files: CaptureFiles, tmp_path: Path) -> None:
    """What is in the files is what an independent reader found."""
    into = tmp_path / "snapshot"
    await extract(files.directory, into)
    devices = json.loads((into / "manifest.json").read_bytes())["devices"]
    for device, expected in zip(devices, files.expected["devices"], strict=True):
        for kind, digest in (("data", "sha256"), ("config", "config_sha256")):
            content = (into / device[kind]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == expected[digest]
            assert device[digest] == expected[digest]


async def test_only_whole_devices(tmp_path: Path) -> None:
    """A device with a gap is left out, the other one is written."""
    packets = [packet(0, b"a"), config_packet(2), config_packet(0, idstr="x/vfio")]
    capture = write_capture(
        tmp_path / "capture", main_stream(idstr="x/vfio"), {0: packets}
    )
    assert await extract(capture, tmp_path / "snapshot") == (("x/vfio", 0),)
    files = sorted(path.read_bytes() for path in (tmp_path / "snapshot").glob("x*"))
    assert files == [PRECOPY, BLOB]
    assert len(list((tmp_path / "snapshot").iterdir())) == 3


async def test_nothing_whole(tmp_path: Path) -> None:
    """Then there is no snapshot."""
    capture = write_capture(tmp_path / "capture", main_stream())
    assert await extract(capture, tmp_path / "snapshot") == ()
    assert not (tmp_path / "snapshot").exists()


async def test_whole_device_of_a_stream_without_an_end(tmp_path: Path) -> None:
    """A device may be whole although its migration is not."""
    main, packets = main_stream()[:-10], [packet(0, b"a"), config_packet(1)]
    capture = write_capture(tmp_path / "capture", main, {0: packets})
    assert await extract(capture, tmp_path / "snapshot") == ((IDSTR, 0),)
    (data,) = (tmp_path / "snapshot").glob("*.data")
    assert data.read_bytes() == PRECOPY + b"a"


async def test_lost_main_stream(tmp_path: Path) -> None:
    """The same where not even its file is there."""
    capture = write_capture(tmp_path / "capture", None, {0: [config_packet(0)]})
    assert await extract(capture, tmp_path / "snapshot") == ((IDSTR, 0),)


async def test_main_channel_only(tmp_path: Path) -> None:
    """Pre-copy data, then what came after switchover."""
    main = main_stream(end=encode_data(b"after") + encode_data(b""), config=BLOB)
    await extract(write_capture(tmp_path / "capture", main), tmp_path / "snapshot")
    (data,) = (tmp_path / "snapshot").glob("*.data")
    assert data.read_bytes() == PRECOPY + b"after"


async def test_failure_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one device cannot be written, nothing of the others stays, either."""
    calls: list[FileSink] = []
    finish = FileSink.finish

    async def second_one_fails(self: FileSink) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        await finish(self)

    monkeypatch.setattr(FileSink, "finish", second_one_fails)
    packets = [config_packet(0), config_packet(0, idstr="x/vfio")]
    capture = write_capture(tmp_path / "capture", None, {0: packets})
    with pytest.raises(OSError, match="No space left"):
        await extract(capture, tmp_path / "snapshot")
    assert list((tmp_path / "snapshot").iterdir()) == []


async def test_cancel_leaves_no_file(tmp_path: Path) -> None:
    """The same when it is cancelled."""
    capture = write_capture(tmp_path / "capture", None, {0: [config_packet(0)]})
    with trio.CancelScope() as scope:
        scope.cancel(reason="the test says so")
        await extract(capture, tmp_path / "snapshot")
    assert scope.cancelled_caught
    assert not (tmp_path / "snapshot").exists()
