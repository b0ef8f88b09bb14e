"""Collaboration: who connects, in what order, and who is turned away."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vfio import Deadlines, DeviceState, MigrationFailed, open_incoming
from trio_vfio._link._address import connect as connect_to, parse_address
from trio_vfio._wire._multifd import InitialPacket
from trio_vfio.testing import ScriptedSource, SimulatedSink, link, state_packets

A = "0000:00:04.0/vfio"


async def finish(source: ScriptedSource) -> None:
    """Send a whole migration of one device on two channels, and close."""
    await source.begin(A)
    await source.switch_over()
    first, second = state_packets(A, [b"x"])
    await source.packets(0, second)
    await source.packets(1, first)
    await source.end()
    await source.close()


async def test_main_may_come_last(autojump_clock: MockClock) -> None:
    device = SimulatedSink()
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        channels = [await connect() for _ in range(2)]
        for channel_id, stream in enumerate(channels):
            await stream.send_all(InitialPacket(channel_id=channel_id).encode())
        await trio.sleep(10)
        await finish(ScriptedSource(await connect(), channels))
        await incoming.wait_complete()
    assert device.loaded == b"x"


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "begins with b'GET ', so it is no migration"),
        (b"QEV", "ended after 3 bytes"),
        (b"", "ended after 0 bytes"),
        (b"QEVM\0", "ended after 5 bytes"),
        (InitialPacket().encode()[:40], "ended after 40 bytes"),
        (b"QEVM\0\0\0\3", "a second main channel"),
    ],
)
async def test_who_is_no_peer_is_dropped_and_only_that(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    first: bytes,
    why: str,
) -> None:
    device = SimulatedSink()
    connect, there = link()
    with caplog.at_level(logging.WARNING, "trio_vfio"):
        async with open_incoming(there, {A: device}) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin()
            await wait_all_tasks_blocked()
            stranger = await connect()
            await stranger.send_all(first)
            assert isinstance(stranger, trio.abc.HalfCloseableStream)
            await stranger.send_eof()
            assert await stranger.receive_some() == b"", "it is closed"
            source = ScriptedSource(source.main, source.channels)
            await source.announce(A)
            await source.switch_over()
            await source.packets(0, *state_packets(A, [b"x"]))
            await source.end()
            await source.close()
            await incoming.wait_complete()
    assert device.loaded == b"x"
    (message,) = caplog.messages
    assert message.startswith("dropped a connection: ")
    assert why in message
    assert incoming.result().dropped == (message,)


BAD_VERSION = InitialPacket(channel_id=7).encode()[:7] + b"\2" + bytes(56)


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (InitialPacket(channel_id=255).encode(), "channel id 255 of at most 255"),
        (InitialPacket(channel_id=1).encode(), "channel 1 came twice"),
        (BAD_VERSION, "initial packet of unknown version 2"),
    ],
    ids=["id", "twice", "version"],
)
async def test_a_channel_of_this_source_that_cannot_be(
    autojump_clock: MockClock, first: bytes, why: str
) -> None:
    """The migration fails at once, for it lacks a channel."""
    device = SimulatedSink()
    connect, there = link()
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed) as failed:
            async with open_incoming(there, {A: device}) as incoming:
                source = await ScriptedSource.connect(connect)
                await source.begin(A)
                await trio.sleep(10)
                bad = await connect()

                async def go_on() -> None:
                    await source.heard()
                    for _ in range(4):
                        await bad.send_all(bytes(1 << 20))
                        await trio.sleep(0.5)
                    await bad.aclose()
                    await source.close()

                nursery.start_soon(go_on)
                await bad.send_all(first)
                await incoming.wait_complete()
        # It is this source's, so it is read until that closes it.
        assert trio.current_time() == 12
    (fault,) = map(str, failed.value.exceptions)
    assert why in fault


REFUSED = [
    pytest.param(
        InitialPacket(b"another machine!", 7).encode(),
        "a channel of another machine, 616e6f74-6865-7220-6d61-6368696e6521",
        id="another machine",
    ),
]


@pytest.mark.parametrize(("first", "why"), REFUSED)
async def test_a_channel_of_another_source_is_read_and_does_no_harm(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    first: bytes,
    why: str,
) -> None:
    """It is not closed while the session lasts: a QEMU may be sending over it."""
    device = SimulatedSink()
    connect, there = link()
    with caplog.at_level(logging.WARNING, "trio_vfio"):
        async with open_incoming(there, {A: device}) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(A)
            await wait_all_tasks_blocked()
            stranger = await connect()
            await stranger.send_all(first)
            for _ in range(100):
                await stranger.send_all(bytes(1 << 20))
                await trio.sleep(1)
            await source.switch_over()
            await source.packets(0, *state_packets(A, [b"x"]))
            await source.end()
            await source.close()
            before = trio.current_time()
            await incoming.wait_complete()
    assert trio.current_time() == before
    assert device.loaded == b"x"
    assert caplog.messages == [f"dropped a connection: {why}"]
    assert incoming.result().dropped == tuple(caplog.messages)
    with pytest.raises(trio.BrokenResourceError):
        await stranger.send_all(b"more")


async def test_missing_channel_was_refused(autojump_clock: MockClock) -> None:
    """Not 30 s later, while the guest stands still, and with the reason."""
    connect, there = link()
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed) as failed:
            async with open_incoming(there, {A: SimulatedSink()}) as incoming:
                source = await ScriptedSource.connect(connect, channels=1)
                nursery.start_soon(source.hang_up)
                await source.begin(A)
                await wait_all_tasks_blocked()
                other = await connect()
                await other.send_all(InitialPacket(b"another machine!", 1).encode())
                # Before the switchover a source may be silent.
                await trio.sleep(100)
                data, config = state_packets(A, [b"x"])
                await other.send_all(config)
                await source.switch_over()
                await source.packets(0, data)
                await source.end()
                await incoming.wait_complete()
        assert trio.current_time() == 101
    (fault,) = map(str, failed.value.exceptions)
    assert fault == (
        f"waiting for {A}: packet 1; a channel was refused: a channel of another"
        " machine, 616e6f74-6865-7220-6d61-6368696e6521"
    )


async def test_a_first_channel_of_unknown_version(autojump_clock: MockClock) -> None:
    """It may be anybody's; if it was this source's, that is known a second later."""
    connect, there = link()
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed) as failed:
            async with open_incoming(there, {A: SimulatedSink()}) as incoming:
                main = await connect()
                bad = await connect()
                await bad.send_all(BAD_VERSION)
                source = ScriptedSource(main, [bad])
                nursery.start_soon(source.hang_up)
                await source.begin(A)
                await source.switch_over()
                await incoming.wait_complete()
        assert trio.current_time() == 1
    (fault,) = map(str, failed.value.exceptions)
    assert "a channel was refused: initial packet of unknown version 2" in fault


async def test_refused_channels_that_are_too_many_are_closed(
    autojump_clock: MockClock,
) -> None:
    connect, there = link()
    async with open_incoming(there, {A: SimulatedSink()}) as incoming:
        source = await ScriptedSource.connect(connect)
        await source.begin(A)
        await wait_all_tasks_blocked()
        strangers = [await connect() for _ in range(66)]
        for number, stranger in enumerate(strangers):
            packet = InitialPacket(number.to_bytes(16), 0).encode()
            await stranger.send_all(
                packet if number else InitialPacket(b"x" * 16).encode()
            )
        assert await strangers[64].receive_some() == b""
        assert await strangers[65].receive_some() == b""
        await strangers[63].send_all(bytes(1 << 20))
        assert len(incoming.result().dropped) == 64


async def test_who_says_nothing_is_dropped_in_time(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The handshake deadline costs that connection only."""
    connect, there = link()
    deadlines = Deadlines(handshake=5)
    device = SimulatedSink()
    async with open_incoming(there, {A: device}, deadlines=deadlines) as incoming:
        stranger = await connect()
        await trio.sleep(1)
        source = await ScriptedSource.connect(connect)
        assert await stranger.receive_some() == b""
        assert trio.current_time() == 5
        await finish(source)
        await incoming.wait_complete()
    assert caplog.messages == ["dropped a connection: TooSlowError"]


