"""Contract: what every source must do, for each that we bring, on real descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest
import trio

from trio_vfio import Pending
from trio_vfio._device import FdSource, FileSource, NullSource, SnapshotDirectory
from trio_vfio.testing import check_state_source

from .snapshots import A, load, result_of

# More than a pipe or a socket holds.
STATE = bytes(range(251)) * 3000
CONFIG = b"config blob"
PRECOPY = 100_003

precopies = pytest.mark.parametrize("precopy_bytes", [0, PRECOPY])


@pytest.fixture
def closing() -> Generator[ExitStack]:
    """What a test opens and does not close by itself."""
    with ExitStack() as stack:
        yield stack


@precopies
async def test_a_memfd(closing: ExitStack, precopy_bytes: int) -> None:
    def make() -> FdSource:
        fd = os.memfd_create("state")
        closing.callback(os.close, fd)
        os.write(fd, b"not of the state" + STATE)
        os.lseek(fd, 16, os.SEEK_SET)
        return FdSource(fd, precopy_bytes=precopy_bytes, config=CONFIG)

    await check_state_source(make, STATE, config=CONFIG, precopy_bytes=precopy_bytes)


def pipe() -> tuple[int, int]:
    return os.pipe()


def connection() -> tuple[int, int]:
    left, right = socket.socketpair()
    return left.detach(), right.detach()


@attrs.define(eq=False)
class Fed:
    """A descriptor whose other end is written to all the time."""

    closing: ExitStack
    nursery: trio.Nursery
    opens: Callable[[], tuple[int, int]]

    def full(self, precopy_bytes: int) -> FdSource:
        reader, writer = self.opens()
        self.closing.callback(os.close, reader)
        self.nursery.start_soon(self.feed, writer)
        return FdSource(reader, precopy_bytes=precopy_bytes, config=CONFIG)

    async def feed(self, writer: int) -> None:
        async with trio.lowlevel.FdStream(writer) as stream:
            await stream.send_all(STATE)

    def empty(self) -> FdSource:
        reader, writer = self.opens()
        self.closing.callback(os.close, reader)
        self.closing.callback(os.close, writer)
        return FdSource(reader)


@precopies
@pytest.mark.parametrize("opens", [pipe, connection])
async def test_a_descriptor_that_must_be_fed(
    closing: ExitStack, opens: Callable[[], tuple[int, int]], precopy_bytes: int
) -> None:
    async with trio.open_nursery() as nursery:
        fed = Fed(closing, nursery, opens)
        await check_state_source(
            lambda: fed.full(precopy_bytes),
            STATE,
            config=CONFIG,
            precopy_bytes=precopy_bytes,
            make_waiting=fed.empty,
        )
        # Those that were aborted are never read to the end.
        nursery.cancel_scope.cancel(reason="the check is over")


@pytest.mark.parametrize("opens", [pipe, connection])
async def test_pipe_refuses_another_attempt_once_it_was_read(
    closing: ExitStack, opens: Callable[[], tuple[int, int]]
) -> None:
    reader, writer = opens()
    closing.callback(os.close, reader)
    closing.callback(os.close, writer)
    source = FdSource(reader)
    # Nothing was read yet.
    for _ in range(2):
        await source.begin()
        await source.abort()
    os.write(writer, b"abc")
    await source.begin()
    await source.stop()
    assert await source.read_into([memoryview(bytearray(2))]) == [2]
    await source.abort()
    with pytest.raises(OSError, match="an earlier migration has read from it"):
        await source.begin()
    assert os.get_blocking(reader)


@precopies
async def test_a_file(tmp_path: Path, precopy_bytes: int) -> None:
    path = tmp_path / "dev"
    path.write_bytes(STATE)
    (tmp_path / "dev.config").write_bytes(CONFIG)
    await check_state_source(
        lambda: FileSource(path, precopy_bytes=precopy_bytes),
        STATE,
        config=CONFIG,
        precopy_bytes=precopy_bytes,
    )


async def test_an_empty_file_without_a_config(tmp_path: Path) -> None:
    path = tmp_path / "dev"
    path.touch()
    await check_state_source(lambda: FileSource(path), b"", config=b"", precopy_bytes=0)


async def test_a_snapshot(tmp_path: Path) -> None:
    """Its digests are checked by the way."""
    snapshot = SnapshotDirectory(tmp_path)
    await load(snapshot(A, 0), STATE, CONFIG)
    await snapshot.write_manifest(result_of((A, STATE, CONFIG)))
    sources = [await SnapshotDirectory(tmp_path).sources() for _ in range(20)]
    makes = iter(each[A, 0] for each in sources)
    await check_state_source(lambda: next(makes), STATE, config=CONFIG, precopy_bytes=0)


@pytest.mark.parametrize("size", [0, 1, 300_001])
async def test_the_null_source(size: int) -> None:
    """The check's memory is full of something else before each read."""
    await check_state_source(
        lambda: NullSource(size), bytes(size), config=b"", precopy_bytes=0
    )


async def test_how_many_zeros_are_left_is_known() -> None:
    source = NullSource(10)
    assert await source.read_into([memoryview(bytearray(4))]) == [4]
    assert await source.pending() == Pending(stop_copy_bytes=6)


def test_there_is_nothing_less_than_no_zeros() -> None:
    with pytest.raises(ValueError, match="size"):
        NullSource(-1)
