"""Collaboration: real connections, plain and with TLS."""

from __future__ import annotations

import errno
import socket
import ssl
import uuid as uuids
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import MockClock, memory_stream_pair

from trio_vfio import (
    ConnectionLost,
    FdSink,
    MigrationFailed,
    MigrationResult,
    NullSink,
    NullSource,
    open_incoming,
    open_outgoing,
)
from trio_vfio._link._stream import keep_alive, receive_exactly, send_some
from trio_vfio._send._buffers import BufferPool, Share
from trio_vfio._wire._multifd import INITIAL_SIZE, InitialPacket
from trio_vfio.testing import link

A = "0000:00:04.0/vfio"
UUID = uuids.UUID("00112233-4455-6677-8899-aabbccddeeff")
MIB = 1 << 20


def contexts(*more: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make contexts of a server and a client that trust each other alone."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    client = ssl.create_default_context()
    for context in (server, client):
        authority.issue_cert("127.0.0.1", "there", *more).configure_cert(context)
        authority.configure_trust(context)
    server.verify_mode = ssl.CERT_REQUIRED
    return server, client


async def journey(
    where: str,
    *,
    server: ssl.SSLContext | None = None,
    client: ssl.SSLContext | None = None,
    return_path: bool = True,
    server_hostname: str | None = None,
) -> tuple[MigrationResult, MigrationResult]:
    """Migrate 3 MiB and a byte to *where*."""
    with trio.fail_after(100):
        async with open_incoming(
            where, {A: NullSink()}, ssl_context=server, digests=True
        ) as incoming:
            async with open_outgoing(
                incoming.addresses[0],
                {A: NullSource(3 * MIB + 1)},
                channels=3,
                return_path=return_path,
                ssl_context=client,
                server_hostname=server_hostname,
                digests=True,
            ) as outgoing:
                sent = await outgoing.migrate()
            return sent, await incoming.wait_complete()


@pytest.mark.parametrize("return_path", [True, False])
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
async def test_over_sockets(kind: str, return_path: bool, tmp_path: Path) -> None:
    where = f"unix:{tmp_path}/socket" if kind == "unix" else "tcp:127.0.0.1:0"
    server, client = contexts() if kind == "tls" else (None, None)
    sent, received = await journey(
        where, server=server, client=client, return_path=return_path
    )
    assert sent.status == received.status == "completed"
    assert sent.devices[0].sha256 == received.devices[0].sha256
    assert sent.devices[0].data_bytes == 3 * MIB + 1
    assert sent.channels == received.channels


async def test_each_channel_says_which_it_is_before_the_next_is_opened(
    autojump_clock: MockClock,
) -> None:
    """Over TLS a QEMU waits for that before it takes the next connection."""
    taken: list[trio.abc.Stream] = []

    async def connect() -> trio.abc.Stream:
        if len(taken) > 1:
            raw = await receive_exactly(taken[-1], INITIAL_SIZE)
            initial = InitialPacket.decode_untrusted(raw)
            assert (initial.uuid, initial.channel_id) == (UUID.bytes, len(taken) - 2)
        here, there = memory_stream_pair()
        taken.append(there)
        return here

    with trio.fail_after(1):
        async with open_outgoing(connect, {A: NullSource()}, channels=3, uuid=UUID):
            assert len(taken) == 4


async def test_a_channel_that_is_refused_at_once(autojump_clock: MockClock) -> None:
    """That is for the migration to find out, and to fail."""
    here, there = link()

    async def connect() -> trio.abc.Stream:
        stream = await here()
        accepted.append(await there[0].accept())
        if len(accepted) > 1:
            await trio.aclose_forcefully(accepted[-1])
        return stream

    accepted: list[trio.abc.Stream] = []
    with pytest.raises(MigrationFailed) as failed:
        async with open_outgoing(connect, {A: NullSource()}, channels=1) as outgoing:
            await outgoing.migrate()
    (error,) = failed.value.exceptions
    assert isinstance(error, ConnectionLost)
    assert error.channel == "channel 0"


async def test_a_destination_that_is_not_trusted() -> None:
    server, _ = contexts()
    _, stranger = contexts()
    with trio.move_on_after(30):
        async with open_incoming(
            "tcp:127.0.0.1:0", {A: NullSink()}, ssl_context=server
        ) as incoming:
            with pytest.raises(OSError, match="no TLS: .*self-signed") as caught:
                async with open_outgoing(
                    incoming.addresses[0], {A: NullSource()}, ssl_context=stranger
                ):
                    pytest.fail("not reached")
            assert caught.value.errno == errno.EPROTO


async def test_a_certificate_for_another_host() -> None:
    server, client = contexts()
    async with open_incoming(
        "tcp:127.0.0.1:0", {A: NullSink()}, ssl_context=server
    ) as incoming:
        with pytest.raises(OSError, match="no TLS: .*Hostname mismatch"):
            async with open_outgoing(
                incoming.addresses[0],
                {A: NullSource()},
                ssl_context=client,
                server_hostname="elsewhere",
            ):
                pytest.fail("not reached")
    sent, _ = await journey(
        "tcp:127.0.0.1:0", server=server, client=client, server_hostname="there"
    )
    assert sent.status == "completed"


async def test_the_name_of_this_machine() -> None:
    """An address without a host is this machine, by its name in a certificate, too."""
    server, client = contexts("localhost")
    async with open_incoming(
        "tcp:127.0.0.1:0", {A: NullSink()}, ssl_context=server
    ) as incoming:
        _, _, port = incoming.addresses[0].rpartition(":")
        async with open_outgoing(
            f"tcp::{port}", {A: NullSource()}, ssl_context=client
        ) as outgoing:
            result = await outgoing.migrate()
        await incoming.wait_complete()
    assert result.status == "completed"


async def test_nobody_listens(tmp_path: Path) -> None:
    # Bound, so that nobody else gets the port, but not listening.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        for where, number in [
            (f"tcp:127.0.0.1:{bound.getsockname()[1]}", errno.ECONNREFUSED),
            (f"unix:{tmp_path}/none", errno.ENOENT),
        ]:
            with pytest.raises(OSError, match=where) as caught:
                async with open_outgoing(where, {A: NullSource()}):
                    pytest.fail("not reached")
            assert (caught.value.errno, caught.value.filename) == (number, where)