async def test_too_many_that_say_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_vfio._receive._connections.MAX_HANDSHAKES", 3)
    connect, there = link()
    async with open_incoming(there, {A: SimulatedSink()}):
        silent = [await connect() for _ in range(3)]
        one_more = await connect()
        assert await one_more.receive_some() == b""
        assert trio.current_time() == 0
        await silent[0].aclose()


async def test_channels_without_a_main_channel(autojump_clock: MockClock) -> None:
    """A source that is there must not keep us waiting for its main channel."""
    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, {A: SimulatedSink()}) as incoming:
            await ScriptedSource.connect(connect)
            main = await connect()
            await trio.sleep(5)
            await main.aclose()
            await incoming.wait_complete()
    assert [str(each) for each in failed.value.exceptions] == [
        "silence deadline of 30 s passed: no main channel has come"
    ]


async def test_all_connections_gone_without_a_main_channel(
    autojump_clock: MockClock,
) -> None:
    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, {A: SimulatedSink()}) as incoming:
            for channel_id in 0, 1:
                stream = await connect()
                await stream.send_all(InitialPacket(channel_id=channel_id).encode())
                await stream.aclose()
            await incoming.wait_complete()
    assert [str(each) for each in failed.value.exceptions] == [
        "main: never came, and all other connections are gone"
    ]
    assert trio.current_time() == 0


