"""Pure: writing to descriptors that take less than they are given."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from trio_vfio._device import _waiting, _writing
from trio_vfio._device._port import QuickWriter
from trio_vfio._device._writing import QUICK, write_buffers
from trio_vfio._migration._position import Position
from trio_vfio._receive._run import AtOnce, Buffer, Run

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


def replace_writev(
    monkeypatch: pytest.MonkeyPatch, writev: Callable[[int, list[memoryview]], int]
) -> None:
    """Let *writev* be what this one module calls."""
    replaced = SimpleNamespace(writev=writev, fstat=os.fstat)
    monkeypatch.setattr(_writing, "os", replaced)


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
    # No descriptor of a stock kernel does this; a driver may.
    counts = iter([3, 0])

    def writev(fd: int, data: list[memoryview]) -> int:
        return next(counts)

    replace_writev(monkeypatch, writev)
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

    replace_writev(monkeypatch, writev)
    monkeypatch.setattr(_waiting, "time", SimpleNamespace(sleep=pauses.append))
    write_buffers(memfd, views(b"abc"), never)
    assert os.pread(memfd, 100, 0) == b"abc"
    assert len(pauses) == 2


def run(*buffers: bytes) -> Run:
    """Hand out what a session does, which gathers."""
    packets = [Buffer(memoryview(each), idx) for idx, each in enumerate(buffers)]
    queue = deque(packets)

    class Queue:
        def take(self, most: int, at_once: AtOnce | None = None) -> list[Buffer]:
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

    replace_writev(monkeypatch, writev)
    return seen


SIZES = [1, 64 * 1024, 300_000, 600_000, 200_000, MIB, MIB, 3 * MIB, 5, 6]


def test_buffers_go_together(memfd: int, writes: list[list[int]]) -> None:
    data = [os.urandom(size) for size in SIZES]
    buffers = run(*data)
    write_buffers(memfd, buffers, never)
    assert os.pread(memfd, 8 * MIB, 0) == b"".join(data)
    assert writes == [SIZES[:5], [MIB, MIB], [3 * MIB], [5, 6]]
    assert (buffers.exhausted, buffers.position.bytes) == (True, sum(SIZES))


def test_a_device_takes_no_more_at_a_time_than_of_qemu(
    writes: list[list[int]],
) -> None:
    """A cancel waits for the end of a write."""
    with open(os.devnull, "wb", buffering=0) as device:
        write_buffers(device.fileno(), run(*map(bytes, SIZES)), never)
    assert writes == [SIZES[:4], [200_000], [MIB], [MIB], [3 * MIB], [5, 6]]


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


class Waits(Iterator[memoryview]):
    """A run of nothing, which notes what may be written while it is waited for."""

    writer: QuickWriter | None

    def __next__(self) -> memoryview:
        raise StopIteration

    def gather(self, most: int, writer: QuickWriter | None = None) -> list[memoryview]:
        self.writer = writer
        return []

    def written(self, count: int) -> None:
        """Nothing to do."""

    def partly(self) -> tuple[int, int]:
        return 0, 0


def writer_of(fd: int) -> QuickWriter | None:
    """Return what others may write with to *fd*."""
    waits = Waits()
    write_buffers(fd, waits, never)
    return waits.writer


def test_others_may_write_to_what_is_a_file(tmp_path: Path, memfd: int) -> None:
    with (tmp_path / "state").open("wb") as file:
        assert writer_of(file.fileno()) is not None
    assert writer_of(memfd) is not None


def test_others_may_not_write_to_what_lets_them_wait(
    full_pipe: tuple[int, int],
) -> None:
    assert writer_of(full_pipe[1]) is None
    with open("/dev/null", "wb") as null:
        assert writer_of(null.fileno()) is None


def take(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Let writes take *seconds*, one after the other."""
    times: list[float] = []
    now = 0.0
    for each in seconds:
        times += [now, now + each]
        now += each
    clock = SimpleNamespace(perf_counter=iter(times).__next__)
    monkeypatch.setattr(_writing, "time", clock)


