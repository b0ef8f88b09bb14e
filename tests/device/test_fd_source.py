"""Contract: descriptors of which a read is ended while it waits for data."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Generator
from io import FileIO

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_vfio import Pending
from trio_vfio._device import FdSource


@pytest.fixture
def pipe() -> Generator[tuple[int, FileIO]]:
    """A pipe, blocking as it is made; a test may close its writing end."""
    reader, writer = os.pipe()
    with FileIO(reader, "r"), FileIO(writer, "w") as file:
        yield reader, file


@pytest.fixture
def memfd() -> Generator[int]:
    fd = os.memfd_create("state")
    os.write(fd, b"0123456789")
    os.lseek(fd, 2, os.SEEK_SET)
    yield fd
    os.close(fd)


async def read(source: FdSource, *sizes: int) -> list[bytes]:
    """Read once; return what the buffers were given, and b"" for a 0."""
    buffers = [memoryview(bytearray(size)) for size in sizes]
    counts = await source.read_into(buffers)
    return [bytes(view[:n]) for view, n in zip(buffers, counts, strict=False)]


async def stopped(source: FdSource) -> FdSource:
    await source.begin()
    await source.stop()
    return source


async def test_a_read_from_an_empty_pipe_is_ended_by_a_cancel(
    pipe: tuple[int, FileIO],
) -> None:
    """The thread is gone when the call is: what comes later stays in the pipe."""
    reader, writer = pipe
    source = await stopped(FdSource(reader))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, source, 100)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="the test says so")
    writer.write(b"late")
    await source.abort()
    assert os.get_blocking(reader)
    assert os.read(reader, 100) == b"late"


async def test_a_read_from_an_empty_pipe_is_ended_by_an_abort(
    pipe: tuple[int, FileIO],
) -> None:
    """Also where no cancel reaches it: the read fails with ECANCELED."""
    reader, _ = pipe
    source = await stopped(FdSource(reader))
    raised: list[OSError] = []

    async def read_in_task() -> None:
        with pytest.raises(OSError, match="aborted") as caught:
            await read(source, 100)
        raised.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_in_task)
        await wait_all_tasks_blocked()
        await source.abort()
        # The abort has waited for the thread before it touched the descriptor.
        assert os.get_blocking(reader)
    assert [error.errno for error in raised] == [errno.ECANCELED]


async def test_a_read_before_stop_waits_for_what_was_promised(
    pipe: tuple[int, FileIO],
) -> None:
    reader, writer = pipe
    source = FdSource(reader, precopy_bytes=3)
    assert await source.begin()
    got: list[bytes] = []

    async def read_in_task() -> None:
        got.extend(await read(source, 100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_in_task)
        await wait_all_tasks_blocked()
        writer.write(b"abcdef")
    assert got == [b"abc"]
    await source.abort()


async def test_before_stop_only_the_first_bytes_are_given(
    pipe: tuple[int, FileIO],
) -> None:
    reader, writer = pipe
    writer.write(b"abcdefgh")
    writer.close()
    source = FdSource(reader, precopy_bytes=5)
    assert await source.begin()
    assert await source.pending() == Pending(initial_bytes=5)
    assert await read(source, 2, 2, 2, 2) == [b"ab", b"cd", b"e"]
    assert await source.pending() == Pending()
    assert await read(source, 2, 2) == []
    await source.stop()
    assert await read(source, 2, 2, 2) == [b"fg", b"h", b""]
    await source.finish()


async def test_without_pre_copy_begin_says_so(pipe: tuple[int, FileIO]) -> None:
    source = FdSource(pipe[0])
    assert not await source.begin()
    assert await read(source, 100) == []
    await source.finish()


async def test_data_that_ends_within_pre_copy_is_no_longer_promised(
    pipe: tuple[int, FileIO],
) -> None:
    """Else a session might wait for it before it switches over."""
    reader, writer = pipe
    writer.write(b"abc")
    writer.close()
    source = FdSource(reader, precopy_bytes=100)
    await source.begin()
    assert await read(source, 3) == [b"abc"]
    assert await source.pending() == Pending(initial_bytes=97)
    assert await read(source, 3) == [b""]
    assert await source.pending() == Pending()
    await source.stop()
    assert await read(source, 3) == [b""]
    await source.finish()


async def test_how_much_a_file_still_has_is_known(memfd: int) -> None:
    source = FdSource(memfd, precopy_bytes=5)
    await source.begin()
    assert await source.pending() == Pending(initial_bytes=5, stop_copy_bytes=8)
    assert await read(source, 3) == [b"234"]
    assert await source.pending() == Pending(initial_bytes=2, stop_copy_bytes=5)
    os.ftruncate(memfd, 6)
    assert await source.pending() == Pending(initial_bytes=1, stop_copy_bytes=1)
    os.ftruncate(memfd, 0)
    assert await source.pending() == Pending(stop_copy_bytes=0)
    await source.abort()


async def test_an_abort_takes_a_file_back_to_where_it_was(memfd: int) -> None:
    """So the migration can be tried again."""
    for _ in range(2):
        source = await stopped(FdSource(memfd))
        assert await read(source, 3, 100) == [b"234", b"56789"]
        await source.abort()
        assert os.lseek(memfd, 0, os.SEEK_CUR) == 2
    source = await stopped(FdSource(memfd))
    await read(source, 3)
    await source.finish()
    assert os.lseek(memfd, 0, os.SEEK_CUR) == 5


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("end", ["finish", "abort"])
async def test_the_descriptor_is_left_as_it_was(
    pipe: tuple[int, FileIO], blocking: bool, end: str
) -> None:
    reader, writer = pipe
    os.set_blocking(reader, blocking)
    writer.write(b"abc")
    source = await stopped(FdSource(reader))
    assert not os.get_blocking(reader)
    await read(source, 3)
    assert not os.get_blocking(reader)
    await getattr(source, end)()
    assert os.get_blocking(reader) is blocking


async def test_an_abort_that_cannot_seek_leaves_the_rest_as_it_was(
    memfd: int,
) -> None:
    """Here something else has taken the place of the file meanwhile."""
    source = FdSource(memfd)
    await source.begin()
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        os.dup2(reader, memfd)
        with pytest.raises(OSError, match="Illegal seek"):
            await source.abort()
        assert os.get_blocking(memfd)
    finally:
        os.close(reader)
        os.close(writer)


async def test_begin_with_something_that_is_no_descriptor() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        await FdSource(-1).begin()


@pytest.mark.parametrize("name", ["begin", "stop"])
async def test_a_cancelled_call_changes_nothing(
    pipe: tuple[int, FileIO], name: str
) -> None:
    source = FdSource(pipe[0])
    if name == "stop":
        await source.begin()
    blocking = os.get_blocking(pipe[0])
    with trio.CancelScope() as scope:
        scope.cancel()
        await getattr(source, name)()
    assert scope.cancelled_caught
    assert os.get_blocking(pipe[0]) is blocking
    assert await read(source, 1) == []


async def test_a_read_cancelled_before_it_began_takes_nothing(memfd: int) -> None:
    source = await stopped(FdSource(memfd))
    with trio.CancelScope() as scope:
        scope.cancel()
        await read(source, 3)
    assert scope.cancelled_caught
    assert os.lseek(memfd, 0, os.SEEK_CUR) == 2
    await source.abort()


async def test_a_directory_fails_to_be_read() -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        source = await stopped(FdSource(fd))
        with pytest.raises(IsADirectoryError, match="after 0 of 3 bytes"):
            await read(source, 3)
        await source.abort()
    finally:
        os.close(fd)


async def test_a_peer_that_shuts_down_has_ended() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"abc")
        left.shutdown(socket.SHUT_WR)
        source = await stopped(FdSource(right.fileno(), config=b"config"))
        assert await read(source, 100, 100) == [b"abc", b""]
        assert await source.config() == b"config"
        await source.finish()


def test_pre_copy_is_not_negative() -> None:
    with pytest.raises(ValueError, match="precopy_bytes"):
        FdSource(0, precopy_bytes=-1)
