"""Collaboration: packets that are written by the thread that brings them.

A plain socket is read in a thread of its channel's. If the device is a file, and its own
thread waits for the packet that has come, that one writes it, and wakes nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import active_thread_count

from trio_vfio import (
    DeviceError,
    FdSink,
    Incoming,
    MigrationFailed,
    TraceEvent,
    open_incoming,
)
from trio_vfio._device import _writing
from trio_vfio._link._address import connect, parse_address
from trio_vfio._receive import _loader
from trio_vfio.testing import ScriptedSource, config_packet, data_packet

A, B = "0000:00:04.0/vfio", "0000:00:05.0/vfio"

LONG = 100.0
"""Seconds that nothing takes."""


@attrs.define(eq=False)
class Writes:
    """Who writes to a descriptor, and a door that may be shut for all but the first."""

    threads: list[int] = attrs.field(factory=list[int])
    policies: set[int] = attrs.field(factory=set[int])
    """How the system schedules them."""
    door: threading.Event = attrs.field(factory=threading.Event)
    fd: int = -1

    def writev(
        self,
        writev: Callable[[int, Sequence[memoryview]], int],
        fd: int,
        buffers: Sequence[memoryview],
    ) -> int:
        if fd == self.fd:
            self.threads.append(threading.get_ident())
            self.policies.add(os.sched_getscheduler(0))
            if threading.get_ident() != self.threads[0]:
                assert self.door.wait(LONG)
        return writev(fd, buffers)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    writes = Writes()
    monkeypatch.setattr(os, "writev", partial(writes.writev, os.writev))
    return writes


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a device's thread wait as long as a test takes, and call any write quick."""
    monkeypatch.setattr(_loader, "PATIENCE", LONG)
    monkeypatch.setattr(_writing, "QUICK", LONG)


@pytest.fixture
def memfd() -> Generator[int]:
    fd = os.memfd_create("state", os.MFD_ALLOW_SEALING)
    yield fd
    os.close(fd)


class Sink:
    """A descriptor as a device, which notes that it was aborted."""

    precopy: bool | None = False

    def __init__(self, device: FdSink) -> None:
        self.device = device
        self.begin, self.write = device.begin, device.write
        self.load_config, self.finish = device.load_config, device.finish
        self.aborted = False

    async def abort(self) -> None:
        self.aborted = True
        await self.device.abort()


async def until(what: Callable[[], bool]) -> None:
    """Wait for what is to happen in a thread."""
    with trio.fail_after(LONG):
        while not what():  # noqa: ASYNC110 (a thread tells no event)
            await trio.sleep(0.001)


@asynccontextmanager
async def waiting(
    tmp_path: Path,
    sink: Sink,
    trace: Callable[[TraceEvent], None] | None = None,
    *,
    device_grace: float | None = None,
) -> AsyncGenerator[tuple[Incoming, ScriptedSource]]:
    """Bring a session to where the device's thread waits for packet 1."""
    where = f"unix:{tmp_path / 'socket'}"
    with trio.fail_after(2 * LONG):
        async with open_incoming(
            where, {A: sink}, trace=trace, device_grace=device_grace
        ) as incoming:
            source = await ScriptedSource.connect(
                partial(connect, parse_address(where)), channels=2
            )
            try:
                await source.begin(A)
                await source.switch_over()
                await source.packets(0, data_packet(A, 0, b"0" * 1000))
                await until(lambda: incoming.devices[A].waiting_for == 1)
                yield incoming, source
            finally:
                # Also in a scope that is cancelled.
                for stream in source.main, *source.channels:
                    assert isinstance(stream, trio.SocketStream)
                    stream.socket.close()


@pytest.mark.usefixtures("patient")
async def test_it_is_the_one_that_brings_it(
    tmp_path: Path, memfd: int, writes: Writes
) -> None:
    writes.fd = memfd
    writes.door.set()
    events: list[TraceEvent] = []
    async with waiting(tmp_path, Sink(FdSink(memfd)), events.append) as (
        incoming,
        source,
    ):
        for idx in range(1, 5):
            await source.packets(idx % 2, data_packet(A, idx, b"%d" % idx * 1000))
            await until(lambda: incoming.devices[A].waiting_for == idx + 1)  # noqa: B023
        await source.packets(0, config_packet(A, 5))
        await source.end()
        await source.close()
        result = await incoming.wait_complete()
    own, *others = writes.threads
    assert len(others) == 4
    assert own not in others
    assert writes.policies == {os.SCHED_BATCH}
    assert os.pread(memfd, 10_000, 0) == b"".join(b"%d" % n * 1000 for n in range(5))
    (device,) = result.devices
    assert (device.buffers, device.data_bytes) == (5, 5000)
    said = [
        (each.name.removeprefix("vfio_load_state_device_buffer_"), each.arguments[1])
        for each in events
        if each.name.startswith("vfio_load_state_device_buffer_") and each.arguments[1:]
    ]
    steps = "incoming", "load_start", "load_end", "starved"
    assert said[-17:-1] == [
        (step, idx + (step == "starved")) for idx in range(1, 5) for step in steps
    ]
    assert said[-1] == ("incoming", 5)
    # When the last data was written nobody knew that it was the last.
    assert "vfio_load_state_device_buffer_end" not in {each.name for each in events}


