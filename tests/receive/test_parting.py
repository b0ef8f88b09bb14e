"""Contract: how a destination that fails lets go of its source.

It says SHUT(1), closes main, and reads the channels until the source closes them. Until
then none of them is closed, and that waits for no device, nor does a device wait for it.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio
import trustme
from trio.testing import MockClock

from trio_vfio import (
    Deadlines,
    DeviceState,
    Incoming,
    MigrationFailed,
    NullSink,
    open_incoming,
)
from trio_vfio._receive._parting import PATIENCE
from trio_vfio._wire._return_path import ReturnPathType
from trio_vfio.testing import (
    MainStream,
    ScriptedSource,
    SimulatedSink,
    data_packet,
    initial_packet,
    link,
    state_packets,
)

A, B = "0000:00:04.0/vfio", "0000:00:05.0/vfio"
SHUT_1 = (ReturnPathType.SHUT, 1)
MIB = 1 << 20

End = Callable[[ScriptedSource], Awaitable[None]]


@attrs.define(eq=False)
class Busy:
    """A source that sends on its channels for some time after main has ended."""

    source: ScriptedSource
    seconds: float = 3.0
    heard: list[tuple[ReturnPathType, int | None]] = attrs.field(factory=list)
    main_ended_at: float | None = None
    sent: int = 0
    """Bytes after that."""
    broken: list[float] = attrs.field(factory=list)
    """When a channel broke, which is what must not be."""

    async def run(self) -> None:
        self.heard = await self.source.heard()
        self.main_ended_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for channel in self.source.channels:
                nursery.start_soon(self._send, channel)
        await self.source.close()

    async def _send(self, channel: trio.abc.Stream) -> None:
        end = trio.current_time() + self.seconds
        try:
            while trio.current_time() < end:
                await channel.send_all(bytes(MIB))
                self.sent += MIB
                await trio.sleep(0.5)
        except trio.BrokenResourceError:
            self.broken.append(trio.current_time())
        except trio.ClosedResourceError:
            return


@asynccontextmanager
async def failing(
    *,
    seconds: float = 3.0,
    channels: int = 2,
    sinks: dict[str, SimulatedSink] | None = None,
    return_path: bool = True,
    expected: type[BaseException] | None = MigrationFailed,
) -> AsyncGenerator[tuple[Incoming, Busy]]:
    """Receive from a busy source; the block says how it fails."""
    connect, there = link()
    sinks = {A: SimulatedSink()} if sinks is None else sinks
    async with trio.open_nursery() as nursery:
        raised: BaseException | None = None
        try:
            async with open_incoming(there, sinks) as incoming:
                source = await ScriptedSource.connect(connect, channels=channels)
                busy = Busy(source, seconds)
                nursery.start_soon(busy.run)
                await source.begin(*sinks, return_path=return_path)
                await incoming.devices[A].state.wait_value(DeviceState.SETUP)
                yield incoming, busy
        except (MigrationFailed, KeyError) as error:
            raised = error
        assert type(raised) is (expected or type(None))
        # Still as it was when the session ended.
        assert not busy.broken or seconds > PATIENCE


async def a_fault(source: ScriptedSource) -> None:
    await source.packets(0, data_packet(A, 5), data_packet(A, 5))
    await trio.sleep_forever()


async def an_exception(source: ScriptedSource) -> None:
    raise KeyError("of the caller's")


async def the_end_of_the_block(source: ScriptedSource) -> None:
    pass


@pytest.mark.parametrize("return_path", [True, False])
@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (a_fault, MigrationFailed),
        (an_exception, KeyError),
        (the_end_of_the_block, None),
    ],
    ids=["a fault", "an exception", "the end of the block"],
)
async def test_channels_are_read_until_the_source_closes_them(
    autojump_clock: MockClock,
    end: End,
    expected: type[BaseException] | None,
    return_path: bool,
) -> None:
    sink = SimulatedSink()
    async with failing(sinks={A: sink}, return_path=return_path, expected=expected) as (
        _,
        busy,
    ):
        await trio.sleep(10)
        await end(busy.source)
    assert busy.main_ended_at == sink.aborted_at == 10
    assert busy.heard[-1:] == ([SHUT_1] if return_path else [])
    assert busy.sent == 2 * 6 * MIB
    assert trio.current_time() == 10 + 3


async def test_channels_are_read_after_a_cancel_from_outside(
    autojump_clock: MockClock,
) -> None:
    """A second cancel changes nothing."""
    connect, there = link()
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as outer, trio.CancelScope() as scope:
            async with open_incoming(there, {A: SimulatedSink()}) as incoming:
                source = await ScriptedSource.connect(connect)
                busy = Busy(source)
                nursery.start_soon(busy.run)
                await source.begin(A, return_path=True)
                await trio.sleep(10)
                scope.cancel()
                outer.deadline = trio.current_time() + 1
                await trio.sleep_forever()
        assert (busy.main_ended_at, trio.current_time()) == (10, 13)
    assert not busy.broken
    assert incoming.state.value == "cancelled"
    assert incoming.result().errors == ()


async def test_channels_are_read_after_an_error_in_before_shut(
    autojump_clock: MockClock,
) -> None:
    async def refuse(_: object) -> None:
        raise KeyError("of the callback's")

    connect, there = link()
    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyError):
            async with open_incoming(
                there, {A: SimulatedSink()}, before_shut=refuse
            ) as incoming:
                source = await ScriptedSource.connect(connect)
                busy = Busy(source)
                nursery.start_soon(busy.run)
                await source.begin(A, return_path=True)
                await source.switch_over()
                await source.packets(1, *state_packets(A, [b"x"]))
                await source.end()
                await incoming.wait_complete()
        assert trio.current_time() == 3
    assert not busy.broken
    assert busy.heard[-1] == SHUT_1


async def test_no_source_is_waited_for_longer_than_5_s(
    autojump_clock: MockClock,
) -> None:
    async with failing(seconds=100) as (_, busy):
        await a_fault(busy.source)
    assert busy.main_ended_at == 0
    # It sends each half second.
    assert busy.broken == [5, 5]


async def test_parting_waits_for_no_device(autojump_clock: MockClock) -> None:
    """One that has to be aborted to end its call, and takes its time even then."""
    sink = SimulatedSink(hangs_in="write", seconds_after_abort=7)
    async with failing(sinks={A: sink}) as (_, busy):
        await busy.source.switch_over()
        await busy.source.packets(0, data_packet(A, 0, b"x"))
        await trio.sleep(1)
        await a_fault(busy.source)
    assert busy.main_ended_at == 1
    assert sink.aborted_at == 1 + 10
    assert trio.current_time() == 1 + 10 + 7


async def test_parting_waits_for_no_write_of_main_s_data(
    autojump_clock: MockClock,
) -> None:
    """Which main's own task has under way."""
    sink = SimulatedSink(hangs_in="write")
    async with failing(sinks={A: sink}) as (_, busy):
        await busy.source.precopy(A, b"x")
        await trio.sleep(1)
        await a_fault(busy.source)
    assert (busy.main_ended_at, sink.aborted_at) == (1, 11)


