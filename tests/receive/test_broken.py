"""Collaboration: connections that break, over real sockets, and full machines."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
from trio_vfio._link._address import connect, open_listeners, parse_address
from trio_vfio.testing import (
    ScriptedSource,
    SimulatedDevice,
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


@asynccontextmanager
async def migration(
    device: SimulatedDevice, faults: list[str]
) -> AsyncIterator[tuple[ScriptedSource, Incoming]]:
    """Open both sides of a migration; collect what it fails with."""
    source: ScriptedSource | None = None
    try:
        async with open_incoming("tcp:127.0.0.1:0", {A: device}) as incoming:
            address = parse_address(incoming.addresses[0])

            async def connect_to_it() -> trio.abc.Stream:
                return await connect(address)

            source = await ScriptedSource.connect(connect_to_it)
            yield source, incoming
            await incoming.wait_complete()
    except MigrationFailed as failed:
        assert all(isinstance(each, ConnectionLost) for each in failed.exceptions)
        faults += map(str, failed.exceptions)
    if source is not None:
        await source.close()


async def test_main_breaks() -> None:
    faults: list[str] = []
    async with migration(SimulatedDevice(), faults) as (source, incoming):
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
    async with migration(SimulatedDevice(), faults) as (source, _):
        await source.begin(A)
        await source.packets(1, data_packet(A, 0, b"data")[:-1])
        await reset(source.channels[1])
    assert faults == ["channel 1: broke inside a packet: Connection reset by peer"]


async def test_a_channel_that_breaks_between_packets_has_ended() -> None:
    """Whether all has come is known by what has come."""
    faults: list[str] = []
    device = SimulatedDevice()
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
    device = SimulatedDevice()
    connect_to_it, (inner,) = link()
    full = FullListener(inner, [errno.EMFILE, errno.ENFILE])
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
        "cannot accept a connection: ENFILE: Too many open files in system",
    ]


async def test_a_listener_that_fails_otherwise_is_a_mistake(
    autojump_clock: MockClock,
) -> None:
    _, (inner,) = link()
    full = FullListener(inner, [errno.EINVAL])
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with open_incoming([full], {A: SimulatedDevice()}) as incoming:
            await incoming.wait_complete()


@pytest.mark.parametrize("text", ["tcp:no.such.host.invalid:1", "unix:/no/such/dir/s"])
async def test_where_nobody_can_listen(text: str) -> None:
    with pytest.raises(OSError, match=text):
        await open_listeners(parse_address(text))


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
    async with open_incoming(there, {A: SimulatedDevice()}) as incoming:
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
    with trio.CancelScope() as scope:
        async with open_incoming("tcp:127.0.0.1:0", {A: SimulatedDevice()}) as incoming:
            address = parse_address(incoming.addresses[0])

            async def connect_to_it() -> trio.abc.Stream:
                return await connect(address)

            source = await ScriptedSource.connect(connect_to_it, channels=4)
            await source.begin(A, return_path=True)
            await incoming.devices[A].state.wait_value(DeviceState.SETUP)
            assert await source.main.receive_some()
            scope.cancel()
            await incoming.wait_complete()
    await source.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