@pytest.mark.usefixtures("patient")
async def test_it_is_not_for_what_may_let_a_thread_wait(
    tmp_path: Path, writes: Writes
) -> None:
    """Though this pipe has room."""
    here, there = os.pipe()
    writes.fd = there
    try:
        async with waiting(tmp_path, Sink(FdSink(there))) as (incoming, source):
            await source.packets(1, data_packet(A, 1, b"1"), config_packet(A, 2))
            await source.end()
            await source.close()
            await incoming.wait_complete()
        assert os.read(here, 10_000) == b"0" * 1000 + b"1"
    finally:
        os.close(here)
        os.close(there)
    assert writes.threads == writes.threads[:1] * 2


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.usefixtures("patient")
async def test_a_refusal_is_the_device_s(
    tmp_path: Path,
    memfd: int,
    writes: Writes,
    monkeypatch: pytest.MonkeyPatch,
    at_once: bool,
) -> None:
    """It names the packet, and there is no second try."""
    writes.fd = memfd
    writes.door.set()
    if not at_once:
        monkeypatch.setattr(_writing, "QUICK", 0)
    sink = Sink(FdSink(memfd))
    with pytest.raises(MigrationFailed) as failed:
        async with waiting(tmp_path, sink) as (incoming, source):
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
            await source.packets(1, data_packet(A, 1, b"1" * 500))
            await source.end()
            await incoming.wait_complete()
    (fault,) = failed.value.exceptions
    assert isinstance(fault, DeviceError)
    assert (fault.idstr, fault.operation, fault.errno) == (A, "write", errno.EPERM)
    assert (fault.idx, fault.offset) == (1, 1000)
    assert "(after 0 of 500 bytes of the buffer)" in str(fault)
    assert len(writes.threads) == 2
    assert (writes.threads[0] != writes.threads[1]) == at_once
    assert sink.aborted
    assert active_thread_count() == 0


@pytest.mark.parametrize("grace", [None, 0])
@pytest.mark.usefixtures("patient")
async def test_a_cancel_waits_for_it(
    tmp_path: Path,
    memfd: int,
    writes: Writes,
    monkeypatch: pytest.MonkeyPatch,
    grace: float | None,
) -> None:
    """It is a write of the device's, whoever does it."""
    # The device's own thread sees that it was cancelled when this has passed.
    monkeypatch.setattr(_loader, "PATIENCE", 0.5)
    writes.fd = memfd
    sink = Sink(FdSink(memfd))
    ended = trio.Event()
    begun = trio.Event()
    scope = trio.CancelScope()

    async def migrate() -> None:
        with scope:
            async with waiting(tmp_path, sink, device_grace=grace) as (_, source):
                await source.packets(1, data_packet(A, 1, b"1"))
                await until(lambda: len(writes.threads) == 2)
                begun.set()
                await trio.sleep_forever()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrate)
        await begun.wait()
        scope.cancel()
        if grace is not None:
            await until(lambda: sink.aborted)
        with trio.move_on_after(0.2):
            await ended.wait()
        assert not ended.is_set()
        assert active_thread_count() == 2
        writes.door.set()
        with trio.fail_after(LONG / 2):
            await ended.wait()
    assert sink.aborted
    assert active_thread_count() == 0
    assert os.pread(memfd, 10_000, 0) == b"0" * 1000 + b"1"


async def test_a_device_that_is_slow_writes_for_itself(
    tmp_path: Path, memfd: int, writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the channel would be late with what it brings for others."""
    monkeypatch.setattr(_loader, "PATIENCE", LONG)
    monkeypatch.setattr(_writing, "QUICK", 0)
    writes.fd = memfd
    async with waiting(tmp_path, Sink(FdSink(memfd))) as (incoming, source):
        await source.packets(1, data_packet(A, 1, b"1"), config_packet(A, 2))
        await source.end()
        await source.close()
        await incoming.wait_complete()
    assert writes.threads == writes.threads[:1] * 2
    assert os.pread(memfd, 10_000, 0) == b"0" * 1000 + b"1"
