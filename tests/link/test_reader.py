"""Reading much at once, from true sockets, and from any stream."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Generator

import attrs
import pytest
import trio
from trio.testing import memory_stream_pair

from trio_vfio._link._reader import (
    LINGER,
    SocketReader,
    StreamReader,
    reader,
)

KIB = 1 << 10

# Seconds that nothing takes.
LONG = 100.0


@attrs.define(eq=False)
class Pair:
    """A connection that a reader reads."""

    ours: socket.socket
    theirs: socket.socket
    stream: trio.SocketStream

    @property
    def reader(self) -> SocketReader:
        made = reader(self.stream)
        assert isinstance(made, SocketReader)
        return made


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Generator[Pair]:
    if request.param == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    ours.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    with theirs, stream.socket:
        yield Pair(ours, theirs, stream)


def buffers(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def options(stream: trio.SocketStream) -> tuple[bool, int, bytes]:
    sock = stream.socket
    return (
        os.get_blocking(sock.fileno()),
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT),
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16),
    )


AS_TRIO_HAS_IT = (False, 1, bytes(16))


async def test_payload_and_next_header_come_with_one_call(pair: Pair) -> None:
    source = pair.reader
    pair.theirs.sendall(b"p" * 1000 + b"h" * 288 + b"more")
    await source.wait()
    payload, header = buffers(1000, 288)
    with source.blocking():
        assert source.fill([payload, header]) == 1288
        assert bytes(payload) == b"p" * 1000
        assert bytes(header) == b"h" * 288
        assert source.fill(buffers(4)) == 4


async def test_what_has_to_be_done_before_it_waits(pair: Pair) -> None:
    """As late as that: who is woken by it may be who sends."""
    source = pair.reader
    with source.blocking():
        assert source.fill(buffers(3), before=lambda: pair.theirs.sendall(b"abc")) == 3


async def test_it_waits_for_all_of_the_payload(pair: Pair) -> None:
    """Though it comes in pieces, the thread wakes once: SO_RCVLOWAT."""
    source = pair.reader
    pieces = [os.urandom(3000) for _ in range(100)]

    def send() -> None:
        for piece in pieces:
            pair.theirs.sendall(piece)

    payload, header = buffers(300_000, 288)
    with source.blocking():
        thread = threading.Thread(target=send)
        thread.start()
        got = calls = 0
        # Where a piece takes 10 ms, on a machine that does something else, it is more.
        while got < len(payload):
            got += source.fill([payload[got:], header]) or 0
            calls += 1
        thread.join(LONG)
    assert payload == b"".join(pieces)
    assert calls < len(pieces)


async def test_the_rest_is_not_waited_for_long(pair: Pair) -> None:
    source = pair.reader
    pair.theirs.sendall(b"abc")
    payload, header = buffers(1000, 288)
    with source.blocking():
        began = time.monotonic()
        assert source.fill([payload, header]) == 3
        assert source.fill([payload[3:], header]) is None
        assert time.monotonic() - began >= 1.5 * LINGER
    assert bytes(payload[:3]) == b"abc"


async def test_trio_has_its_socket_back(pair: Pair) -> None:
    """However the block was left."""
    source = pair.reader
    assert options(pair.stream) == AS_TRIO_HAS_IT
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyError), source.blocking():
        source.fill(buffers(1000))
        blocking, least, timeout = options(pair.stream)
        assert (blocking, least) == (True, 1000)
        assert any(timeout)
        raise KeyError
    assert options(pair.stream) == AS_TRIO_HAS_IT
    assert len(os.listdir("/proc/self/fd")) == descriptors
    # And it may be read in either way afterwards.
    pair.theirs.sendall(b"ab")
    assert await pair.stream.receive_some(1) == b"a"
    await source.wait()
    with source.blocking():
        assert source.fill(buffers(1)) == 1


async def test_a_task_wakes_for_a_single_byte_afterwards(pair: Pair) -> None:
    source = pair.reader
    with source.blocking():
        assert source.fill(buffers(100_000)) is None
    pair.theirs.sendall(b"a")
    with trio.fail_after(LONG):
        await source.wait()


async def test_an_end(pair: Pair) -> None:
    source = pair.reader
    pair.theirs.sendall(b"abc")
    pair.theirs.shutdown(socket.SHUT_WR)
    await source.wait()
    with source.blocking():
        assert source.fill(buffers(10, 288)) == 3
        assert source.fill(buffers(7, 288)) == 0
    with trio.fail_after(LONG):
        await source.wait()


async def test_a_connection_that_breaks(pair: Pair) -> None:
    if pair.ours.family == socket.AF_UNIX:
        # With what was not read by the other side.
        pair.ours.send(b"unread")
    else:
        linger = b"\1\0\0\0\0\0\0\0"
        pair.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    pair.theirs.close()
    source = pair.reader
    await source.wait()
    with source.blocking():
        with pytest.raises(trio.BrokenResourceError, match="Connection reset by peer"):
            source.fill(buffers(10))
    assert options(pair.stream) == AS_TRIO_HAS_IT


async def test_a_connection_that_was_closed_on_this_side(pair: Pair) -> None:
    source = pair.reader
    await pair.stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await source.wait()
    with pytest.raises(trio.ClosedResourceError):
        with source.blocking():
            pass


async def test_a_connection_that_is_closed_while_it_is_read(pair: Pair) -> None:
    """Whoever gets its number next is not read."""
    source = pair.reader
    with source.blocking():
        number = pair.stream.socket.fileno()
        await pair.stream.aclose()
        here, there = os.pipe()
        try:
            os.write(there, b"of somebody else")
            assert number in (here, there), "else this shows nothing"
            with pytest.raises(trio.ClosedResourceError):
                source.fill(buffers(10))
            assert os.read(here, 100) == b"of somebody else"
        finally:
            os.close(here)
            os.close(there)


async def test_any_other_stream_fills_the_first_buffer_with_room() -> None:
    here, there = memory_stream_pair()
    source = reader(there)
    assert isinstance(source, StreamReader)
    await here.send_all(b"abcdef")
    payload, header = buffers(4, 10)
    assert await source.fill([memoryview(bytearray()), payload, header]) == 4
    assert bytes(payload) == b"abcd"
    assert await source.fill([payload, header]) == 2
    assert bytes(payload) == b"efcd"
    assert bytes(header) == bytes(10)
    await here.aclose()
    assert await source.fill([payload]) == 0
    await there.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await source.fill([payload])
