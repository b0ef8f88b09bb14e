"""Contract: what holds however a channel sends, in a task or in a thread of its own.

In tasks go connections in memory and with TLS, in threads plain sockets. These tests
run in real time, for threads do; they wait for what must happen, and not for time to
pass, except where a deadline is what is tested.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path as Directory

import attrs
import pytest
import trio
from trio.testing import MockClock, active_thread_count

from trio_vfio import (
    Buffers,
    ConnectionLost,
    DeadlineExceeded,
    Deadlines,
    DestinationFailed,
    FdSink,
    FdSource,
    MigrationFailed,
    Outgoing,
    PeerProtocolError,
    StateSource,
    TraceEvent,
    open_incoming,
    open_outgoing,
)
from trio_vfio._link._stream import receive_exactly
from trio_vfio._link._thread import ThreadSender
from trio_vfio._send._session import Session
from trio_vfio._wire._main_decoder import MainDecoder
from trio_vfio._wire._multifd import INITIAL_SIZE
from trio_vfio._wire._return_path import pong, shut
from trio_vfio.testing import SimulatedSource

from .paths import KINDS, THREADED, Path, go_on, path_of

KIB, MIB = 1 << 10, 1 << 20
A, B = "0000:00:04.0/vfio", "0000:00:05.0/vfio"
HEADER = 288


@pytest.fixture(params=KINDS)
async def path(
    request: pytest.FixtureRequest, tmp_path: Directory
) -> AsyncGenerator[Path]:
    async with path_of(request.param, tmp_path) as path:
        yield path


@pytest.fixture
def closing() -> Generator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@attrs.define(eq=False)
class Files:
    """Descriptors for devices, closed by whoever has opened them."""

    closing: ExitStack

    def memfd(self, data: bytes = b"") -> int:
        fd = os.memfd_create("state")
        self.closing.callback(os.close, fd)
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd


@pytest.fixture
def files(closing: ExitStack) -> Files:
    return Files(closing)


class Around:
    """A source with something of a test's around its calls."""

    def __init__(self, fd: int) -> None:
        source = FdSource(fd)
        self.begin, self.pending = source.begin, source.pending
        self.read_into, self.stop = source.read_into, source.stop
        self.config, self.finish = source.config, source.finish
        self.source = source

    async def read_all(self, buffers: Buffers) -> None:
        await self.source.read_all(buffers)

    async def abort(self) -> None:
        await self.source.abort()


class Watched(Around):
    """A source that notes whether connections were open when it was to run again."""

    def __init__(self, fd: int, path: Path) -> None:
        super().__init__(fd)
        self.path = path
        self.aborted_before_close: bool | None = None

    async def abort(self) -> None:
        self.aborted_before_close = not self.path.closed
        await super().abort()


class Late(Around):
    """A source that begins to give when it is told to."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.may_begin = trio.Event()

    async def read_all(self, buffers: Buffers) -> None:
        await self.may_begin.wait()
        await super().read_all(buffers)


def endless(path: Path, files: Files) -> Watched:
    """Make a source that has more than any system keeps for a peer."""
    fd = files.memfd()
    os.truncate(fd, 1 << 30)
    return Watched(fd, path)


async def until(what: Callable[[], bool]) -> None:
    """Wait for what is to happen in threads and in the system."""
    with trio.fail_after(100):
        while not what():  # noqa: ASYNC110 (a thread tells no event)
            await trio.sleep(0.001)


async def until_stuck(outgoing: Outgoing, full: int = MIB) -> None:
    """Wait until a device's memory is full and no more bytes go."""
    seen = -1
    while True:
        (channel,) = outgoing.result().channels
        if channel.bytes == seen and outgoing.devices[A].queued_bytes == full:
            return
        seen = channel.bytes
        with trio.fail_after(100):
            await trio.sleep(0.3)