async def test_closed_before_a_device_has_ended(autojump_clock: MockClock) -> None:
    """What was not closed by the source is closed after 5 s, whatever devices do."""
    sink = SimulatedSink(hangs_in="write")
    async with failing(sinks={A: sink}, seconds=100) as (_, busy):
        await busy.source.switch_over()
        await busy.source.packets(1, data_packet(A, 0, b"x"))
        await trio.sleep(1)
        await a_fault(busy.source)
    assert busy.broken == [6, 6]
    assert trio.current_time() == sink.aborted_at == 11


async def test_a_source_that_takes_no_word(autojump_clock: MockClock) -> None:
    """It has half a second for that, while its channels are read already."""
    # Its answer to the PING fits, and nothing behind it.
    connect, there = link(window={"main": 8})
    read: list[float] = []
    broke: list[float] = []
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed):
            async with open_incoming(there, {A: SimulatedSink()}) as incoming:
                source = await ScriptedSource.connect(connect, channels=1)
                await source.begin(A, return_path=True)
                await incoming.devices[A].state.wait_value(DeviceState.SETUP)

                async def go_on() -> None:
                    packets = [data_packet(A, 5), data_packet(A, 5), bytes(100)]
                    await source.packets(0, *packets)
                    read.append(trio.current_time())
                    with pytest.raises(trio.BrokenResourceError):
                        while True:
                            await source.main.send_all(b"x")
                            await trio.sleep(0.1)
                    broke.append(trio.current_time())

                nursery.start_soon(go_on)
                await incoming.wait_complete()
        assert trio.current_time() == PATIENCE
        await source.close()
    assert read == [0]
    assert broke == [pytest.approx(0.5, abs=0.11)]