async def test_first_connection_deadline(autojump_clock: MockClock) -> None:
    connect, there = link()
    deadlines = Deadlines(first_connection=7)
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, {}, deadlines=deadlines) as incoming:
            await connect()
            await incoming.wait_complete()
    assert trio.current_time() == 7
    assert [str(each) for each in failed.value.exceptions] == [
        "first-connection deadline of 7 s passed: no source has connected"
    ]


async def test_switchover_deadline(autojump_clock: MockClock) -> None:
    """The guest stands still meanwhile, so failing is better than waiting."""
    connect, there = link()
    device = SimulatedSink(seconds_per_call=4)
    deadlines = Deadlines(switchover=6, silence=None)
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, {A: device}, deadlines=deadlines) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(A)
            await trio.sleep(100)
            await source.switch_over()
            await source.packets(0, *state_packets(A, [b"x"]))
            await incoming.wait_complete()
    assert device.aborted_at == 108
    assert [str(each) for each in failed.value.exceptions] == [
        "switchover deadline of 6 s passed: waiting for the end of main,"
        f" {A}: load_config to end"
    ]


async def test_silence_counts_from_the_last_byte_or_device_call(
    autojump_clock: MockClock,
) -> None:
    connect, there = link()
    device = SimulatedSink(seconds_per_call=50)
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed):
            async with open_incoming(there, {A: device}) as incoming:
                source = await ScriptedSource.connect(connect)
                nursery.start_soon(source.hang_up)
                await source.begin(A)
                await trio.sleep(1000)
                await source.switch_over()
                await trio.sleep(20)
                await source.packets(0, state_packets(A, [b"x"])[0])
                await incoming.wait_complete()
    assert trio.current_time() == 1000 + 20 + 50 + 30


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_deadlines_are_positive(value: float) -> None:
    with pytest.raises(ValueError, match="silence must be positive"):
        Deadlines(silence=value)


