"""Contract: a file device leaves whole files behind, or none."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_vfio._device import FileSink, _files

CALLS = ["begin", "write", "load_config", "finish"]


def views(*buffers: bytes) -> Iterator[memoryview]:
    return iter([memoryview(buffer) for buffer in buffers])


def call(device: FileSink, name: str) -> Callable[[], Awaitable[None]]:
    """Return the call of that name, with something to give it."""
    calls: dict[str, Callable[[], Awaitable[None]]] = {
        "begin": device.begin,
        "write": lambda: device.write(views(b"abc", b"def")),
        "load_config": lambda: device.load_config(b"config"),
        "finish": device.finish,
    }
    return calls[name]


async def drive(device: FileSink, calls: list[str]) -> None:
    for name in calls:
        await call(device, name)()


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def modes(directory: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


async def test_data_and_config_get_their_names_in_finish(tmp_path: Path) -> None:
    device = FileSink(tmp_path / "dev")
    await drive(device, CALLS[:3])
    assert content(tmp_path) == {"dev.part": b"abcdef", "dev.config.part": b"config"}
    await device.finish()
    assert content(tmp_path) == {"dev": b"abcdef", "dev.config": b"config"}
    assert device.config_path == tmp_path / "dev.config"
    assert modes(tmp_path) == {0o600}


async def test_a_path_may_be_a_string_and_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await drive(FileSink("dev"), CALLS)
    assert content(tmp_path) == {"dev": b"abcdef", "dev.config": b"config"}


async def test_earlier_files_are_replaced(tmp_path: Path) -> None:
    """And a config that is not this state's is removed."""
    (tmp_path / "dev").write_bytes(b"old")
    (tmp_path / "dev.config").write_bytes(b"old")
    (tmp_path / "dev.config.part").write_bytes(b"of a process that was killed")
    await drive(FileSink(tmp_path / "dev"), ["begin", "write", "finish"])
    assert content(tmp_path) == {"dev": b"abcdef"}


async def test_earlier_files_stay_if_it_is_aborted_before_finish(
    tmp_path: Path,
) -> None:
    (tmp_path / "dev").write_bytes(b"old")
    (tmp_path / "dev.config").write_bytes(b"old")
    device = FileSink(tmp_path / "dev")
    await drive(device, CALLS[:3])
    await device.abort()
    assert content(tmp_path) == {"dev": b"old", "dev.config": b"old"}


