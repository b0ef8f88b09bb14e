"""Collaboration: TLS connections that are cut, in virtual time.

Anybody on the way can cut a connection, and nobody but the peer can send the close
alert that ends one. OpenSSL ignores that difference if a context says so, as each does
in Python before 3.11.4. These contexts say so on every Python.
"""

from __future__ import annotations

import logging
import ssl

import attrs
import pytest
import trio
import trustme
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from trio_vfio import (
    BeforeSwitchover,
    DeviceState,
    MigrationFailed,
    NullSource,
    open_incoming,
    open_outgoing,
)
from trio_vfio._link._tls import NoTlsError, Secure, secure, shake_hands
from trio_vfio.testing import (
    ScriptedDestination,
    ScriptedSource,
    SimulatedSink,
    SimulatedSource,
    link,
    state_packets,
)

A = "0000:00:04.0/vfio"

IGNORES_CUTS = "takes a connection that was cut for one that ended"


@attrs.frozen
class Contexts:
    """Contexts of two sides that trust each other."""

    server: ssl.SSLContext
    client: ssl.SSLContext

    def ready_made(self, *, https_compatible: bool = False) -> Secure:
        """Make a TLS stream as a caller would."""
        return trio.SSLStream(
            memory_stream_pair()[0],
            self.client,
            server_hostname="there",
            https_compatible=https_compatible,
        )


@pytest.fixture(name="contexts")
def make_contexts() -> Contexts:
    """Make contexts that tell OpenSSL to ignore cuts."""
    ca = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("there").configure_cert(server)
    client = ssl.create_default_context()
    ca.configure_trust(client)
    for context in (server, client):
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    return Contexts(server, client)


async def cut(stream: trio.abc.Stream) -> None:
    """Cut the connection beneath the TLS of *stream*."""
    assert isinstance(stream, trio.SSLStream)
    await stream.transport_stream.aclose()


def test_secure_clears_one_option_of_the_context(contexts: Contexts) -> None:
    before = contexts.client.options
    stream = secure(memory_stream_pair()[0], contexts.client, server_hostname="there")
    assert stream.context is contexts.client
    assert contexts.client.options == before ^ ssl.OP_IGNORE_UNEXPECTED_EOF


async def test_handshake_that_is_cut(contexts: Contexts) -> None:
    one, other = memory_stream_pair()
    await one.send_all(b"\x16\x03")
    await one.aclose()
    stream = secure(other, contexts.server, server_side=True)
    with pytest.raises(NoTlsError, match="^here has closed the connection$"):
        await shake_hands(stream, "here")
    await trio.aclose_forcefully(stream)


async def cut_the_source(contexts: Contexts, which: int, *, inside: bytes = b"") -> str:
    """Cut a connection of a source after all state was loaded; return the only fault.

    All packets have come on channel 1, none on channel 0.

    Args:
      which: 0 for main, then the channels.
      inside: bytes that are sent before the cut.
    """
    connect, there = link()
    opened: list[Secure] = []

    async def connect_securely() -> trio.abc.Stream:
        stream = secure(await connect(), contexts.client, server_hostname="there")
        opened.append(stream)
        return stream

    device = SimulatedSink()
    cut_at = -1.0
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed) as failed:
            async with open_incoming(
                there, {A: device}, ssl_context=contexts.server
            ) as incoming:
                source = await ScriptedSource.connect(connect_securely)
                await source.begin(A)
                await source.switch_over()
                await source.packets(1, *state_packets(A, [b"x"]))
                await incoming.devices[A].state.wait_value(DeviceState.COMPLETED)
                if inside:
                    await opened[which].send_all(inside)
                await wait_all_tasks_blocked()
                cut_at = trio.current_time()
                nursery.start_soon(source.hang_up)
                await cut(opened[which])
                await incoming.wait_complete()
        assert trio.current_time() - cut_at < 1
    assert device.calls[-1].name == "abort"
    (fault,) = failed.value.exceptions
    return str(fault)


@pytest.mark.parametrize("channel", [0, 1])
async def test_destination_fails_at_once_when_channel_is_cut_between_packets(
    channel: int, contexts: Contexts, autojump_clock: MockClock
) -> None:
    fault = await cut_the_source(contexts, 1 + channel)
    assert fault == f"channel {channel}: TLS ended without a close alert"


async def test_destination_fails_at_once_when_channel_is_cut_inside_packet(
    contexts: Contexts, autojump_clock: MockClock
) -> None:
    header = state_packets(A, [b"x"])[0][:100]
    fault = await cut_the_source(contexts, 1, inside=header)
    why = "broke inside a packet: TLS ended without a close alert"
    assert fault == f"channel 0: {why}"


async def test_destination_fails_at_once_when_main_is_cut(
    contexts: Contexts, autojump_clock: MockClock
) -> None:
    fault = await cut_the_source(contexts, 0)
    assert fault.startswith("main: broke behind byte ")
    assert fault.endswith(": TLS ended without a close alert")


@attrs.frozen
class SecureListener(trio.abc.Listener[trio.abc.Stream]):
    """Does each handshake before it takes another connection, as QEMU."""

    plain: trio.abc.Listener[trio.abc.Stream]
    context: ssl.SSLContext

    async def accept(self) -> trio.abc.Stream:
        stream = secure(await self.plain.accept(), self.context, server_side=True)
        await stream.do_handshake()
        return stream

    async def aclose(self) -> None:
        await self.plain.aclose()


