"""Contract: a file is given as it should be, or not accepted by anybody."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_vfio import Pending
from trio_vfio._device import FileSink, FileSource

DATA = bytes(range(256)) * 10
CONFIG = b"config blob"
FACTS: dict[str, Any] = {
    "size": len(DATA),
    "sha256": hashlib.sha256(DATA).hexdigest(),
    "config_size": len(CONFIG),
    "config_sha256": hashlib.sha256(CONFIG).hexdigest(),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "dev").write_bytes(DATA)
    (tmp_path / "dev.config").write_bytes(CONFIG)
    return tmp_path / "dev"


def spoil(path: Path) -> None:
    """Change the last byte of the data."""
    path.write_bytes(DATA[:-1] + b"?")


def open_files(directory: Path) -> set[str]:
    """Which files in *directory* this process has open."""
    links = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.add(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            # The one of the listing itself.
            continue
    return {
        os.path.basename(link) for link in links if link.startswith(f"{directory}/")
    }


async def read(source: FileSource, *sizes: int) -> list[bytes]:
    """Read once; return what the buffers were given, and b"" for a 0."""
    buffers = [memoryview(bytearray(size)) for size in sizes]
    counts = await source.read_into(buffers)
    return [bytes(view[:n]) for view, n in zip(buffers, counts, strict=False)]


async def read_all(source: FileSource) -> bytes:
    """Read in small pieces to the end."""
    pieces = [b"-"]
    while pieces[-1]:
        pieces += await read(source, 100, 1, 1000)
    return b"".join(pieces[1:])


async def stopped(source: FileSource) -> FileSource:
    await source.begin()
    await source.stop()
    return source


async def test_what_a_file_device_kept_is_given_back(tmp_path: Path) -> None:
    device = FileSink(tmp_path / "dev")
    await device.begin()
    await device.write(iter([memoryview(DATA)]))
    await device.load_config(CONFIG)
    await device.finish()
    source = await stopped(FileSource(str(tmp_path / "dev"), **FACTS))
    assert await read_all(source) == DATA
    assert await source.config() == CONFIG
    await source.finish()


async def test_the_file_is_open_from_begin_to_the_end(path: Path) -> None:
    for end in ("finish", "abort"):
        source = FileSource(path)
        assert open_files(path.parent) == set()
        await source.begin()
        # The config was read whole.
        assert open_files(path.parent) == {"dev"}
        await getattr(source, end)()
        assert open_files(path.parent) == set()


async def test_pre_copy_and_what_is_pending(path: Path) -> None:
    source = FileSource(path, precopy_bytes=100)
    assert await source.begin()
    assert await source.pending() == Pending(100, 0, len(DATA))
    assert await read(source, 60, 60) == [DATA[:60], DATA[60:100]]
    assert await source.pending() == Pending(0, 0, len(DATA) - 100)
    assert await read(source, 60) == []
    await source.stop()
    assert await read_all(source) == DATA[100:]
    await source.finish()


async def test_a_file_with_less_than_pre_copy_ends(path: Path) -> None:
    source = FileSource(path, precopy_bytes=1 << 40, **FACTS)
    await source.begin()
    assert await source.pending() == Pending(len(DATA), 0, len(DATA))
    assert await read_all(source) == DATA
    assert await source.pending() == Pending(0, 0, 0)
    await source.stop()
    assert await read(source, 1) == [b""]
    await source.finish()


async def test_no_config_file_is_an_empty_blob(path: Path) -> None:
    (path.parent / "dev.config").unlink()
    source = FileSource(path, config_size=0)
    assert source.config_path == path.parent / "dev.config"
    assert not await source.begin()
    assert await source.config() == b""
    await source.finish()


async def test_a_config_may_have_a_mebibyte(path: Path) -> None:
    (path.parent / "dev.config").write_bytes(bytes(1 << 20))
    source = FileSource(path)
    await source.begin()
    assert len(await source.config()) == 1 << 20
    await source.finish()


async def test_a_larger_config_is_refused_before_it_is_read_whole(path: Path) -> None:
    # Nobody has that much memory.
    os.truncate(path.parent / "dev.config", 1 << 40)
    with pytest.raises(ValueError, match=r"dev.config: larger than 1048576 bytes"):
        await FileSource(path).begin()
    assert open_files(path.parent) == set()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"size": 5}, "the data has 2560 bytes, not 5: '.*/dev'"),
        ({"config_size": 0}, "the config has 11 bytes, not 0: '.*/dev.config'"),
        ({"config_sha256": "0" * 64}, "the config is not what was saved: its SHA-256"),
    ],
)
async def test_begin_refuses_what_differs(
    path: Path, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(OSError, match=message) as raised:
        await FileSource(path, **facts).begin()
    assert raised.value.errno == errno.EIO
    assert open_files(path.parent) == set()


async def test_a_config_that_is_missing_is_refused(path: Path) -> None:
    (path.parent / "dev.config").unlink()
    with pytest.raises(OSError, match="the config has 0 bytes, not 11"):
        await FileSource(path, **FACTS).begin()


async def test_other_data_fails_where_it_ends(path: Path) -> None:
    """The session never hears of an end, so it does not send the config."""
    spoil(path)
    source = await stopped(FileSource(path, **FACTS))
    assert await read(source, len(DATA)) == [DATA[:-1] + b"?"]
    with pytest.raises(
        OSError, match="the data is not what was saved: its SHA"
    ) as raised:
        await read(source, 1)
    assert raised.value.errno == errno.EIO
    await source.abort()
    assert open_files(path.parent) == set()


async def test_data_that_gets_shorter_meanwhile_fails_where_it_ends(path: Path) -> None:
    source = await stopped(FileSource(path, size=len(DATA)))
    os.truncate(path, 100)
    with pytest.raises(OSError, match="the data has 100 bytes, not 2560"):
        await read(source, 1000, 1000)
    await source.abort()


async def test_other_data_fails_before_stop_too(path: Path) -> None:
    """Where pre-copy takes all of it."""
    spoil(path)
    source = FileSource(path, precopy_bytes=len(DATA) + 1, **FACTS)
    await source.begin()
    with pytest.raises(OSError, match="not what was saved"):
        await read_all(source)
    await source.abort()


@pytest.mark.parametrize("name", ["dev", "dev.config"])
async def test_what_is_no_file_is_refused_without_waiting(
    path: Path, name: str
) -> None:
    """A FIFO without a writer would hold the thread that opens it."""
    there = path.parent / name
    there.unlink()
    there.mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        await FileSource(path).begin()
    there.rmdir()
    os.mkfifo(there)
    with pytest.raises(OSError, match=f"not a regular file: '.*/{name}'") as raised:
        await FileSource(path).begin()
    assert raised.value.errno == errno.EINVAL
    assert open_files(path.parent) == set()


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        await FileSource(tmp_path / "missing").begin()


@pytest.mark.parametrize("name", ["dev", "dev.config"])
async def test_links_are_followed_unless_they_must_not_be(
    path: Path, name: str
) -> None:
    (path.parent / name).rename(path.parent / "elsewhere")
    (path.parent / name).symlink_to("elsewhere")
    source = await stopped(FileSource(path, **FACTS))
    assert await read_all(source) == DATA
    await source.finish()
    with pytest.raises(OSError, match=name) as raised:
        await FileSource(path, follow_links=False).begin()
    assert raised.value.errno == errno.ELOOP


@pytest.mark.parametrize("name", ["begin", "stop", "finish"])
async def test_a_cancelled_call_changes_nothing(path: Path, name: str) -> None:
    source = FileSource(path)
    if name != "begin":
        await source.begin()
    before = open_files(path.parent)
    with trio.CancelScope() as scope:
        scope.cancel()
        await getattr(source, name)()
    assert scope.cancelled_caught
    assert open_files(path.parent) == before
    if name != "begin":
        await source.abort()
    assert open_files(path.parent) == set()


async def test_an_abort_ends_a_read_and_then_closes(path: Path) -> None:
    """Here the read is in its thread until the abort has come."""
    source = await stopped(FileSource(path, **FACTS))
    raised: list[OSError] = []

    class Buffers(list[memoryview]):
        """Are asked for their views once the abort waits."""

        def __iter__(self) -> Any:
            trio.from_thread.run(wait_for_abort)
            return super().__iter__()

    reading = trio.Event()

    async def wait_for_abort() -> None:
        reading.set()
        await wait_all_tasks_blocked()

    async def read_in_task() -> None:
        with pytest.raises(OSError, match="aborted") as caught:
            await source.read_into(Buffers([memoryview(bytearray(10))]))
        assert open_files(path.parent) == {"dev"}
        raised.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_in_task)
        await reading.wait()
        await source.abort()
    assert [error.errno for error in raised] == [errno.ECANCELED]
    assert open_files(path.parent) == set()


async def test_a_read_before_or_after_is_not_one_of_another_file(path: Path) -> None:
    """The number of the descriptor may be in use again by then."""
    source = FileSource(path)
    await source.stop()
    with pytest.raises(ValueError, match="read before begin"):
        await read(source, 1)
    await source.abort()
    source = await stopped(FileSource(path))
    await source.finish()
    with pytest.raises(ValueError, match="closed file"):
        await read(source, 1)


def test_pre_copy_is_not_negative(path: Path) -> None:
    with pytest.raises(ValueError, match="precopy_bytes"):
        FileSource(path, precopy_bytes=-1)