async def test_what_was_left_in_the_way_is_not_written_to(tmp_path: Path) -> None:
    """Neither its mode nor where its link points to is taken over."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"not ours")
    (tmp_path / "dev.part").symlink_to(elsewhere)
    stale = tmp_path / "dev.config.part"
    stale.write_bytes(b"stale")
    stale.chmod(0o666)
    await drive(FileSink(tmp_path / "dev"), CALLS)
    assert elsewhere.read_bytes() == b"not ours"
    assert not (tmp_path / "dev").is_symlink()
    assert stat.S_IMODE((tmp_path / "dev.config").stat().st_mode) == 0o600


@pytest.mark.parametrize("count", range(1, 5))
async def test_abort_after_each_call_leaves_nothing(tmp_path: Path, count: int) -> None:
    device = FileSink(tmp_path / "dev")
    await drive(device, CALLS[:count])
    assert content(tmp_path)
    await device.abort()
    assert content(tmp_path) == {}


@pytest.mark.parametrize("count", range(4))
async def test_a_cancel_before_each_call_leaves_nothing(
    tmp_path: Path, count: int
) -> None:
    """The call is not made; what went before it goes with the abort."""
    device = FileSink(tmp_path / "dev")
    await drive(device, CALLS[:count])
    before = content(tmp_path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await call(device, CALLS[count])()
    assert scope.cancelled_caught
    assert content(tmp_path) == before
    if count > 0:
        await device.abort()
    assert content(tmp_path) == {}


async def test_a_cancel_during_a_write_leaves_nothing(tmp_path: Path) -> None:
    device = FileSink(tmp_path / "dev")
    await device.begin()
    with trio.CancelScope() as scope:

        def buffers() -> Iterator[memoryview]:
            yield memoryview(b"first")
            trio.from_thread.run_sync(scope.cancel)
            yield memoryview(b"second")

        await device.write(buffers())
    assert scope.cancelled_caught
    assert content(tmp_path) == {"dev.part": b"first"}
    await device.abort()
    assert content(tmp_path) == {}


async def test_begin_fails_without_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await FileSink(tmp_path / "missing" / "dev").begin()
    assert content(tmp_path) == {}


async def test_begin_fails_with_before_open(tmp_path: Path) -> None:
    def refuse() -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(OSError, match="Read-only"):
        await FileSink(tmp_path / "dev", before_open=refuse).begin()
    assert content(tmp_path) == {}


async def test_a_write_that_fails_leaves_nothing_after_abort(tmp_path: Path) -> None:
    def buffers() -> Iterator[memoryview]:
        yield memoryview(b"first")
        raise OSError(errno.EIO, "Input/output error")

    device = FileSink(tmp_path / "dev")
    await device.begin()
    with pytest.raises(OSError, match="Input/output"):
        await device.write(buffers())
    await device.abort()
    assert content(tmp_path) == {}


async def test_a_config_that_does_not_get_to_disk_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    device = FileSink(tmp_path / "dev")
    await drive(device, ["begin", "write"])
    # A file system cannot be told to fail here without a device mapper.
    monkeypatch.setattr(_files, "os", SimpleNamespace(**{**vars(os), "fsync": fsync}))
    with pytest.raises(OSError, match="Input/output"):
        await device.load_config(b"config")
    assert content(tmp_path) == {"dev.part": b"abcdef"}
    await device.abort()
    assert content(tmp_path) == {}


async def test_a_finish_that_fails_half_way_leaves_nothing_after_abort(
    tmp_path: Path,
) -> None:
    """The config had its name already when the data could not get its own."""
    in_the_way = tmp_path / "dev"
    device = FileSink(tmp_path / "dev")
    await drive(device, CALLS[:3])
    in_the_way.mkdir()
    with pytest.raises(IsADirectoryError):
        await device.finish()
    in_the_way.rmdir()
    assert set(content(tmp_path)) == {"dev.config", "dev.part"}
    await device.abort()
    assert content(tmp_path) == {}


async def test_abort_removes_what_it_can(tmp_path: Path) -> None:
    """A file that cannot be removed does not keep the others, and is not hidden."""
    device = FileSink(tmp_path / "dev")
    await drive(device, CALLS[:2])
    (tmp_path / "dev.config.part").mkdir()
    with pytest.raises(IsADirectoryError):
        await device.abort()
    assert os.listdir(tmp_path) == ["dev.config.part"]


async def test_abort_waits_for_a_begin_that_is_under_way(tmp_path: Path) -> None:
    """Else the file would appear when nobody removes it any more."""
    release = threading.Event()
    opening = trio.Event()

    def before_open() -> None:
        trio.from_thread.run_sync(opening.set)
        assert release.wait(10)

    removed: list[bool] = []
    device = FileSink(
        tmp_path / "dev",
        before_open=before_open,
        before_remove=lambda: removed.append((tmp_path / "dev.part").exists()),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.begin)
        await opening.wait()
        nursery.start_soon(device.abort)
        await wait_all_tasks_blocked()
        release.set()
    assert removed == [True]
    assert content(tmp_path) == {}


async def test_abort_ends_a_write_that_is_under_way(tmp_path: Path) -> None:
    """It is seen to end before the descriptor is closed."""
    device = FileSink(tmp_path / "dev")
    await device.begin()
    under_way = trio.Event()
    aborting = threading.Event()

    def buffers() -> Iterator[memoryview]:
        yield memoryview(b"first")
        trio.from_thread.run_sync(under_way.set)
        assert aborting.wait(10)
        yield memoryview(b"second")

    async def write() -> None:
        with pytest.raises(OSError, match="aborted") as raised:
            await device.write(buffers())
        assert raised.value.errno == errno.ECANCELED

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await under_way.wait()
        nursery.start_soon(device.abort)
        await wait_all_tasks_blocked()
        assert content(tmp_path) == {"dev.part": b"first"}
        aborting.set()
    assert content(tmp_path) == {}


async def test_a_write_after_the_end_does_not_go_to_another_file(
    tmp_path: Path,
) -> None:
    """The number of the descriptor may be in use again by then."""
    device = FileSink(tmp_path / "dev")
    await drive(device, CALLS)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await device.write(views(b"abc"))


async def test_second_sink_of_one_file_fails_and_takes_nothing(tmp_path: Path) -> None:
    """Not the first one's data file, which it would then give its name."""
    first, second = FileSink(tmp_path / "dev"), FileSink(tmp_path / "dev")
    await drive(first, CALLS[:3])
    with pytest.raises(OSError, match="another migration of this process is writing"):
        await second.begin()
    await first.finish()
    assert content(tmp_path) == {"dev": b"abcdef", "dev.config": b"config"}
    await drive(second, ["begin", "write", "finish"])
    assert content(tmp_path) == {"dev": b"abcdef"}


