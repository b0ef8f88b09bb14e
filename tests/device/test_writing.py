"""Pure: writing to descriptors that take less than they are given."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from trio_vfio._device import _waiting, _writing
from trio_vfio._device._writing import write_buffers
from trio_vfio._migration._position import Position
from trio_vfio._receive._run import Buffer, Run

MIB = 1024 * 1024


class EnoughError(Exception):
    """What the tests' `check` raises."""


def checks(count: int) -> Callable[[], None]:
    """Return a `check` that raises when it is called for the *count*-th time."""
    calls = iter(range(1, count))

    def check() -> None:
        if next(calls, None) is None:
            raise EnoughError

    return check


def never() -> None:
    """A `check` that lets the writing go on."""


@pytest.fixture
def full_pipe() -> Generator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, bytes(MIB))
    yield reader, writer
    os.close(writer)
    os.close(reader)


@pytest.fixture
def memfd() -> Generator[int]:
    fd = os.memfd_create("state", os.MFD_ALLOW_SEALING)
    yield fd
    os.close(fd)


def views(*buffers: bytes) -> Iterator[memoryview]:
    return iter([memoryview(buffer) for buffer in buffers])


def test_buffers_are_written_in_order(memfd: int) -> None:
    write_buffers(memfd, views(b"a", b"bc", b"def"), never)
    assert os.pread(memfd, 100, 0) == b"abcdef"


def test_a_buffer_is_asked_for_only_when_the_last_one_is_written(memfd: int) -> None:
    seen: list[int] = []

    def buffers() -> Iterator[memoryview]:
        for size in (5, 7, 9):
            yield memoryview(bytes(size))
            seen.append(os.fstat(memfd).st_size)

    write_buffers(memfd, buffers(), never)
    assert seen == [5, 12, 21]


def test_a_partial_write_is_continued_until_the_descriptor_fails(memfd: int) -> None:
    """The error says how far it came, and keeps its number."""
    os.ftruncate(memfd, 8192)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(PermissionError) as raised:
        write_buffers(memfd, views(b"x" * 1000, b"y" * 10_000), never)
    assert raised.value.errno == errno.EPERM
    assert raised.value.strerror is not None
    assert raised.value.strerror.endswith(" of 10000 bytes of the buffer)")
    assert "(after 0 of" not in raised.value.strerror


def test_no_space_is_named_and_how_much_was_written() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left") as raised:
            write_buffers(fd, views(bytes(100)), never)
    finally:
        os.close(fd)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.strerror == (
        "No space left on device (after 0 of 100 bytes of the buffer)"
    )


def test_a_write_that_accepts_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, memfd: int
) -> None:
    # No descriptor of a stock kernel does this; a driver may. Only what this one
    # module calls is replaced.
    counts = iter([3, 0])

    def writev(fd: int, data: list[memoryview]) -> int:
        return next(counts)

    monkeypatch.setattr(_writing, "os", SimpleNamespace(writev=writev))
    with pytest.raises(OSError, match="accepted 0 bytes") as raised:
        write_buffers(memfd, views(b"abcde"), never)
    assert raised.value.errno == errno.EIO
    assert raised.value.strerror is not None
    assert raised.value.strerror.endswith("(after 3 of 5 bytes of the buffer)")


def test_a_full_pipe_is_waited_for_and_checked_meanwhile(
    monkeypatch: pytest.MonkeyPatch, full_pipe: tuple[int, int]
) -> None:
    """A thread in there hears of a cancel or an abort: it is not in poll() for good."""
    monkeypatch.setattr(_waiting, "LOOK_UP", 0.001)
    with pytest.raises(EnoughError):
        write_buffers(full_pipe[1], views(b"abc"), checks(5))


def test_a_full_pipe_is_gone_on_with_once_it_has_room(
    monkeypatch: pytest.MonkeyPatch, full_pipe: tuple[int, int]
) -> None:
    monkeypatch.setattr(_waiting, "LOOK_UP", 0.001)
    reader, writer = full_pipe
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.read(reader, MIB)

    write_buffers(writer, views(b"abc", b"def"), check)
    assert os.read(reader, MIB) == b"abcdef"


def test_a_reader_that_goes_away_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, full_pipe: tuple[int, int]
) -> None:
    """POLLERR leads to a write, which raises what is wrong."""
    monkeypatch.setattr(_waiting, "LOOK_UP", 0.001)
    reader, writer = full_pipe
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            # Closes it, and leaves the fixture a descriptor of that number.
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, reader)
            os.close(null)

    with pytest.raises(BrokenPipeError, match=r"\(after 0 of 3 bytes of the buffer\)"):
        write_buffers(writer, views(b"abc"), check)