async def cut_the_destination(
    contexts: Contexts,
    which: int | str,
    at: str,
    *,
    before_switchover: BeforeSwitchover | None = None,
) -> str:
    """Cut a connection when the destination sees *at*; return the source's fault."""
    connect, there = link()
    cut_at = -1.0

    async def on(name: str) -> None:
        nonlocal cut_at
        if name == at:
            cut_at = trio.current_time()
            await cut(destination.streams[which])

    listener = SecureListener(there[0], contexts.server)
    destination = ScriptedDestination([listener], on=on, last_word=None)
    source = SimulatedSource(size=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as failed:
            async with open_outgoing(
                connect,
                {A: source},
                return_path=False,
                ssl_context=contexts.client,
                server_hostname="there",
            ) as outgoing:
                await outgoing.migrate(before_switchover=before_switchover)
        assert 0 <= trio.current_time() - cut_at < 1
        nursery.cancel_scope.cancel()
    assert outgoing.result().status == "failed"
    assert source.running
    (fault,) = failed.value.exceptions
    return str(fault)


async def test_source_does_not_take_cut_main_for_success(
    contexts: Contexts, autojump_clock: MockClock
) -> None:
    """Without a return path, the end of main is all that success looks like."""
    fault = await cut_the_destination(contexts, "main", "complete")
    why = "broke before the destination's last word: TLS ended without a close alert"
    assert fault == f"main: {why}"


@pytest.mark.parametrize("channel", [0, 1])
async def test_source_fails_at_once_when_channel_is_cut_between_packets(
    channel: int, contexts: Contexts, autojump_clock: MockClock
) -> None:
    fault = await cut_the_destination(
        contexts, channel, f"START {A}", before_switchover=trio.sleep_forever
    )
    assert fault == f"channel {channel}: broke: TLS ended without a close alert"


REFUSED = [
    pytest.param(
        False,
        f"{IGNORES_CUTS}; before it is made:"
        " context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF",
        id="option",
    ),
    pytest.param(
        True, f"{IGNORES_CUTS}; make it without https_compatible", id="https_compatible"
    ),
]


@pytest.fixture(name="https_compatible")
def forget_the_option(contexts: Contexts, request: pytest.FixtureRequest) -> bool:
    """Leave but one of two reasons to refuse a ready-made stream."""
    if request.param:
        contexts.client.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        contexts.server.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return bool(request.param)


@pytest.mark.parametrize(
    ("https_compatible", "text"), REFUSED, indirect=["https_compatible"]
)
async def test_destination_refuses_ready_made_stream_that_ignores_cuts(
    contexts: Contexts, https_compatible: bool, text: str
) -> None:
    device = SimulatedSink()
    stream = contexts.ready_made(https_compatible=https_compatible)
    with pytest.raises(ValueError, match=text):
        async with open_incoming([stream], {A: device}):
            pytest.fail("not reached")
    assert device.calls == []
    # It stays the caller's.
    await stream.transport_stream.send_all(b"still open")


@pytest.mark.parametrize(
    ("https_compatible", "text"), REFUSED, indirect=["https_compatible"]
)
async def test_source_refuses_ready_made_stream_that_ignores_cuts(
    contexts: Contexts, https_compatible: bool, text: str, autojump_clock: MockClock
) -> None:
    """The stream is closed, as all that the function opens."""
    stream = contexts.ready_made(https_compatible=https_compatible)

    async def connect() -> trio.abc.Stream:
        return stream

    with trio.fail_after(1), pytest.raises(ValueError, match=text):
        async with open_outgoing(connect, {A: NullSource()}):
            pytest.fail("not reached")
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")


@pytest.mark.parametrize(
    ("https_compatible", "text"), REFUSED, indirect=["https_compatible"]
)
async def test_accepted_stream_that_ignores_cuts_is_dropped(
    contexts: Contexts,
    https_compatible: bool,
    text: str,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    """Nothing that it sends is read, and other connections are not affected."""
    connect, there = link()
    connect_well, well = link()
    listener = trio.SSLListener(
        there[0], contexts.server, https_compatible=https_compatible
    )
    device = SimulatedSink()
    with caplog.at_level(logging.WARNING, "trio_vfio"):
        async with open_incoming([listener, *well], {A: device}) as incoming:
            refused = await connect()
            stream = secure(refused, contexts.client, server_hostname="there")
            with pytest.raises(trio.BrokenResourceError):
                await stream.do_handshake()
            await trio.aclose_forcefully(stream)
            source = await ScriptedSource.connect(connect_well)
            await source.begin(A)
            await source.switch_over()
            first, second = state_packets(A, [b"x"])
            await source.packets(0, first)
            await source.packets(1, second)
            await source.end()
            await source.close()
            await incoming.wait_complete()
    assert device.loaded == b"x"
    (line,) = caplog.messages
    assert line.startswith("dropped a connection: this SSLStream ")
    assert text in line


async def test_ready_made_stream_that_notices_cuts_is_taken(
    contexts: Contexts, autojump_clock: MockClock
) -> None:
    """The same context goes, once the option is cleared."""
    contexts.server.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    connect, there = link()
    device = SimulatedSink()
    async with open_incoming(
        [trio.SSLListener(there[0], contexts.server)], {A: device}
    ) as incoming:
        async with open_outgoing(
            connect,
            {A: SimulatedSource(size=10)},
            ssl_context=contexts.client,
            server_hostname="there",
        ) as outgoing:
            await outgoing.migrate()
        await incoming.wait_complete()
    assert len(device.loaded) == 10