async def test_late_abort_leaves_files_that_another_sink_has_made(
    tmp_path: Path,
) -> None:
    first, second = FileSink(tmp_path / "dev"), FileSink(tmp_path / "dev")
    await drive(first, CALLS)
    await drive(second, CALLS)
    await first.abort()
    assert content(tmp_path) == {"dev": b"abcdef", "dev.config": b"config"}
    await second.abort()
    assert content(tmp_path) == {}


def statuses(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return what files are; to follow a link may change when it was accessed."""
    found = {each.name: each.lstat() for each in directory.iterdir()}
    return {
        name: (each.st_ino, each.st_mode, each.st_size, each.st_mtime_ns)
        for name, each in found.items()
    }


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


def make_link_to_null(path: Path) -> None:
    path.symlink_to("/dev/null")


def make_link_to_stdout(path: Path) -> None:
    """Which is a regular file, as where a shell has sent it there."""
    target = path.with_name("target")
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT)
    path.with_name("link").symlink_to(f"/proc/self/fd/{descriptor}")
    path.symlink_to("link")


@pytest.mark.parametrize("suffix", ["", ".config", ".part", ".config.part"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_fifo, "a FIFO"),
        (make_socket, "a socket"),
        (make_link_to_fifo, "a FIFO"),
        (make_link_to_null, "a character device"),
        (make_link_to_stdout, "a link to an open descriptor"),
        (Path.mkdir, "a directory"),
    ],
)
async def test_begin_refuses_what_is_no_file(
    tmp_path: Path, make: Callable[[Path], None], kind: str, suffix: str
) -> None:
    """It is still there, and the text says what to do instead."""
    path = tmp_path / f"dev{suffix}"
    make(path)
    before = statuses(tmp_path)
    hint = "name a file in it" if kind == "a directory" else "use fd:N .* null: "
    with pytest.raises(OSError, match=f"{kind}, which no file may replace; .*{hint}"):
        await FileSink(tmp_path / "dev").begin()
    assert statuses(tmp_path) == before


async def test_fifo_that_comes_later_is_not_replaced_either(tmp_path: Path) -> None:
    device = FileSink(tmp_path / "dev")
    await drive(device, CALLS[:2])
    os.mkfifo(tmp_path / "dev")
    with pytest.raises(OSError, match="a FIFO, which no file may replace"):
        await device.finish()
    await device.abort()
    assert os.listdir(tmp_path) == ["dev"]


@pytest.mark.parametrize("dangling", [False, True])
async def test_link_to_a_file_is_replaced(tmp_path: Path, dangling: bool) -> None:
    target = tmp_path / "target"
    if not dangling:
        target.write_bytes(b"stays")
    (tmp_path / "dev").symlink_to(target)
    await drive(FileSink(tmp_path / "dev"), CALLS)
    assert not (tmp_path / "dev").is_symlink()
    assert target.exists() != dangling


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize("earlier", ["", "dev", "dev.config", "dev dev.config"])
async def test_earlier_files_come_back_with_an_abort_after_finish(
    tmp_path: Path, config: bool, earlier: str
) -> None:
    """Where they are kept; and nothing else is left, whatever the end."""
    before = dict.fromkeys(earlier.split(), b"old")
    for name in before:
        (tmp_path / name).write_bytes(b"old")
    calls = [name for name in CALLS if config or name != "load_config"]
    device = FileSink(tmp_path / "dev")
    async with device.keeping_earlier():
        await drive(device, calls)
        await device.abort()
        assert content(tmp_path) == before
    assert content(tmp_path) == before

    device = FileSink(tmp_path / "dev")
    async with device.keeping_earlier():
        await drive(device, calls)
    after = content(tmp_path)
    assert after == {"dev": b"abcdef", **({"dev.config": b"config"} if config else {})}
    await device.abort()
    assert content(tmp_path) == {}


async def test_earlier_file_does_not_replace_what_another_sink_has_made(
    tmp_path: Path,
) -> None:
    (tmp_path / "dev").write_bytes(b"old")
    first, second = FileSink(tmp_path / "dev"), FileSink(tmp_path / "dev")
    async with first.keeping_earlier():
        await drive(first, CALLS)
        await drive(second, CALLS)
        await first.abort()
    assert content(tmp_path) == {"dev": b"abcdef", "dev.config": b"config"}


async def test_earlier_files_are_dropped_if_the_block_is_cancelled(
    tmp_path: Path,
) -> None:
    """A migration that is complete stays so."""
    (tmp_path / "dev").write_bytes(b"old")
    device = FileSink(tmp_path / "dev")
    with trio.CancelScope() as scope:
        async with device.keeping_earlier():
            await drive(device, CALLS)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert content(tmp_path) == {"dev": b"abcdef", "dev.config": b"config"}
