"""Contract: what every sink must do, for each that we bring, on real descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_vfio import StateSink
from trio_vfio._device import FdSink, FileSink, NullSink, SnapshotDirectory
from trio_vfio.testing import SimulatedSink
from trio_vfio.testing._checks import check_state_sink


async def test_a_memfd() -> None:
    fds: dict[StateSink, int] = {}

    def make() -> FdSink:
        fd = os.memfd_create("state")
        device = FdSink(fd)
        fds[device] = fd
        return device

    async def read_back(sink: StateSink) -> bytes:
        return os.pread(fds[sink], 1 << 30, 0)

    try:
        await check_state_sink(make, read_back)
    finally:
        for fd in fds.values():
            os.close(fd)


def pipe() -> tuple[int, int]:
    return os.pipe()


def connection() -> tuple[int, int]:
    left, right = socket.socketpair()
    return left.detach(), right.detach()


@attrs.define(eq=False)
class Drained:
    """A descriptor whose other end is read all the time."""

    writer: int
    data: bytearray = attrs.field(factory=bytearray)
    ended: trio.Event = attrs.field(factory=trio.Event)

    async def drain(self, reader: int) -> None:
        async with trio.lowlevel.FdStream(reader) as stream:
            async for data in stream:
                self.data += data
        self.ended.set()

    def close(self) -> None:
        fd, self.writer = self.writer, -1
        if fd != -1:
            os.close(fd)


@pytest.mark.parametrize("opens", [pipe, connection])
async def test_a_descriptor_that_must_be_read(
    opens: Callable[[], tuple[int, int]],
) -> None:
    drained: dict[StateSink, Drained] = {}

    async def read_back(sink: StateSink) -> bytes:
        drained[sink].close()
        await drained[sink].ended.wait()
        return bytes(drained[sink].data)

    async with trio.open_nursery() as nursery:

        def make() -> FdSink:
            reader, writer = opens()
            device = FdSink(writer)
            drained[device] = Drained(writer)
            nursery.start_soon(drained[device].drain, reader)
            return device

        await check_state_sink(make, read_back)
        for each in drained.values():
            each.close()


async def test_files(tmp_path: Path) -> None:
    paths = iter(tmp_path / f"{n}.state" for n in range(100))

    async def read_back(sink: StateSink) -> bytes:
        assert isinstance(sink, FileSink)
        return sink.path.read_bytes()

    await check_state_sink(lambda: FileSink(next(paths)), read_back)
    # Of the seven devices of the check, three finished and were not aborted.
    left = ["0.state", "0.state.config", "1.state", "6.state"]
    assert sorted(os.listdir(tmp_path)) == left


@pytest.mark.parametrize("opens", [pipe, connection])
async def test_pipe_refuses_another_attempt_once_it_was_written_to(
    opens: Callable[[], tuple[int, int]],
) -> None:
    reader, writer = opens()
    device = FdSink(writer)
    # Nothing has gone yet.
    for _ in range(2):
        await device.begin()
        await device.abort()
    await device.begin()
    await device.write(iter([memoryview(b"abc")]))
    await device.abort()
    with pytest.raises(OSError, match="an earlier migration has written to it"):
        await device.begin()
    assert os.get_blocking(writer)
    os.close(reader)
    os.close(writer)


async def test_memfd_starts_afresh_where_it_began() -> None:
    """What was there stays, and nothing of the first attempt does."""
    fd = os.memfd_create("state")
    os.write(fd, b"kept")
    device = FdSink(fd)
    await device.begin()
    await device.write(iter([memoryview(b"first attempt")]))
    await device.load_config(b"config")
    await device.abort()
    await device.begin()
    assert device.config is None
    await device.write(iter([memoryview(b"second")]))
    await device.finish()
    assert os.pread(fd, 100, 0) == b"keptsecond"
    os.close(fd)


async def test_a_snapshot(tmp_path: Path) -> None:
    instances = iter(range(100))
    snapshot = SnapshotDirectory(tmp_path / "snapshot")
    await check_state_sink(lambda: snapshot("vfio", next(instances)))


async def test_the_null_device() -> None:
    await check_state_sink(NullSink)


async def test_a_simulated_device(autojump_clock: MockClock) -> None:
    async def read_back(sink: StateSink) -> bytes:
        assert isinstance(sink, SimulatedSink)
        return sink.loaded

    await check_state_sink(
        lambda: SimulatedSink(seconds_per_call=0.1, seconds_per_mib=1), read_back
    )


async def test_a_socket_whose_peer_has_gone() -> None:
    """Neither an endless wait nor a signal, but the error by its name."""
    left, right = socket.socketpair()
    with closing(left):
        right.close()
        device = FdSink(left.fileno())
        await device.begin()
        with pytest.raises(BrokenPipeError, match=r"after 0 of 3 bytes"):
            await device.write(iter([memoryview(b"abc")]))
        await device.abort()