async def test_tcp_ipv4_and_ipv6_on_one_port() -> None:
    device = SimulatedSink()
    async with open_incoming("tcp:[::]:0", {A: device}) as incoming:
        (address,) = incoming.addresses
        port = int(address.rpartition(":")[2])
        streams = [
            await trio.open_tcp_stream("127.0.0.1", port),
            await trio.open_tcp_stream("::1", port),
            await trio.open_tcp_stream("127.0.0.1", port),
        ]

        async def connect() -> trio.abc.Stream:
            return streams.pop(0)

        await finish(await ScriptedSource.connect(connect))
        await incoming.wait_complete()
    assert device.loaded == b"x"


async def test_a_unix_socket_is_private_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    device = SimulatedSink()
    old = os.umask(0)
    try:
        async with open_incoming(f"unix:{path}", {A: device}) as incoming:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert incoming.addresses == (f"unix:{path}",)

            async def connect() -> trio.abc.Stream:
                return await connect_to(parse_address(f"unix:{path}"))

            await finish(await ScriptedSource.connect(connect))
            await incoming.wait_complete()
    finally:
        os.umask(old)
    assert device.loaded == b"x"
    assert not path.exists()


async def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=address):
            async with open_incoming(address, {}):
                pass


async def test_listeners_that_the_caller_opened_stay_open() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    device = SimulatedSink()
    async with open_incoming([listener], {A: device}) as incoming:

        async def connect() -> trio.abc.Stream:
            return await connect_to(parse_address(incoming.addresses[0]))

        await finish(await ScriptedSource.connect(connect))
        await incoming.wait_complete()
    assert listener.socket.fileno() >= 0
    await listener.aclose()


async def test_a_listener_that_closes_ends_only_the_listening(
    autojump_clock: MockClock,
) -> None:
    device = SimulatedSink()
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(connect)
        await wait_all_tasks_blocked()
        await there[0].aclose()
        await finish(source)
        await incoming.wait_complete()
    assert device.loaded == b"x"


@pytest.fixture(name="contexts")
def make_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make TLS contexts for a server and a client that prove themselves."""
    ca = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(server)
    ca.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context()
    ca.configure_trust(client)
    ca.issue_cert("source@example.org").configure_cert(client)
    return server, client


async def test_tls_on_all_channels(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    """Both sides prove themselves; who cannot is dropped."""
    server, client = contexts
    device = SimulatedSink()
    async with open_incoming(
        "tcp:127.0.0.1:0", {A: device}, ssl_context=server
    ) as incoming:
        address = parse_address(incoming.addresses[0])

        async def connect() -> trio.abc.Stream:
            plain = await connect_to(address)
            stream = trio.SSLStream(plain, client, server_hostname="localhost")
            await stream.do_handshake()
            return stream

        plain = await connect_to(address)
        await plain.send_all(b"QEVM\0\0\0\3")
        with suppress(trio.BrokenResourceError):
            while await plain.receive_some():
                pass
        await plain.aclose()
        await finish(await ScriptedSource.connect(connect))
        await incoming.wait_complete()
    assert device.loaded == b"x"
    assert [each for each in caplog.messages if "dropped a connection" in each]


async def test_tls_that_ends_without_a_close_alert_was_cut(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """Between packets too: anybody on the way can do that."""
    server, client = contexts
    opened: list[trio.SSLStream[trio.SocketStream]] = []
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed) as failed:
            async with open_incoming(
                "tcp:127.0.0.1:0", {A: SimulatedSink()}, ssl_context=server
            ) as incoming:
                address = parse_address(incoming.addresses[0])

                async def connect() -> trio.abc.Stream:
                    plain = await connect_to(address)
                    stream = trio.SSLStream(plain, client, server_hostname="localhost")
                    opened.append(stream)
                    return stream

                source = await ScriptedSource.connect(connect)
                await source.begin(A)
                await source.switch_over()
                await source.packets(1, *state_packets(A, [b"x"]))
                await incoming.devices[A].state.wait_value(DeviceState.COMPLETED)
                nursery.start_soon(source.hang_up)
                await opened[2].transport_stream.aclose()
                await incoming.wait_complete()
    assert [str(each) for each in failed.value.exceptions] == [
        "channel 1: TLS ended without a close alert"
    ]