@pytest.mark.parametrize("ended", [False, True])
async def test_where_no_channel_is_open_nothing_is_waited_for(
    autojump_clock: MockClock, ended: bool
) -> None:
    async with failing(channels=1 if ended else 0, seconds=100) as (incoming, busy):
        for channel in busy.source.channels:
            await channel.aclose()
        await trio.sleep(1)
        await busy.source.main.send_all(b"\xff")
        await incoming.wait_complete()
    assert busy.main_ended_at == 1
    assert trio.current_time() == 1


async def test_given_streams_are_read_but_not_closed(
    autojump_clock: MockClock,
) -> None:
    connect, (there,) = link()
    streams = [await connect() for _ in range(2)]
    given = [await there.accept() for _ in range(2)]
    async with trio.open_nursery() as nursery:
        await streams[1].send_all(initial_packet(0))
        source = ScriptedSource(streams[0], streams[1:])
        with pytest.raises(MigrationFailed):
            async with open_incoming(given, {A: SimulatedSink()}) as incoming:
                await source.begin(A)
                await incoming.devices[A].state.wait_value(DeviceState.SETUP)

                async def go_on() -> None:
                    for stream in streams:
                        await stream.send_all(bytes(MIB))
                    await trio.sleep(2)
                    await source.close()

                await source.packets(0, data_packet(A, 5), data_packet(A, 5))
                nursery.start_soon(go_on)
                await incoming.wait_complete()
        assert trio.current_time() == 2
    for stream in given:
        assert await stream.receive_some() == b"", "read, and still open"


async def late_connections(
    connect: Callable[[], Awaitable[trio.abc.Stream]], first: Sequence[bytes]
) -> list[trio.abc.Stream]:
    streams = [await connect() for _ in first]
    for stream, data in zip(streams, first, strict=True):
        await stream.send_all(data)
    return streams


async def test_late_connections_while_a_channel_is_open(
    autojump_clock: MockClock,
) -> None:
    """While a channel is open: a channel of this source is read, a main is reset.

    A channel of another source is none of ours, and not waited for.
    """
    connect, there = link()
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed):
            async with open_incoming(there, {A: SimulatedSink()}) as incoming:
                source = await ScriptedSource.connect(connect, channels=1)
                await source.begin(A)
                await incoming.devices[A].state.wait_value(DeviceState.SETUP)

                async def come_late() -> None:
                    await trio.sleep(1)
                    channel, other, main, silent = await late_connections(
                        connect,
                        [
                            initial_packet(1),
                            initial_packet(2, uuid=b"another machine!"),
                            MainStream().begin(A),
                            b"",
                        ],
                    )
                    with pytest.raises(trio.BrokenResourceError):
                        await main.receive_some()
                    assert 1 < trio.current_time() < 1.5
                    await source.close()
                    for _ in range(2):
                        await channel.send_all(bytes(MIB))
                        await trio.sleep(0.1)
                    await channel.aclose()
                    left_at = trio.current_time()
                    for stream in (other, silent):
                        with pytest.raises(trio.BrokenResourceError):
                            await stream.receive_some()
                    assert left_at <= trio.current_time() < left_at + 1

                nursery.start_soon(come_late)
                await source.packets(0, data_packet(A, 5), data_packet(A, 5))
                await incoming.wait_complete()
        assert trio.current_time() < 2.5


async def test_fault_while_all_connections_wait_in_the_queue(
    autojump_clock: MockClock,
) -> None:
    """The fault is in what main has sent before anybody looked."""
    connect, there = link()
    source = await ScriptedSource.connect(connect, channels=4)
    await source.begin(B, return_path=True)
    busy = Busy(source)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy.run)
        with pytest.raises(MigrationFailed):
            async with open_incoming(there, {A: SimulatedSink()}) as incoming:
                await incoming.wait_complete()
        assert trio.current_time() == 3
    assert not busy.broken
    assert busy.heard[-1] == SHUT_1


