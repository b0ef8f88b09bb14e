"""Collaboration: connections that break, over real sockets, and full machines."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_vfio import (
    ConnectionLost,
    DeviceState,
    Incoming,
    MigrationFailed,
    open_incoming,
)
from trio_vfio._link._address import connect, listening, parse_address
from trio_vfio._wire._return_path import ReturnPathType
from trio_vfio.testing import (
    ScriptedSource,
    SimulatedSink,
    data_packet,
    link,
    state_packets,
)

A = "0000:00:04.0/vfio"


async def reset(stream: trio.abc.Stream) -> None:
    """Close *stream* so that the other side sees a broken connection."""
    assert isinstance(stream, trio.SocketStream)
    linger = struct.pack("ii", 1, 0)
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await stream.aclose()


def to(incoming: Incoming) -> Callable[[], Awaitable[trio.abc.Stream]]:
    """Return what opens connections to where *incoming* listens."""
    return partial(connect, parse_address(incoming.addresses[0]))


@asynccontextmanager
async def migration(
    device: SimulatedSink, faults: list[str]
) -> AsyncIterator[tuple[ScriptedSource, Incoming]]:
    """Open both sides of a migration; collect what it fails with."""
    async with trio.open_nursery() as nursery:
        try:
            async with open_incoming("tcp:127.0.0.1:0", {A: device}) as incoming:
                source = await ScriptedSource.connect(to(incoming))
                nursery.start_soon(source.hang_up)
                yield source, incoming
                await incoming.wait_complete()
        except MigrationFailed as failed:
            assert all(isinstance(each, ConnectionLost) for each in failed.exceptions)
            faults += map(str, failed.exceptions)


async def test_main_breaks() -> None:
    faults: list[str] = []
    async with migration(SimulatedSink(), faults) as (source, incoming):
        await source.begin(A)
        await incoming.devices[A].state.wait_value(
            lambda _: incoming.result().channels != ()
        )
        await reset(source.main)
    (fault,) = faults
    assert fault.startswith("main: broke behind byte ")
    assert "Connection reset by peer" in fault


async def test_a_channel_breaks_inside_a_packet() -> None:
    faults: list[str] = []
    async with migration(SimulatedSink(), faults) as (source, _):
        await source.begin(A)
        await source.packets(1, data_packet(A, 0, b"data")[:-1])
        await reset(source.channels[1])
    assert faults == [
        "channel 1: broke inside a packet: [Errno 104] Connection reset by peer"
    ]


async def test_a_channel_that_breaks_between_packets_has_ended() -> None:
    """Whether all has come is known by what has come."""
    faults: list[str] = []
    device = SimulatedSink()
    async with migration(device, faults) as (source, incoming):
        await source.begin(A)
        await source.switch_over()
        await source.packets(1, *state_packets(A, [b"x"]))
        await incoming.devices[A].state.wait_value(DeviceState.COMPLETED)
        await reset(source.channels[1])
        await reset(source.channels[0])
        await source.end()
    assert faults == []
    assert device.loaded == b"x"


@attrs.define(eq=False)
class FullListener(trio.abc.Listener[trio.abc.Stream]):
    """Refuses the first connections for want of something."""

    inner: trio.abc.Listener[trio.abc.Stream]
    errors: list[int]

    async def accept(self) -> trio.abc.Stream:
        if self.errors:
            raise OSError(self.errors[0], os.strerror(self.errors.pop(0)))
        return await self.inner.accept()

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_a_machine_that_is_out_of_descriptors_is_waited_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    device = SimulatedSink()
    connect_to_it, (inner,) = link()
    full = FullListener(inner, [errno.EMFILE, errno.ECONNABORTED])
    async with open_incoming([full], {A: device}) as incoming:
        source = await ScriptedSource.connect(connect_to_it)
        await source.begin(A)
        await source.switch_over()
        await source.packets(1, *state_packets(A, [b"x"]))
        await source.end()
        await source.close()
        await incoming.wait_complete()
    assert device.loaded == b"x"
    assert trio.current_time() == pytest.approx(0.2)
    assert caplog.messages == [
        "cannot accept a connection: EMFILE: Too many open files",
        "cannot accept a connection: ECONNABORTED: Software caused connection abort",
    ]


async def test_a_listener_that_fails_otherwise_is_a_mistake(
    autojump_clock: MockClock,
) -> None:
    _, (inner,) = link()
    full = FullListener(inner, [errno.EINVAL])
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with open_incoming([full], {A: SimulatedSink()}) as incoming:
            await incoming.wait_complete()


@pytest.mark.parametrize("text", ["tcp:no.such.host.invalid:1", "unix:/no/such/dir/s"])
async def test_where_nobody_can_listen(text: str) -> None:
    with pytest.raises(OSError, match=text):
        async with listening(parse_address(text)):
            pass


class DeadEnd(trio.abc.SendStream):
    """Takes nothing."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None: ...
    async def aclose(self) -> None: ...