@pytest.mark.parametrize("where", ["", "udp:1:2", "tcp:there", "tcp:::1"])
async def test_no_address(where: str) -> None:
    with pytest.raises(ValueError, match=r"tcp:HOST:PORT|IPv6"):
        async with open_outgoing(where, {A: NullSource()}):
            pytest.fail("not reached")


async def test_a_machine_that_is_gone_is_noticed() -> None:
    """TCP is told to ask; a unix socket needs no asking."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with await trio.open_tcp_stream(*server.getsockname()) as stream:
            keep_alive(stream, 30)
            options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
            asked = [stream.getsockopt(socket.IPPROTO_TCP, each) for each in options]
            assert asked == [15, 5, 3]
            assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    here, there = socket.socketpair()
    with there:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(here)) as stream:
            keep_alive(stream, 30)
            assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    keep_alive(trio.testing.memory_stream_pair()[0], 30)


async def test_a_socket_takes_part_of_several_buffers() -> None:
    """Whatever it takes, nothing is lost and nothing comes twice."""
    here, there = socket.socketpair()
    data = bytes(range(256)) * 4096
    got = bytearray()
    async with (
        trio.SocketStream(trio.socket.from_stdlib_socket(here)) as stream,
        trio.SocketStream(trio.socket.from_stdlib_socket(there)) as peer,
        trio.open_nursery() as nursery,
    ):

        async def receive() -> None:
            while len(got) < len(data):
                got.extend(await peer.receive_some(100_000))

        nursery.start_soon(receive)
        view = memoryview(data)
        left = [view[:7], view[7:7], view[7:300_000], view[300_000:]]
        calls = 0
        while left:
            left = await send_some(stream, left)
            calls += 1
        assert calls > 1
    assert got == data


async def test_what_is_loaded_is_what_was_sent() -> None:
    """Through pipes, which give and take as much as they like."""
    import os

    from trio_vfio import FdSource

    read_end, write_end = os.pipe()
    out_read, out_write = os.pipe()
    data = os.urandom(300_000)
    got = bytearray()

    def read_all() -> None:
        while len(got) < len(data):
            got.extend(os.read(out_read, 1 << 16))

    def write_all() -> None:
        with open(write_end, "wb") as file:
            file.write(data)

    with trio.fail_after(100):
        async with (
            open_incoming("tcp:127.0.0.1:0", {A: FdSink(out_write)}) as incoming,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(trio.to_thread.run_sync, read_all)
            nursery.start_soon(trio.to_thread.run_sync, write_all)
            source = FdSource(read_end, precopy_bytes=100_000)
            async with open_outgoing(
                incoming.addresses[0], {A: source}, buffer_size=4096
            ) as outgoing:
                result = await outgoing.migrate()
            await incoming.wait_complete()
    assert got == data
    assert result.devices[0].precopy_bytes == 100_000
    for fd in (read_end, out_read, out_write):
        os.close(fd)


async def test_buffers_go_round(autojump_clock: MockClock) -> None:
    """No more are made than may be, and a device has no more than its share."""
    pool = BufferPool(10, 3)
    one, other = Share(2), Share(2)
    first = await pool.take(one, 5)
    second = await pool.take(other, 5)
    assert (len(first), len(second)) == (2, 1)
    with trio.move_on_after(1):
        await pool.take(one, 1)
        pytest.fail("a share is a share")
    with trio.move_on_after(1):
        await pool.take(other, 1)
        pytest.fail("the pool is empty")
    assert (one.held, other.held) == (2, 1)

    async def give() -> None:
        await trio.sleep(5)
        pool.give_back(one, first.pop())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give)
        began = trio.current_time()
        second += await pool.take(other, 5)
        assert trio.current_time() == began + 5
    # The one that was given back, not a new one.
    assert {id(each) for each in second + first} == {
        id(each) for each in first + second
    }
    assert (one.held, other.held) == (1, 2)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_queued_bytes": 0},
        {"max_queued_bytes": 1},
        {"max_session_bytes": 0},
        {"max_session_bytes": 1, "max_queued_bytes": 1, "buffer_size": 7},
    ],
)
async def test_little_memory_is_enough(
    limits: dict[str, int], autojump_clock: MockClock
) -> None:
    from trio_vfio.testing import SimulatedSink, SimulatedSource, link

    sources = {f"{n}/vfio": SimulatedSource(size=100, initial_bytes=10) for n in "abc"}
    sinks = {name: SimulatedSink() for name in sources}
    here, there = link()
    async with open_incoming(there, sinks) as incoming:
        async with open_outgoing(here, sources, **limits) as outgoing:  # type: ignore[arg-type]
            await outgoing.migrate()
        await incoming.wait_complete()
    for name, source in sources.items():
        assert sinks[name].loaded == source.state
