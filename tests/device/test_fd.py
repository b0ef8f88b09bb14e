"""Contract: descriptors of which a write is ended while it waits for room."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import termios
from collections.abc import Generator, Iterator

import pytest
import trio

from trio_vfio._device import FdSink

MIB = 1024 * 1024


@pytest.fixture
def pipe() -> Generator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def views(*buffers: bytes) -> Iterator[memoryview]:
    return iter([memoryview(buffer) for buffer in buffers])


async def until_full(reader: int) -> int:
    """Wait until a pipe takes no more; return how much it has taken."""
    size = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
    held = array.array("i", [0])
    while held[0] < size:
        await trio.lowlevel.checkpoint()
        fcntl.ioctl(reader, termios.FIONREAD, held)
    return held[0]


async def test_a_write_to_a_full_pipe_is_ended_by_a_cancel(
    pipe: tuple[int, int],
) -> None:
    """The thread is gone when the call is, and nothing more gets into the pipe."""
    reader, writer = pipe
    device = FdSink(writer)
    await device.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, views(bytes(MIB)))
        taken = await until_full(reader)
        nursery.cancel_scope.cancel(reason="the test says so")
    assert len(os.read(reader, 2 * MIB)) == taken
    await device.abort()
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)


async def test_a_write_to_a_full_pipe_is_ended_by_an_abort(
    pipe: tuple[int, int],
) -> None:
    """Also where no cancel reaches it: the write fails with ECANCELED."""
    reader, writer = pipe
    device = FdSink(writer)
    await device.begin()
    raised: list[OSError] = []

    async def write() -> None:
        with pytest.raises(OSError, match="aborted") as caught:
            await device.write(views(bytes(MIB)))
        raised.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await until_full(reader)
        await device.abort()
        # The abort has waited for the thread before it touched the descriptor.
        assert os.get_blocking(writer)
    assert [error.errno for error in raised] == [errno.ECANCELED]


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("end", ["finish", "abort", "finish, abort"])
async def test_the_descriptor_is_left_as_it_was(
    pipe: tuple[int, int], blocking: bool, end: str
) -> None:
    _, writer = pipe
    os.set_blocking(writer, blocking)
    device = FdSink(writer)
    await device.begin()
    assert not os.get_blocking(writer)
    await device.write(views(b"abc"))
    assert not os.get_blocking(writer)
    for name in end.split(", "):
        await getattr(device, name)()
        assert os.get_blocking(writer) is blocking


async def test_a_cancelled_begin_changes_nothing(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    with trio.CancelScope() as scope:
        scope.cancel()
        await FdSink(writer).begin()
    assert scope.cancelled_caught
    assert os.get_blocking(writer)


async def test_begin_with_something_that_is_no_descriptor() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        await FdSink(-1).begin()


async def test_a_device_without_space_fails_with_the_number_of_the_system() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        device = FdSink(fd)
        await device.begin()
        with pytest.raises(OSError, match="after 0 of 4096 bytes") as raised:
            await device.write(views(bytes(4096)))
        await device.abort()
    finally:
        os.close(fd)
    assert raised.value.errno == errno.ENOSPC


async def test_a_cancel_is_seen_between_buffers() -> None:
    """The buffer that was being written when it came is written whole."""
    fd = os.memfd_create("state")
    try:
        device = FdSink(fd)
        await device.begin()
        with trio.CancelScope() as scope:

            def buffers() -> Iterator[memoryview]:
                yield memoryview(b"first, ")
                trio.from_thread.run_sync(scope.cancel)
                yield memoryview(b"never")

            await device.write(buffers())
        assert scope.cancelled_caught
        await device.abort()
        assert os.pread(fd, 100, 0) == b"first, "
    finally:
        os.close(fd)


async def test_the_config_is_kept_beside_the_data(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    device = FdSink(writer, precopy=False)
    assert device.precopy is False
    await device.begin()
    await device.write(views(b"data"))
    before = device.config
    await device.load_config(b"config")
    await device.finish()
    assert os.read(reader, 100) == b"data"
    assert (before, device.config) == (None, b"config")


async def test_no_threads_are_taken_from_the_application(pipe: tuple[int, int]) -> None:
    """Nor does the device wait while the application has used up its own."""
    _, writer = pipe
    device = FdSink(writer)
    limiter = trio.to_thread.current_default_thread_limiter()
    for n in range(int(limiter.total_tokens)):
        limiter.acquire_on_behalf_of_nowait(n)
    try:
        await device.begin()
        await device.write(views(b"abc"))
        await device.finish()
    finally:
        for n in range(int(limiter.total_tokens)):
            limiter.release_on_behalf_of(n)