def test_a_poll_that_promises_too_much_costs_no_processor_time(
    monkeypatch: pytest.MonkeyPatch, memfd: int
) -> None:
    """A memfd is always ready in poll(); here its writev() refuses three times."""
    refusals = iter([BlockingIOError()] * 3)
    pauses: list[float] = []

    def writev(fd: int, data: list[memoryview]) -> int:
        for refusal in refusals:
            raise refusal
        return os.writev(fd, data)

    monkeypatch.setattr(_writing, "os", SimpleNamespace(writev=writev))
    monkeypatch.setattr(_waiting, "time", SimpleNamespace(sleep=pauses.append))
    write_buffers(memfd, views(b"abc"), never)
    assert os.pread(memfd, 100, 0) == b"abc"
    assert len(pauses) == 2


def run(*buffers: bytes) -> Run:
    """Hand out what a session does, which gathers."""
    packets = [Buffer(memoryview(each), idx) for idx, each in enumerate(buffers)]
    queue = deque(packets)

    class Queue:
        def take(self, most: int) -> list[Buffer]:
            taken = [queue.popleft()] if queue else []
            while queue and sum(len(b.data) for b in (*taken, queue[0])) <= most:
                taken.append(queue.popleft())
            return taken

        def written(self, buffer: Buffer) -> None:
            """Nothing to do."""

    return Run(Position(), Queue())


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What is given to each writev(), by size."""
    seen: list[list[int]] = []

    def writev(fd: int, data: list[memoryview]) -> int:
        seen.append([len(each) for each in data])
        return os.writev(fd, data)

    monkeypatch.setattr(_writing, "os", SimpleNamespace(writev=writev))
    return seen


def test_small_buffers_go_together(memfd: int, writes: list[list[int]]) -> None:
    sizes = [1, 64 * 1024, 300_000, 600_000, 200_000, MIB, 2 * MIB, 5, 6]
    data = [os.urandom(size) for size in sizes]
    buffers = run(*data)
    write_buffers(memfd, buffers, never)
    assert os.pread(memfd, 8 * MIB, 0) == b"".join(data)
    assert writes == [sizes[:4], [200_000], [MIB], [2 * MIB], [5, 6]]
    assert (buffers.exhausted, buffers.position.bytes) == (True, sum(sizes))


def test_very_small_buffers_are_not_too_many(
    memfd: int, writes: list[list[int]]
) -> None:
    write_buffers(memfd, run(*[b"x"] * os.sysconf("SC_IOV_MAX")), never)
    assert len(writes) == 1


def test_a_pipe_that_takes_a_part_of_many_gets_the_rest() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = [os.urandom(size) for size in (10_000, 1, 90_000, 3, 200_000)]
    got = bytearray()
    thread = threading.Thread(target=lambda: got.extend(_all_of(reader)))
    thread.start()
    buffers = run(*data)
    try:
        write_buffers(writer, buffers, never)
    finally:
        os.close(writer)
        thread.join(20)
        os.close(reader)
    assert got == b"".join(data)
    assert buffers.exhausted


def _all_of(fd: int) -> bytes:
    return b"".join(iter(lambda: os.read(fd, 30_000), b""))


def test_an_error_amid_many_is_that_of_the_buffer_it_came_to(memfd: int) -> None:
    """A memfd of 8192 bytes takes so many, and then no more."""
    os.ftruncate(memfd, 8192)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    buffers = run(b"a" * 4000, b"b" * 4000, b"c" * 4000)
    with pytest.raises(PermissionError, match=r"after \d+ of 4000 bytes") as raised:
        write_buffers(memfd, buffers, never)
    done, size = buffers.partly()
    assert f"(after {done} of {size} bytes of the buffer)" in str(raised.value)
    written = os.pread(memfd, 8192, 0)
    assert (
        written[: buffers.position.bytes + done]
        == (
            b"".join([b"a" * 4000, b"b" * 4000, b"c" * 4000])[
                : buffers.position.bytes + done
            ]
        )
    )


def test_a_run_that_is_told_to_stop_ends_between_two_writes(
    full_pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even inside a buffer, as the session drops it all."""
    monkeypatch.setattr(_waiting, "LOOK_UP", 0.001)
    reader, writer = full_pipe
    buffers = run(b"x" * MIB, b"y")

    def check() -> None:
        if not buffers.position.stopping:
            os.read(reader, 4096)
            buffers.position.stopping = True

    write_buffers(writer, buffers, check)
    assert buffers.exhausted
    assert buffers.position.bytes == 0


def test_it_is_checked_between_buffers(memfd: int) -> None:
    with pytest.raises(EnoughError):
        write_buffers(memfd, views(b"a", b"b", b"c"), checks(3))
    assert os.pread(memfd, 100, 0) == b"ab"


def test_what_the_iterator_raises_comes_through(tmp_path: Path, memfd: int) -> None:
    def buffers() -> Iterator[memoryview]:
        yield memoryview(b"a")
        raise EnoughError

    with pytest.raises(EnoughError):
        write_buffers(memfd, buffers(), never)
    assert os.pread(memfd, 100, 0) == b"a"