async def test_two_sessions_in_turn_on_one_listener(autojump_clock: MockClock) -> None:
    """The second gets all connections that come when the first source has left."""
    connect, there = link()
    connected = trio.Event()

    async def again(busy: Busy) -> None:
        await busy.run()
        source = await ScriptedSource.connect(connect)
        connected.set()
        await source.begin(A)
        await source.switch_over()
        await source.packets(0, *state_packets(A, [b"x"]))
        await source.end()
        await source.close()

    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed):
            async with open_incoming(there, {A: SimulatedSink()}) as incoming:
                source = await ScriptedSource.connect(connect)
                nursery.start_soon(again, Busy(source))
                await source.begin(A)
                await incoming.devices[A].state.wait_value(DeviceState.SETUP)
                await source.packets(0, data_packet(A, 5), data_packet(A, 5))
                await incoming.wait_complete()
        async with open_incoming(there, {A: SimulatedSink()}) as incoming:
            await incoming.wait_complete()
    assert connected.is_set()


async def test_channels_are_read_beneath_tls() -> None:
    """Also of a channel in the middle of its handshake, which is finished first."""
    ca = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("there").configure_cert(server)
    client = ssl.create_default_context()
    ca.configure_trust(client)
    wires: list[_Slow] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            with pytest.raises(MigrationFailed):
                async with open_incoming(
                    "tcp:127.0.0.1:0",
                    {A: NullSink()},
                    ssl_context=server,
                    deadlines=Deadlines(handshake=30),
                ) as incoming:
                    host, _, port = incoming.addresses[0][4:].rpartition(":")
                    connect = partial(trio.open_tcp_stream, host, int(port))

                    async def secured() -> trio.abc.Stream:
                        wires.append(_Slow(await connect()))
                        return trio.SSLStream(
                            wires[-1], client, server_hostname="there"
                        )

                    source = await ScriptedSource.connect(secured, channels=1)
                    await source.begin(A, return_path=True)
                    await incoming.devices[A].state.wait_value(DeviceState.SETUP)
                    late = await secured()
                    nursery.start_soon(_go_on, source, late, wires[-1])
                    await wires[-1].has_begun.wait()
                    await source.packets(0, data_packet(A, 5), data_packet(A, 5))
                    await incoming.wait_complete()


@attrs.define(eq=False)
class _Slow(trio.abc.Stream):
    """A connection of which the second piece can be held back."""

    plain: trio.SocketStream
    has_begun: trio.Event = attrs.field(factory=trio.Event)
    may_go_on: trio.Event | None = None
    _pieces: int = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._pieces += 1
        if self._pieces == 2 and self.may_go_on is not None:
            self.has_begun.set()
            await self.may_go_on.wait()
        await self.plain.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.plain.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.plain.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.plain.aclose()


async def _go_on(source: ScriptedSource, late: trio.abc.Stream, wire: _Slow) -> None:
    """Begin a handshake, end it when main has ended, and send much on both channels."""
    wire.may_go_on = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late.send_all, initial_packet(1))
        assert (await source.heard())[-1] == SHUT_1
        wire.may_go_on.set()
    for channel in (*source.channels, late):
        await channel.send_all(bytes(16 * MIB))
    for channel in (*source.channels, late):
        await trio.aclose_forcefully(channel)
    await trio.aclose_forcefully(source.main)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_silent_stranger_is_not_waited_for(
    autojump_clock: MockClock, secure: bool
) -> None:
    """Nor is anybody accepted meanwhile, whose own session may be the next one."""
    connect, there = link()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if secure else None
    with trio.move_on_after(10):
        async with open_incoming(
            there, {A: SimulatedSink()}, ssl_context=context
        ) as incoming:
            await connect()
            await incoming.wait_complete()
    assert trio.current_time() == 10


async def test_silent_stranger_beside_main_costs_half_a_second(
    autojump_clock: MockClock,
) -> None:
    """It might have been a channel that is about to say so."""
    connect, there = link()
    with trio.move_on_after(10):
        async with open_incoming(there, {A: SimulatedSink()}) as incoming:
            source = await ScriptedSource.connect(connect, channels=0)
            await source.begin(A)
            await connect()
            await incoming.wait_complete()
    assert trio.current_time() == 10.5