def test_a_descriptor_is_quick_once_it_was(
    monkeypatch: pytest.MonkeyPatch, memfd: int
) -> None:
    writer = writer_of(memfd)
    assert writer is not None
    assert not writer.is_quick, "nobody knows"
    take(monkeypatch, 2 * QUICK, QUICK / 2)
    assert (writer.write([memoryview(b"a")]), writer.is_quick) == (1, False)
    assert (writer.write([memoryview(b"b")]), writer.is_quick) == (1, True)


def test_a_descriptor_is_quick_until_it_is_slow_again_and_again(
    monkeypatch: pytest.MonkeyPatch, memfd: int
) -> None:
    """One write that takes long was only kept from the processor."""
    writer = writer_of(memfd)
    assert writer is not None
    quick, slow = QUICK / 5, 1000.0
    take(monkeypatch, quick, slow, quick, slow, slow, slow, slow, quick)
    said: list[bool] = []
    for _ in range(8):
        writer.write([memoryview(b"a")])
        said.append(writer.is_quick)
    # What a write takes doubles at most with each.
    assert said == [True, True, True, True, True, False, False, True]


def test_what_others_write_is_written(memfd: int) -> None:
    writer = writer_of(memfd)
    assert writer is not None
    assert writer.write([memoryview(b"abc"), memoryview(b"de")]) == 5
    assert os.pread(memfd, 100, 0) == b"abcde"


def test_others_are_told_what_is_wrong_and_where(memfd: int) -> None:
    writer = writer_of(memfd)
    assert writer is not None
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(PermissionError) as raised:
        writer.write([memoryview(b"abc"), memoryview(b"de")])
    assert raised.value.errno == errno.EPERM
    assert raised.value.strerror == (
        "Operation not permitted (after 0 of 3 bytes of the buffer)"
    )


def test_a_file_that_has_no_room_for_others_has_taken_nothing(
    monkeypatch: pytest.MonkeyPatch, memfd: int
) -> None:
    """A file system may do so; the own thread is the one that waits."""

    def writev(fd: int, data: list[memoryview]) -> int:
        raise BlockingIOError

    writer = writer_of(memfd)
    assert writer is not None
    replace_writev(monkeypatch, writev)
    assert writer.write([memoryview(b"abc")]) == 0


def brought(*data: bytes) -> Run:
    """Hand out the first of *data*; another thread brings the others, one by one."""
    packets = deque(Buffer(memoryview(each), idx) for idx, each in enumerate(data))

    class Queue:
        def take(self, most: int, at_once: AtOnce | None = None) -> list[Buffer]:
            if packets[0].idx == 0:
                return [packets.popleft()]
            assert at_once is not None
            with ThreadPoolExecutor(1) as thread:
                while packets and thread.submit(at_once, [packets.popleft()]).result():
                    pass
            return []

        def written(self, buffer: Buffer) -> None:
            """Nothing to do."""

    return Run(Position(), Queue())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write takes a microsecond."""
    clock = SimpleNamespace(perf_counter=count(0, 1e-6).__next__)
    monkeypatch.setattr(_writing, "time", clock)


@pytest.mark.usefixtures("quick")
def test_two_threads_write_one_file_in_order(memfd: int) -> None:
    own = 0

    def check() -> None:
        nonlocal own
        own += 1

    buffers = brought(b"a", b"bc", b"def", b"g")
    write_buffers(memfd, buffers, check)
    assert os.pread(memfd, 100, 0) == b"abcdefg"
    assert own == 1, "the other one has not written its own"
    assert (buffers.exhausted, buffers.position.bytes) == (True, 7)


@pytest.mark.usefixtures("quick")
def test_what_others_could_not_write_is_an_error_of_the_buffer(memfd: int) -> None:
    """It is raised once, as it was, with how far it came."""
    os.ftruncate(memfd, 8192)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    buffers = brought(b"a" * 4096, b"b" * 4096, b"c" * 10)
    with pytest.raises(PermissionError) as raised:
        write_buffers(memfd, buffers, never)
    assert raised.value.strerror == (
        "Operation not permitted (after 0 of 10 bytes of the buffer)"
    )
    assert (buffers.position.idx, buffers.position.bytes) == (2, 8192)
    assert os.pread(memfd, 8192, 0) == b"a" * 4096 + b"b" * 4096