async def test_a_source_that_cannot_be_answered(autojump_clock: MockClock) -> None:
    """It cannot be told the end either, so the migration has failed."""
    ours, theirs = trio.testing.memory_stream_pair()
    main = trio.StapledStream(DeadEnd(), theirs)
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming([main], {}) as incoming:
            await ScriptedSource(ours, []).begin(return_path=True)
            await incoming.wait_complete()
    (fault,) = failed.value.exceptions
    assert str(fault).startswith("main: the return path broke")


async def test_who_comes_after_the_end_is_turned_away(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    connect_to_it, there = link()
    async with open_incoming(there, {A: SimulatedSink()}) as incoming:
        source = await ScriptedSource.connect(connect_to_it)
        await source.begin(A, return_path=True)
        await source.switch_over()
        await source.packets(1, *state_packets(A, [b"x"]))
        await source.end()
        await incoming.wait_complete()
        late = await connect_to_it()
        await late.send_all(b"QEVM\0\0\0\3")
        assert await late.receive_some() == b""
        await source.close()
    assert caplog.messages == ["dropped a connection: the migration is complete"]


async def test_a_cancel_leaves_no_descriptor() -> None:
    """All connections are closed, not only the first."""
    before = sorted(os.listdir("/proc/self/fd"))
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            there = "tcp:127.0.0.1:0"
            async with open_incoming(there, {A: SimulatedSink()}) as incoming:
                source = await ScriptedSource.connect(to(incoming), channels=4)
                await source.begin(A, return_path=True)
                await incoming.devices[A].state.wait_value(DeviceState.SETUP)
                assert await source.main.receive_some()
                nursery.start_soon(source.hang_up)
                scope.cancel()
                await incoming.wait_complete()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("how", ["closed", "shut down both ways"])
async def test_a_source_that_leaves_before_it_is_told(how: str) -> None:
    """TCP takes the last word all the same, but its reset says who did not hear."""
    device = SimulatedSink(seconds_per_call=0.05)
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming("tcp:127.0.0.1:0", {A: device}) as incoming:
            source = await ScriptedSource.connect(to(incoming))
            await source.begin(A, return_path=True)
            await source.switch_over()
            await source.packets(0, *state_packets(A, [b"x"]))
            await source.end()
            assert await source.main.receive_some()
            assert isinstance(source.main, trio.SocketStream)
            if how == "closed":
                await source.main.aclose()
            else:
                source.main.socket.shutdown(socket.SHUT_RDWR)
            for channel in source.channels:
                await channel.aclose()
            await incoming.wait_complete()
    await source.close()
    (fault,) = failed.value.exceptions
    assert str(fault) == "main: the source had closed the connection before it was told"
    assert device.finished
    assert device.aborted_at is not None


@pytest.mark.parametrize("fails", [False, True])
async def test_a_source_that_cannot_be_told_finds_main_broken(fails: bool) -> None:
    """To close it is all that a destination without a return path says of success."""
    device = SimulatedSink(fails={"finish": errno.EIO} if fails else {})
    ended = False
    with suppress(MigrationFailed):
        async with open_incoming("tcp:127.0.0.1:0", {A: device}) as incoming:
            source = await ScriptedSource.connect(to(incoming))
            await source.begin(A)
            await source.switch_over()
            await source.packets(0, *state_packets(A, [b"x"]))
            await source.end()
            for channel in source.channels:
                await channel.aclose()
            await incoming.wait_complete()
    with suppress(trio.BrokenResourceError):
        ended = await source.main.receive_some() == b""
    await source.close()
    assert ended is not fails
    assert incoming.result().status == ("failed" if fails else "completed")


async def test_a_source_that_only_stops_talking_is_told(tmp_path: Path) -> None:
    device = SimulatedSink()
    async with open_incoming(f"unix:{tmp_path}/s", {A: device}) as incoming:
        source = await ScriptedSource.connect(to(incoming))
        await source.begin(A, return_path=True)
        await source.switch_over()
        await source.packets(0, *state_packets(A, [b"x"]))
        await source.end()
        assert isinstance(source.main, trio.SocketStream)
        await source.main.send_eof()
        result = await incoming.wait_complete()
    assert result.status == "completed"
    assert (await source.heard())[-1] == (ReturnPathType.SHUT, 0)
    await source.close()


async def test_a_caller_that_closes_its_own_streams(autojump_clock: MockClock) -> None:
    """In the middle that is a fault, after the end it is not."""
    for finished in False, True:
        pairs = [trio.testing.memory_stream_pair() for _ in range(2)]
        ours: list[trio.abc.Stream] = [pair[0] for pair in pairs]
        faults: list[str] = []
        try:
            async with open_incoming(
                [pair[1] for pair in pairs], {A: SimulatedSink()}
            ) as incoming:
                source = await ScriptedSource.connect(partial(_next, ours), channels=1)
                await source.begin(A, return_path=True)
                await trio.testing.wait_all_tasks_blocked()
                if finished:
                    await source.switch_over()
                    await source.packets(0, *state_packets(A, [b"x"]))
                    await source.end()
                    await incoming.wait_complete()
                await pairs[0][1].aclose()
                await incoming.wait_complete()
        except MigrationFailed as failed:
            faults += map(str, failed.exceptions)
        assert bool(faults) is not finished
        assert all(fault.startswith("main: ") for fault in faults)


@pytest.mark.parametrize("rest", [0, 100])
@pytest.mark.parametrize("channels", [1, 4])
async def test_a_source_that_is_killed_is_one_fault(
    channels: int, rest: int, autojump_clock: MockClock
) -> None:
    """All its connections end in one moment, whether inside a packet or not."""
    pairs = [trio.testing.memory_stream_pair() for _ in range(1 + channels)]
    ours: list[trio.abc.Stream] = [pair[0] for pair in pairs]
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(
            [pair[1] for pair in pairs], {A: SimulatedSink()}
        ) as incoming:
            source = await ScriptedSource.connect(
                partial(_next, ours), channels=channels
            )
            await source.begin(A, return_path=True)
            await source.switch_over()
            for channel in range(channels):
                packet = data_packet(A, 1 + channel, bytes(200))
                await source.packets(channel, packet[: len(packet) - rest])
            await trio.testing.wait_all_tasks_blocked()
            for pair in pairs:
                pair[0].send_stream.close()
                pair[0].receive_stream.close()
            await incoming.wait_complete()
    assert len(failed.value.exceptions) == 1


async def _next(streams: list[trio.abc.Stream]) -> trio.abc.Stream:
    return streams.pop(0)


async def test_streams_that_are_gone_before_they_say_anything(
    autojump_clock: MockClock,
) -> None:
    """No more can come where nobody listens."""
    pairs = [trio.testing.memory_stream_pair() for _ in range(2)]
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming([pair[1] for pair in pairs], {}) as incoming:
            for pair in pairs:
                await pair[0].aclose()
            await incoming.wait_complete()
    assert {str(each) for each in failed.value.exceptions} == {
        "main: never came, and all other connections are gone"
    }


async def test_a_given_stream_that_is_no_peer_stays_open(
    autojump_clock: MockClock,
) -> None:
    """It is the caller's to close, dropped or not."""
    ours, theirs = trio.testing.memory_stream_pair()
    _, listeners = link()
    async with open_incoming([theirs, *listeners], {}):
        await ours.send_all(b"GET / HTTP/1.1")
        await trio.testing.wait_all_tasks_blocked()
        await theirs.send_all(b"HTTP/1.1 400 Bad Request")
        assert await ours.receive_some() == b"HTTP/1.1 400 Bad Request"


async def test_no_place_to_receive() -> None:
    with pytest.raises(ValueError, match="no place"):
        async with open_incoming([], {}):
            pass


async def test_what_is_neither_a_listener_nor_a_stream() -> None:
    with pytest.raises(TypeError, match="neither a listener nor a stream"):
        async with open_incoming([object()], {}):  # type: ignore[list-item]
            pass


async def test_a_unix_socket_s_file_is_removed_only_if_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the process has gone meanwhile."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    async with open_incoming("unix:socket", {}):
        monkeypatch.chdir(there)
        (there / "socket").touch()
    assert (there / "socket").exists()
    assert not (here / "socket").exists()
    async with open_incoming(f"unix:{here}/socket", {}):
        (here / "socket").unlink()
        (here / "socket").touch()
    assert (here / "socket").exists()


async def test_a_path_that_is_too_long_is_named() -> None:
    path = "/no/such/" + "x" * 200
    with pytest.raises(OSError, match=f"too long: 'unix:{path}'"):
        async with open_incoming(f"unix:{path}", {}):
            pass
