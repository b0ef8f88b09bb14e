"""Pure: reading from descriptors that give less than they are asked for."""

from __future__ import annotations

import errno
import os
import socket
import threading
import tty
from collections.abc import Callable, Generator, Sequence
from io import FileIO
from types import SimpleNamespace

import pytest

from trio_vfio._device import _reading, _waiting
from trio_vfio._device._reading import read_all, read_buffers

KIB = 1024


class EnoughError(Exception):
    """What the tests' `check` raises."""


def never() -> None:
    """A `check` that lets the reading go on."""


def at_call(number: int, do: Callable[[], object]) -> Callable[[], None]:
    """Return a `check` that does something when it is called for that time."""
    calls = iter(range(1, number))

    def check() -> None:
        if next(calls, None) is None:
            do()

    return check


def enough() -> None:
    raise EnoughError


@pytest.fixture
def pipe() -> Generator[tuple[int, FileIO]]:
    """A pipe whose reading end does not block; a test may close the other."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with FileIO(reader, "r"), FileIO(writer, "w") as file:
        yield reader, file


@pytest.fixture
def memfd() -> Generator[int]:
    fd = os.memfd_create("state")
    yield fd
    os.close(fd)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "LOOK_UP", 0.001)


class Buffers:
    """Memory of these sizes to read into."""

    def __init__(self, *sizes: int) -> None:
        self.views = [memoryview(bytearray(b"." * size)) for size in sizes]

    def read(self, fd: int, check: Callable[[], None] = never) -> list[int]:
        return read_buffers(fd, self.views, check)

    @property
    def content(self) -> list[bytes]:
        return [bytes(view) for view in self.views]


def fill(fd: int, data: bytes) -> None:
    """Make *data* the content of a memfd, and go to its start."""
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)


def test_buffers_are_filled_one_after_another(memfd: int) -> None:
    fill(memfd, b"abcdefgh")
    buffers = Buffers(1, 2, 3)
    assert buffers.read(memfd) == [1, 2, 3]
    assert buffers.content == [b"a", b"bc", b"def"]


@pytest.mark.parametrize(
    ("sizes", "reads"),
    [
        # Where a buffer is left for the 0, it is said at once.
        ((4, 4, 4), [[4, 2, 0]]),
        ((4, 4), [[4, 2], [0]]),
        ((6,), [[6], [0]]),
        ((3, 3, 3), [[3, 3, 0]]),
        ((100,), [[6], [0]]),
        ((1,), [[1]] * 6 + [[0]]),
    ],
)
@pytest.mark.parametrize("kind", ["memfd", "pipe"])
def test_the_end_is_the_last_number(
    pipe: tuple[int, FileIO],
    memfd: int,
    kind: str,
    sizes: Sequence[int],
    reads: list[list[int]],
) -> None:
    reader, writer = pipe
    writer.write(b"abcdef")
    writer.close()
    fill(memfd, b"abcdef")
    fd = {"memfd": memfd, "pipe": reader}[kind]
    assert [Buffers(*sizes).read(fd) for _ in reads] == reads


def test_nothing_is_written_behind_the_count(memfd: int) -> None:
    fill(memfd, b"abc")
    buffers = Buffers(2, 2, 2)
    assert buffers.read(memfd) == [2, 1, 0]
    assert buffers.content == [b"ab", b"c.", b".."]


def test_no_buffers_read_nothing(memfd: int) -> None:
    fill(memfd, b"abc")
    assert Buffers().read(memfd) == []
    assert os.lseek(memfd, 0, os.SEEK_CUR) == 0


def test_a_pipe_that_has_something_is_not_waited_for(pipe: tuple[int, FileIO]) -> None:
    """The list is short then, and its last buffer may be part full."""
    reader, writer = pipe
    writer.write(b"abcde")
    buffers = Buffers(3, 3, 3)
    assert buffers.read(reader) == [3, 2]
    assert buffers.content == [b"abc", b"de.", b"..."]


def test_a_writer_that_keeps_up_fills_whole_buffers(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, FileIO]
) -> None:
    """A pipe holds 64 KiB, and is empty again and again while a buffer fills."""
    monkeypatch.setattr(_reading, "LINGER", 30)
    reader, writer = pipe
    data = os.urandom(600 * KIB)

    def write() -> None:
        writer.write(data)
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    buffers = Buffers(500 * KIB, 500 * KIB, 1)
    try:
        assert buffers.read(reader) == [500 * KIB, 100 * KIB, 0]
    finally:
        thread.join()
    assert b"".join(buffers.content)[: 600 * KIB] == data


def test_lingering_has_one_budget_for_the_call(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, FileIO]
) -> None:
    """A writer that trickles does not keep what it has given for long."""
    reader, writer = pipe
    monkeypatch.setattr(_reading, "LINGER", 1)
    # Each wait takes 0.4 s of a clock that is ours, and a byte comes in it.
    now = 0.0
    waits: list[float] = []

    def poll(timeout: float) -> list[int]:
        nonlocal now
        waits.append(round(timeout))
        now += 0.4
        writer.write(b"x")
        return [reader]

    fake = SimpleNamespace(poll=poll, register=lambda *_: None)
    monkeypatch.setattr(
        _reading, "select", SimpleNamespace(poll=lambda: fake, POLLIN=1)
    )
    monkeypatch.setattr(_reading, "time", SimpleNamespace(monotonic=lambda: now))
    writer.write(b"x")
    assert Buffers(100).read(reader) == [4]
    assert waits == [1000, 600, 200]


def test_an_empty_pipe_is_waited_for_and_checked_meanwhile(
    impatient: None, pipe: tuple[int, FileIO]
) -> None:
    """A thread in there hears of a cancel or an abort: it is not in poll() for good."""
    with pytest.raises(EnoughError):
        Buffers(3).read(pipe[0], at_call(5, enough))


def test_an_empty_pipe_is_gone_on_with_once_it_has_something(
    impatient: None, pipe: tuple[int, FileIO]
) -> None:
    reader, writer = pipe
    buffers = Buffers(3, 3)
    write = at_call(3, lambda: writer.write(b"x"))
    assert 1 <= sum(buffers.read(reader, write)) <= 6


def test_a_writer_that_goes_away_ends_the_wait(
    impatient: None, pipe: tuple[int, FileIO]
) -> None:
    reader, writer = pipe
    assert Buffers(3).read(reader, at_call(3, writer.close)) == [0]


def test_a_poll_that_promises_too_much_costs_no_processor_time(
    monkeypatch: pytest.MonkeyPatch, memfd: int
) -> None:
    """A memfd is always ready in poll(); here its read refuses three times."""
    refusals = iter([BlockingIOError()] * 3)
    pauses: list[float] = []

    def readv(fd: int, buffers: Sequence[memoryview]) -> int:
        for refusal in refusals:
            raise refusal
        return os.readv(fd, buffers)

    fill(memfd, b"abc")
    monkeypatch.setattr(_reading, "os", SimpleNamespace(readv=readv))
    monkeypatch.setattr(_waiting, "time", SimpleNamespace(sleep=pauses.append))
    assert Buffers(3).read(memfd) == [3]
    assert len(pauses) == 2


def no_message(counts: Sequence[int]) -> Callable[[int, Sequence[memoryview]], int]:
    """Return a `readv` that gives so many bytes, and then has no more for now."""
    left = iter(counts)

    def readv(fd: int, buffers: Sequence[memoryview]) -> int:
        for count in left:
            return count
        raise OSError(errno.ENOMSG, os.strerror(errno.ENOMSG))

    return readv


@pytest.mark.parametrize(
    ("counts", "returned"), [([], []), ([2], [2]), ([4], [4]), ([4, 1], [4, 1])]
)
def test_no_message_ends_the_list_early(
    monkeypatch: pytest.MonkeyPatch,
    memfd: int,
    counts: Sequence[int],
    returned: list[int],
) -> None:
    # No descriptor of a stock kernel says it without a VFIO device. Only what this
    # one module calls is replaced.
    monkeypatch.setattr(_reading, "os", SimpleNamespace(readv=no_message(counts)))
    assert Buffers(4, 4, 4).read(memfd) == returned


def test_it_is_checked_between_buffers(memfd: int) -> None:
    fill(memfd, b"abc")
    buffers = Buffers(1, 1, 1)
    with pytest.raises(EnoughError):
        buffers.read(memfd, at_call(3, enough))
    assert buffers.content == [b"a", b"b", b"."]


def test_a_directory_is_named() -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError, match=r"\(after 0 of 3 bytes of the buf"):
            Buffers(3).read(fd)
    finally:
        os.close(fd)


def test_a_closed_descriptor_is_named() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as raised:
        Buffers(3).read(-1)
    assert raised.value.errno == errno.EBADF


def test_an_error_says_how_much_of_the_buffer_was_read(impatient: None) -> None:
    """A terminal whose other end has gone gives what it has, and then EIO."""
    terminal, other_end = os.openpty()
    try:
        tty.setraw(other_end)
        os.write(other_end, b"abcde")
        os.close(other_end)
        with pytest.raises(OSError, match="Input/output error") as raised:
            Buffers(2, 100).read(terminal)
    finally:
        os.close(terminal)
    assert raised.value.errno == errno.EIO
    assert raised.value.strerror == (
        "Input/output error (after 3 of 100 bytes of the buffer)"
    )


def test_a_connection_that_was_reset_is_no_end() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        # To close with data that was not read is to reset.
        ours.sendall(b"x")
        theirs.recv(1, socket.MSG_PEEK)
        theirs.close()
        with pytest.raises(ConnectionResetError, match="after 0 of 3 bytes"):
            Buffers(3).read(ours.fileno())


class Lent:
    """Buffers of so many bytes each, lent one after another."""

    def __init__(self, size: int, most: int = 100) -> None:
        self.size, self.most = size, most
        self.packets: list[bytes] = []
        self.lent = memoryview(b"")

    def take(self) -> memoryview | None:
        if len(self.packets) == self.most:
            return None
        self.lent = memoryview(bytearray(self.size))
        return self.lent

    def filled(self, count: int) -> None:
        self.packets.append(bytes(self.lent[:count]))


@pytest.mark.parametrize(
    ("size", "packets"),
    [
        (4, [b"abcd", b"ef"]),
        (6, [b"abcdef"]),
        (100, [b"abcdef"]),
        (3, [b"abc", b"def"]),
    ],
)
@pytest.mark.parametrize("kind", ["memfd", "pipe"])
def test_all_is_read_in_one_call(
    pipe: tuple[int, FileIO], memfd: int, kind: str, size: int, packets: list[bytes]
) -> None:
    reader, writer = pipe
    writer.write(b"abcdef")
    writer.close()
    fill(memfd, b"abcdef")
    lent, seen = Lent(size), bytearray()
    fd = {"memfd": memfd, "pipe": reader}[kind]
    assert read_all(fd, lent, never, seen.extend)
    assert (lent.packets, bytes(seen)) == (packets, b"abcdef")


def test_nothing_is_read_where_there_are_no_more_buffers(memfd: int) -> None:
    fill(memfd, b"abcdef")
    lent = Lent(2, most=2)
    assert not read_all(memfd, lent, never)
    assert lent.packets == [b"ab", b"cd"]
    assert os.read(memfd, 100) == b"ef"


def test_what_was_written_late_is_waited_for(pipe: tuple[int, FileIO]) -> None:
    """A packet goes when no more comes for now; then the next byte is waited for."""
    reader, writer = pipe

    def write_late() -> None:
        if not writer.closed:
            writer.write(b"late")
            writer.close()

    writer.write(b"early")
    lent = Lent(100)
    # Before the first read, before the one that finds nothing, and before the second
    # buffer's first.
    assert read_all(reader, lent, at_call(3, write_late))
    assert lent.packets == [b"early", b"late"]


def test_all_cannot_be_read_of_what_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_message(*_: object) -> int:
        raise OSError(errno.ENOMSG, "No message of desired type")

    monkeypatch.setattr(os, "readv", no_message)
    with pytest.raises(OSError, match="no more data, but no end of it") as caught:
        read_all(0, Lent(1), never)
    assert caught.value.errno == errno.ENOMSG


def test_a_check_ends_the_reading_of_all(memfd: int) -> None:
    fill(memfd, b"abcdef")
    lent = Lent(2)
    with pytest.raises(EnoughError):
        read_all(memfd, lent, at_call(2, enough))
    assert lent.packets == [b"ab"]