@attrs.define(eq=False)
class Destination:
    """One that takes nothing over its only channel until it is told to."""

    path: Path
    answers: bool = True
    main: trio.abc.Stream = attrs.field(init=False)
    channel: trio.abc.Stream = attrs.field(init=False)
    accepted: trio.Event = attrs.field(factory=trio.Event, init=False)
    _decoder: MainDecoder = attrs.field(factory=MainDecoder, init=False)
    complete: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when all of main is there."""
    main_ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    main_broke: bool = attrs.field(default=False, init=False)

    async def run(self) -> None:
        """Take connections, and what comes over main; close them when cancelled."""
        async with AsyncExitStack() as stack:
            self.main = await self.path.accept()
            stack.push_async_callback(trio.aclose_forcefully, self.main)
            self.channel = await self.path.accept()
            stack.push_async_callback(trio.aclose_forcefully, self.channel)
            await receive_exactly(self.channel, INITIAL_SIZE)
            self.accepted.set()
            await self._listen()
            await trio.sleep_forever()

    async def _listen(self) -> None:
        try:
            if self.answers:
                await self.main.send_all(pong(1).encode())
            while data := await self.main.receive_some():
                self._decoder.received(bytes(data))
                while self._decoder.next_event() is not None:
                    pass
                if self._decoder.complete:
                    self.complete.set()
        except trio.BrokenResourceError:
            self.main_broke = True
        self.main_ended.set()

    async def say_success(self) -> None:
        """Say the last word."""
        await self.complete.wait()
        await self.main.send_all(shut(0).encode())

    async def packets(self, devices: int = 0) -> list[tuple[str, int]]:
        """Take packets; return the name and the index of each, in their order.

        Up to the config of the last of so many devices, or to the end.
        """
        found: list[tuple[str, int]] = []
        configs = 0
        while not devices or configs < devices:
            if not (header := await receive_exactly(self.channel, HEADER)):
                break
            configs += header[287]
            name = header[12:268].rstrip(b"\0").decode()
            found.append((name, int.from_bytes(header[280:284])))
            size = int.from_bytes(header[272:276]) - 12
            assert len(await receive_exactly(self.channel, size)) == size
        return found

    async def whole_packets(self) -> bool:
        """Take all that comes; return whether it ends behind a packet."""
        try:
            await self.packets()
        except (AssertionError, IndexError, trio.BrokenResourceError):
            return False
        return True


async def failure(
    path: Path,
    files: Files,
    deed: Callable[[Destination], object],
    deadlines: Deadlines | None = None,
) -> tuple[list[Exception], Watched, Destination]:
    """Let a destination do something while a channel is stuck; return the faults."""
    source = endless(path, files)
    destination = Destination(path)
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(destination.run)
            with pytest.raises(MigrationFailed) as caught:
                async with open_outgoing(
                    path.open,
                    {A: source},
                    channels=1,
                    max_queued_bytes=MIB,
                    buffer_size=256 * KIB,
                    deadlines=deadlines,
                    **path.options,
                ) as outgoing:
                    async with trio.open_nursery() as inner:
                        inner.start_soon(outgoing.migrate)
                        await destination.accepted.wait()
                        await until_stuck(outgoing)
                        await deed(destination)  # type: ignore[misc]
            nursery.cancel_scope.cancel()
    assert active_thread_count() == 0
    assert source.aborted_before_close is False
    return list(caught.value.exceptions), source, destination


def test_who_sends_in_threads() -> None:
    """Else the other tests show nothing."""
    assert set(THREADED) < set(KINDS)


async def test_threads_are_for_plain_sockets(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Destination(path).run)
        async with open_outgoing(
            path.open, {A: SimulatedSource()}, channels=1, **path.options
        ) as outgoing:
            session: Session = outgoing._session
            (channel,) = session.connections.channels
            sender = ThreadSender.of(channel)
            assert (sender is not None) == (path.kind in THREADED)
        nursery.cancel_scope.cancel()


async def test_a_whole_migration(path: Path, files: Files) -> None:
    """Every bit arrives, and both sides have the same numbers."""
    data = {A: os.urandom(3 * MIB + 1), B: os.urandom(MIB)}
    simulated = SimulatedSource(size=300_000, config=b"registers")
    sources: dict[str, StateSource] = {
        name: FdSource(files.memfd(each)) for name, each in data.items()
    }
    sinks = {name: files.memfd() for name in (*data, "c/vfio")}
    descriptors = len(os.listdir("/proc/self/fd"))
    with trio.fail_after(100):
        async with (
            open_incoming(
                path.listeners,
                {name: FdSink(fd) for name, fd in sinks.items()},
                ssl_context=path.server,
                digests=True,
            ) as incoming,
            open_outgoing(
                path.open,
                sources | {"c/vfio": simulated},
                channels=3,
                digests=True,
                buffer_size=100_000,
                **path.options,
            ) as outgoing,
        ):
            sent = await outgoing.migrate()
            received = await incoming.wait_complete()
    assert sent.channels == received.channels
    for ours, theirs in zip(sent.devices, received.devices, strict=True):
        assert (ours.sha256, ours.buffers, ours.data_bytes) == (
            theirs.sha256,
            theirs.buffers,
            theirs.data_bytes,
        )
    data["c/vfio"] = simulated.state
    for name, fd in sinks.items():
        assert os.pread(fd, 1 << 23, 0) == data[name]
        assert outgoing.devices[name].queued_bytes == 0
    assert active_thread_count() == 0
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_devices_take_turns(path: Path, files: Files) -> None:
    """One that is far ahead holds up no other, and each keeps its order."""
    buffer = 16 * KIB
    other = Late(files.memfd(bytes(16 * buffer)))
    early = FdSource(files.memfd(bytes(4 * MIB)))
    sources: dict[str, StateSource] = {A: early, B: other}
    destination = Destination(path)
    found: list[tuple[str, int]] = []

    async def take() -> None:
        found.extend(await destination.packets(devices=2))
        await destination.say_success()

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(destination.run)
            async with open_outgoing(
                path.open,
                sources,
                channels=1,
                buffer_size=buffer,
                max_queued_bytes=8 * buffer,
                **path.options,
            ) as outgoing:
                async with trio.open_nursery() as inner:
                    inner.start_soon(outgoing.migrate)
                    ahead, late = outgoing.devices[A], outgoing.devices[B]
                    await until_stuck(outgoing, 8 * buffer)
                    other.may_begin.set()
                    await until(lambda: late.queued_bytes == 8 * buffer)
                    assert ahead.queued_bytes == 8 * buffer
                    nursery.start_soon(take)
            nursery.cancel_scope.cancel()
    for name, count in ((A, 4 * MIB // buffer), (B, 16)):
        idxs = [idx for each, idx in found if each == name]
        assert idxs == list(range(count + 1))
    first = [number for number, (name, _) in enumerate(found) if name == B][:7]
    # So many of both were there when the channel took the next.
    assert [there - here for here, there in itertools.pairwise(first)] == [2] * 6


async def test_a_cancel_while_the_destination_takes_nothing(
    path: Path, files: Files
) -> None:
    """All ends without a deadline, and what the destination has is nothing whole."""
    source = endless(path, files)
    destination = Destination(path, answers=False)
    descriptors: set[str] = set()
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(destination.run)
            descriptors |= set(os.listdir("/proc/self/fd"))
            with trio.CancelScope() as scope:
                async with open_outgoing(
                    path.open,
                    {A: source},
                    channels=1,
                    max_queued_bytes=MIB,
                    buffer_size=256 * KIB,
                    device_grace=None,
                    return_path=False,
                    # None may be what ends it.
                    deadlines=Deadlines(handshake=None, silence=None),
                    **path.options,
                ) as outgoing:
                    async with trio.open_nursery() as inner:
                        inner.start_soon(outgoing.migrate)
                        await until_stuck(outgoing)
                        (result,) = outgoing.result().channels
                        assert result.bytes > result.packets * (256 * KIB + HEADER)
                        assert outgoing.devices[A].buffers == result.packets + 1
                        scope.cancel()
            await destination.main_ended.wait()
            assert not await destination.whole_packets()
            nursery.cancel_scope.cancel()
    # A unix socket can only end.
    assert destination.main_broke == (path.kind != "unix")
    assert source.aborted_before_close is False
    assert outgoing.result().status == "cancelled"
    assert active_thread_count() == 0
    assert set(os.listdir("/proc/self/fd")) - descriptors == set()


async def test_the_destination_breaks_a_channel(path: Path, files: Files) -> None:
    async def break_it(destination: Destination) -> None:
        await trio.aclose_forcefully(destination.channel)

    faults, _, _ = await failure(path, files, break_it)
    (fault,) = faults
    assert isinstance(fault, ConnectionLost)
    assert fault.channel == "channel 0"


async def test_the_destination_says_why_it_breaks_a_channel(
    path: Path, files: Files
) -> None:
    """Its word counts, if it comes soon."""

    async def break_it(destination: Destination) -> None:
        await trio.aclose_forcefully(destination.channel)
        await destination.main.send_all(shut(1).encode())

    faults, _, _ = await failure(path, files, break_it)
    assert [type(fault) for fault in faults] == [DestinationFailed]


async def test_the_destination_speaks_on_a_channel(path: Path, files: Files) -> None:
    async def speak(destination: Destination) -> None:
        await destination.channel.send_all(b"?")

    faults, _, _ = await failure(path, files, speak)
    (fault,) = faults
    assert isinstance(fault, PeerProtocolError)
    assert fault.channel == "channel 0"


async def test_a_destination_that_takes_nothing_is_silent(
    path: Path, files: Files, running_clock: MockClock
) -> None:
    async def nothing(_: Destination) -> None:
        await go_on(running_clock)

    deadlines = Deadlines(silence=5)
    faults, _, _ = await failure(path, files, nothing, deadlines)
    (fault,) = faults
    assert isinstance(fault, DeadlineExceeded)
    assert str(fault) == (
        "silence deadline of 5 s passed:"
        " waiting for channel 0: the destination to take more"
    )


async def test_a_destination_that_takes_little_is_not_silent(
    path: Path, files: Files, running_clock: MockClock
) -> None:
    """Not even if a packet takes it longer than the deadline."""
    destination = Destination(path)
    silence = 200.0
    found: list[tuple[str, int]] = []

    async def take_little() -> None:
        await destination.accepted.wait()
        taken = 0
        for _ in range(3):
            # More than goes at once over a stream that is no socket.
            taken += len(await receive_exactly(destination.channel, 300 * KIB))
            running_clock.jump(0.6 * silence)
        assert taken < MIB
        await receive_exactly(destination.channel, HEADER + MIB - taken)
        found.extend(await destination.packets(devices=1))
        await destination.say_success()

    with trio.fail_after(10 * silence):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(destination.run)
            nursery.start_soon(take_little)
            async with open_outgoing(
                path.open,
                {A: FdSource(files.memfd(bytes(2 * MIB)))},
                channels=1,
                deadlines=Deadlines(silence=silence),
                **path.options,
            ) as outgoing:
                await outgoing.migrate()
            nursery.cancel_scope.cancel()
    assert found == [(A, 1), (A, 2)]


async def test_the_same_is_said(files: Files, tmp_path: Directory) -> None:
    """In the same words, whoever sends."""
    said: dict[str, dict[str, list[str]]] = {}
    for kind in KINDS:
        events: list[TraceEvent] = []
        async with path_of(kind, tmp_path) as path:
            with trio.fail_after(100):
                async with (
                    open_incoming(
                        path.listeners,
                        {A: FdSink(files.memfd())},
                        ssl_context=path.server,
                    ) as incoming,
                    open_outgoing(
                        path.open,
                        {A: FdSource(files.memfd(bytes(MIB)))},
                        channels=1,
                        buffer_size=100_000,
                        trace=events.append,
                        **path.options,
                    ) as outgoing,
                ):
                    await outgoing.migrate()
                    await incoming.wait_complete()
        said[kind] = {
            subject: [str(each) for each in events if each.name.startswith(subject)]
            for subject in ("vfio_", "multifd_", "savevm_", "migrate_")
        }
    assert (
        said["memory"]["multifd_"][-1] == "multifd_send_thread_end channel 0 packets 12"
    )
    assert all(each == said["memory"] for each in said.values())
