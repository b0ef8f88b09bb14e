"""Contract: what holds however a channel is received, in a task or in a thread.

In tasks come connections in memory and with TLS, in threads plain sockets. These tests
run in real time, for threads do; they wait for what must happen, and not for time to
pass. Where a deadline is what is tested, the clock jumps.
"""

from __future__ import annotations

import array
import fcntl
import os
import random
import termios
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path as Directory
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, active_thread_count

from trio_vfio import (
    Deadlines,
    FdSink,
    Incoming,
    MigrationFailed,
    StateSink,
    TraceEvent,
    open_incoming,
)
from trio_vfio._link._reader import SocketReader, reader
from trio_vfio._link._stream import reset
from trio_vfio._receive._session import Session
from trio_vfio._wire._multifd import StateHeader
from trio_vfio._wire._return_path import ReturnPathType
from trio_vfio.testing import (
    ScriptedSource,
    SimulatedSink,
    config_packet,
    data_packet,
    state_packets,
)

from ..send.paths import KINDS, THREADED, Path, go_on, path_of

KIB, MIB = 1 << 10, 1 << 20
A, B, C = "0000:00:04.0/vfio", "0000:00:05.0/vfio", "0000:00:06.0/vfio"
FIRST = 64
"""Offset of a channel's first packet."""
HEADER = 288


@pytest.fixture(params=KINDS)
async def path(
    request: pytest.FixtureRequest, tmp_path: Directory
) -> AsyncGenerator[Path]:
    async with path_of(request.param, tmp_path) as path:
        yield path
        for stream in path.opened:
            await trio.aclose_forcefully(stream)


@pytest.fixture
def closing() -> Generator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Sink:
    """A descriptor as a device, which counts how often it was aborted."""

    precopy: bool | None = False

    def __init__(self, fd: int) -> None:
        self.fd = fd
        device = FdSink(fd)
        self.write, self.load_config = device.write, device.load_config
        self.finish = device.finish
        self.device = device
        self.began = 0
        self.aborts = 0

    async def begin(self) -> None:
        await self.device.begin()
        self.began += 1

    async def abort(self) -> None:
        self.aborts += 1
        await self.device.abort()


@attrs.define(eq=False)
class Files:
    """Descriptors for devices, closed by whoever has opened them."""

    closing: ExitStack

    def memfd(self) -> Sink:
        """Return a sink that takes everything at once."""
        fd = os.memfd_create("state")
        self.closing.callback(os.close, fd)
        return Sink(fd)

    def pipe(self) -> tuple[Sink, int]:
        """Return a sink that takes what fits into a pipe, and where to read that."""
        here, there = os.pipe()
        self.closing.callback(os.close, here)
        self.closing.callback(os.close, there)
        return Sink(there), here


@pytest.fixture
def files(closing: ExitStack) -> Files:
    return Files(closing)


def content(sink: Sink) -> bytes:
    return os.pread(sink.fd, 64 * MIB, 0)


async def connect(path: Path) -> trio.abc.Stream:
    """Open a connection as the source does."""
    stream = await path.open()
    if path.client is None:
        return stream
    return trio.SSLStream(stream, path.client, server_hostname="there")


async def connected(path: Path, channels: int = 1) -> ScriptedSource:
    return await ScriptedSource.connect(partial(connect, path), channels=channels)


async def until(what: Callable[[], bool]) -> None:
    """Wait for what is to happen in threads and in the system."""
    with trio.fail_after(100):
        while not what():  # noqa: ASYNC110 (a thread tells no event)
            await trio.sleep(0.001)


def session_of(incoming: Incoming) -> Session:
    return incoming._session


def running(incoming: Incoming, name: str = A) -> str | None:
    """Say which call of a device is under way."""
    return session_of(incoming).router.devices[name, 0].calls.running


def receiving(path: Path, sinks: Any, **options: Any) -> Any:
    return open_incoming(path.listeners, sinks, ssl_context=path.server, **options)


async def test_threads_are_for_plain_sockets(path: Path) -> None:
    """Else the other tests show nothing."""
    found: list[trio.abc.Stream] = []

    async def accept() -> None:
        found.append(await path.accept())

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            stream = await connect(path)
            if isinstance(stream, trio.SSLStream):
                await stream.do_handshake()
    assert isinstance(reader(found[0]), SocketReader) == (path.kind in THREADED)
    await trio.aclose_forcefully(found[0])


def spread(
    rng: random.Random, states: dict[str, list[bytes]], channels: int
) -> list[list[bytes]]:
    """Hand packets over as a source does: each device's in order, to any channel."""
    left = {name: list(packets) for name, packets in states.items()}
    over: list[list[bytes]] = [[] for _ in range(channels)]
    while any(left.values()):
        name = rng.choice([name for name, packets in left.items() if packets])
        rng.choice(over).append(left[name].pop(0))
    return over


@pytest.mark.parametrize(
    ("size", "count", "limits"),
    [
        (200_000, 40, {}),
        (3_000, 400, {}),
        (200_000, 40, {"max_queued_bytes": 300_000}),
        (3_000, 400, {"max_queued_bytes": 5_000, "max_session_bytes": 8_000}),
        (200_000, 30, {"max_queued_bytes": 0}),
    ],
    ids=["large", "small", "little-memory", "little-of-all", "only-what-is-due"],
)
async def test_a_whole_migration(
    path: Path, files: Files, size: int, count: int, limits: dict[str, int]
) -> None:
    """Every bit arrives, in order, whatever the channels do; and each is counted."""
    rng = random.Random(f"{size} {limits}")
    data = {
        name: [rng.randbytes(rng.choice([0, 1, size, rng.randrange(size)]))] * 1
        + [rng.randbytes(rng.randrange(size)) for _ in range(count)]
        for name in (A, B, C)
    }
    states = {
        name: state_packets(name, buffers, name.encode())
        for name, buffers in data.items()
    }
    over = spread(rng, states, 3)
    sinks: dict[str, StateSink] = {A: files.memfd(), B: files.memfd()}
    # Its calls are made in Trio's thread.
    simulated = SimulatedSink()
    events: list[TraceEvent] = []
    before = set(os.listdir("/proc/self/fd"))
    with trio.fail_after(100):
        async with receiving(
            path, sinks | {C: simulated}, digests=True, trace=events.append, **limits
        ) as incoming:
            source = await connected(path, 3)
            async with trio.open_nursery() as nursery:
                await source.begin(A, B, C)
                for channel, packets in enumerate(over):
                    nursery.start_soon(source.packets, channel, *packets)
                await source.switch_over()
                await source.end()
            await source.close()
            result = await incoming.wait_complete()
    for name in (A, B):
        sink = sinks[name]
        assert isinstance(sink, Sink)
        assert content(sink) == b"".join(data[name])
        assert (sink.device.config, sink.aborts) == (name.encode(), 0)
    assert simulated.loaded == b"".join(data[C])
    for device in result.devices:
        assert device.buffers == len(data[device.idstr])
        assert device.data_bytes == len(b"".join(data[device.idstr]))
        progress = incoming.devices[device.idstr]
        assert (progress.queued_bytes, progress.waiting_for) == (0, None)
        _check_events(device.idstr, [len(each) for each in data[device.idstr]], events)
    for channel, packets in zip(result.channels, over, strict=True):
        assert channel.packets == channel.device_state_packets == len(packets)
        assert channel.bytes == FIRST + sum(map(len, packets))
    assert active_thread_count() == 0
    memory = session_of(incoming)._memory
    assert (memory.used, memory.kept) == (0, 0)
    path.opened.clear()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_packets_of_a_channel_come_in_its_order(path: Path, files: Files) -> None:
    """One without data is whole with its header, which one read may bring with more."""
    events: list[TraceEvent] = []
    with trio.fail_after(100):
        async with receiving(path, {A: files.memfd()}, trace=events.append) as incoming:
            source = await connected(path)
            # Before anybody reads them, so that they are there together.
            await source.packets(0, *state_packets(A, [b"a", b"", b"", b"b"]))
            await source.begin(A)
            await source.switch_over()
            await source.end()
            await source.close()
            await incoming.wait_complete()
    came = [each for each in events if each.name.endswith("buffer_incoming")]
    assert [each.arguments[1] for each in came] == [0, 1, 2, 3, 4]


def _check_events(name: str, sizes: list[int], events: list[TraceEvent]) -> None:
    """Check that a device's events are in the order of QEMU's."""
    own = [e for e in events if e.arguments and e.arguments[0] == name]
    said = [str(e).removeprefix("vfio_load_") for e in own]
    words = {
        word: [each for each in own if each.name.endswith(word)]
        for word in ("buffer_incoming", "load_start", "load_end")
    }
    with_data = [idx for idx, size in enumerate(sizes) if size]
    for word in ("load_start", "load_end"):
        assert [each.arguments[1] for each in words[word]] == with_data
    assert sorted(int(str(e.arguments[1])) for e in words["buffer_incoming"]) == list(
        range(len(sizes) + 1)
    )
    place = {str(each): number for number, each in enumerate(own)}
    for idx in with_data:
        steps = [
            place[f"vfio_load_state_device_buffer_{word}  ({name}) idx {idx}"]
            for word in ("incoming", "load_start", "load_end")
        ]
        assert steps == sorted(steps)
    starts = [place[str(each)] for each in words["load_start"]]
    ends = [place[str(each)] for each in words["load_end"]]
    assert all(end < start for end, start in zip(ends, starts[1:], strict=False))
    last = max(place[str(each)] for each in words["buffer_incoming"])
    # QEMU says so if it knows by then that this was the last.
    for number, each in enumerate(own):
        if each.name.endswith("device_buffer_end"):
            assert number > max(last, *ends)
    names = [each.split()[0] for each in said]
    assert names.index("device_config_state_start") > max(last, *ends)
    # "state" is said of sections of main.
    assert [each for each in names if "buffer" not in each and each != "state"] == [
        "bufs_thread_start",
        "device_config_state_start",
        "device_config_state_end",
        "bufs_thread_end",
        "cleanup",
    ]


async def test_nothing_is_written_before_the_switchover(
    path: Path, files: Files
) -> None:
    sink = files.memfd()
    data = [os.urandom(100_000) for _ in range(3)]
    packets = state_packets(A, data)
    size = sum(len(each) - HEADER for each in packets)
    with trio.fail_after(100):
        async with receiving(path, {A: sink}) as incoming:
            source = await connected(path)
            await source.begin(A)
            await source.packets(0, *packets)
            await until(lambda: incoming.devices[A].queued_bytes == size)
            (channel,) = session_of(incoming).router.channels.values()
            await until(lambda: not _inside(incoming))
            assert channel.packets == len(packets)
            assert content(sink) == b""
            assert running(incoming) is None
            await source.switch_over()
            await source.end()
            await source.close()
            await incoming.wait_complete()
    assert content(sink) == b"".join(data)


def _inside(incoming: Incoming) -> bool:
    """Whether a channel is amid a packet."""
    return any(
        channel.decoder is not None and channel.decoder.inside_packet
        for channel in session_of(incoming).router.channels.values()
    )


async def test_channels_wait_for_memory_before_the_switchover(
    path: Path, files: Files
) -> None:
    """All of them, even that which brings what will be due."""
    sink = files.memfd()
    data = [os.urandom(100) for _ in range(5)]
    packets = state_packets(A, data)
    with trio.fail_after(100):
        async with receiving(path, {A: sink}, max_queued_bytes=150) as incoming:
            source = await connected(path, 2)
            await source.begin(A)
            await source.packets(0, packets[1], packets[2], packets[4])
            await until(lambda: "room for packet 2" in incoming.waiting_for())
            await source.packets(1, packets[0], packets[3], packets[5])
            await until(lambda: "room for packet 0" in incoming.waiting_for())
            assert incoming.devices[A].queued_bytes == 100
            await source.switch_over()
            await source.end()
            await source.close()
            await incoming.wait_complete()
    assert content(sink) == b"".join(data)


async def test_a_packet_that_becomes_due_has_memory_while_the_device_still_writes(
    path: Path, files: Files
) -> None:
    sink, pipe = files.pipe()
    first = bytes(MIB)
    with trio.fail_after(100):
        async with receiving(path, {A: sink}, max_queued_bytes=100) as incoming:
            source = await connected(path, 2)
            await source.begin(A)
            await source.packets(0, data_packet(A, 2, b"2" * 100))
            await until(lambda: incoming.devices[A].queued_bytes == 100)
            await source.packets(1, data_packet(A, 1, b"1" * 100))
            await until(lambda: "room for packet 1" in incoming.waiting_for())
            await source.switch_over()
            async with trio.open_nursery() as nursery:
                packets = data_packet(A, 0, first), config_packet(A, 3)
                nursery.start_soon(source.packets, 0, *packets)
                # It is not written, for nobody reads the pipe.
                await until(lambda: incoming.devices[A].queued_bytes == MIB + 200)
                assert incoming.devices[A].buffers == 0
                await source.end()
                got = await trio.to_thread.run_sync(_read, pipe, MIB + 200)
            await source.close()
            await incoming.wait_complete()
    assert got == first + b"1" * 100 + b"2" * 100


def _read(fd: int, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        got += os.read(fd, count - len(got))
    return bytes(got)


Stage = Callable[[Incoming, ScriptedSource], Awaitable[None]]


async def failure(
    path: Path, sinks: dict[str, Sink], stage: Stage, **options: Any
) -> list[str]:
    """Let a source do something for which the migration fails; return the faults."""
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            with pytest.raises(MigrationFailed) as failed:
                async with receiving(path, sinks, **options) as incoming:
                    source = await connected(path)
                    nursery.start_soon(source.hang_up)
                    await source.begin(*sinks)
                    await source.switch_over()
                    await stage(incoming, source)
                    await incoming.wait_complete()
    for sink in sinks.values():
        assert sink.aborts == sink.began
    assert active_thread_count() == 0
    return [str(each) for each in failed.value.exceptions]


LARGE = data_packet(A, 0, bytes(100_000))
TOO_LARGE = StateHeader(A, 1, (16 << 20) + 1 - 12).encode()


@pytest.mark.parametrize("after", [b"", LARGE], ids=["first", "later"])
@pytest.mark.parametrize(
    ("packets", "reason"),
    [
        ([b"QEVM\0\0\0\1\0\0\0\x40"], "packet with magic 0x5145564d"),
        ([data_packet(A, 5), data_packet(A, 5)], f"packet 5 of {A} was sent twice"),
        (
            [config_packet(A, 7), data_packet(A, 8, b"x")],
            f"packet 8 of {A} is data beyond the config, 7",
        ),
        ([data_packet(B, 0)], f"packet 0 of {B} of a device that was never announced"),
        (
            [TOO_LARGE],
            f"device-state packet of {A} with a payload of {(16 << 20) + 1} bytes",
        ),
        (
            [StateHeader(A, 0xFFFF_FFFF, 0).encode()],
            f"device-state packet of {A} without an index",
        ),
    ],
)
async def test_what_breaks_the_protocol_is_refused_in_the_same_words(
    path: Path, files: Files, after: bytes, packets: list[bytes], reason: str
) -> None:
    async def stage(incoming: Incoming, source: ScriptedSource) -> None:
        await source.packets(0, *filter(None, [after]), *packets)

    offset = FIRST + len(after) + sum(map(len, packets[:-1]))
    assert await failure(path, {A: files.memfd()}, stage) == [
        f"channel 0: {reason} (at byte {offset})"
    ]


async def test_a_packet_that_was_written_is_refused(path: Path, files: Files) -> None:
    async def stage(incoming: Incoming, source: ScriptedSource) -> None:
        await source.packets(0, LARGE)
        await until(lambda: len(content(sink)) == 100_000)
        await source.packets(0, LARGE)

    sink = files.memfd()
    assert await failure(path, {A: sink}, stage) == [
        f"channel 0: packet 0 of {A} was sent twice (at byte {FIRST + len(LARGE)})"
    ]


@pytest.mark.parametrize("size", [100, 200, HEADER + 1000])
async def test_a_channel_that_ends_inside_a_packet(
    path: Path, files: Files, size: int
) -> None:
    async def stage(incoming: Incoming, source: ScriptedSource) -> None:
        await source.packets(0, LARGE, data_packet(A, 1, bytes(50_000))[:size])
        await source.channels[0].aclose()

    assert await failure(path, {A: files.memfd()}, stage) == [
        f"channel 0: channel ends inside the packet (at byte {FIRST + len(LARGE)})"
    ]


async def test_a_channel_that_breaks_inside_a_packet(path: Path, files: Files) -> None:
    async def broken(incoming: Incoming, source: ScriptedSource) -> None:
        packet = data_packet(A, 1, bytes(50_000))
        await source.packets(0, LARGE, packet[: HEADER + 1000])
        await until(lambda: _taken(incoming) == FIRST + len(LARGE) + HEADER + 1000)
        await reset(source.channels[0])

    sink = files.memfd()
    (fault,) = await failure(path, {A: sink}, broken)
    if path.kind == "unix":
        # It can only end.
        end = f"channel ends inside the packet (at byte {FIRST + len(LARGE)})"
        assert fault == f"channel 0: {end}"
    else:
        assert fault.startswith("channel 0: broke inside a packet: ")


async def test_a_peer_that_says_little_is_not_silent(
    path: Path, files: Files, running_clock: MockClock
) -> None:
    """Not even if a packet takes it longer than the deadline."""
    silence = 200.0
    packet = data_packet(A, 0, os.urandom(1000))
    sink = files.memfd()
    with trio.fail_after(10 * silence):
        deadlines = Deadlines(silence=silence)
        async with receiving(path, {A: sink}, deadlines=deadlines) as incoming:
            source = await connected(path)
            await source.begin(A)
            await source.switch_over()
            await source.end()
            for at in range(3):
                await source.packets(0, packet[at : at + 1])
                await until(partial(_has_taken, incoming, FIRST + at + 1))
                running_clock.jump(0.6 * silence)
            await source.packets(0, packet[3:], config_packet(A, 1))
            await source.close()
            await incoming.wait_complete()
    assert content(sink) == packet[HEADER:]


@pytest.mark.parametrize("size", [0, 100, HEADER + 1000])
async def test_a_mute_peer_is_silent(
    path: Path, files: Files, running_clock: MockClock, size: int
) -> None:
    async def stage(incoming: Incoming, source: ScriptedSource) -> None:
        await source.end()
        await source.packets(0, LARGE, data_packet(A, 1, bytes(50_000))[:size])
        await until(partial(_has_taken, incoming, FIRST + len(LARGE) + size))
        await until(lambda: session_of(incoming).router.main_ended)
        await go_on(running_clock)

    deadlines = Deadlines(silence=5)
    faults = await failure(path, {A: files.memfd()}, stage, deadlines=deadlines)
    rest = f"channel 0: the rest of the packet at byte {FIRST + len(LARGE)}, "
    assert faults == [
        "silence deadline of 5 s passed: waiting for "
        f"{rest if size else ''}{A}: packet 1"
    ]


# Cancels. Each stage returns when the session is where it is to be cancelled.

CancelStage = Callable[[Incoming, ScriptedSource, trio.Nursery, int], Awaitable[None]]


async def idle(
    incoming: Incoming, source: ScriptedSource, nursery: trio.Nursery, pipe: int
) -> None:
    """A channel that brings nothing more."""
    await source.packets(0, data_packet(A, 0, b"x"))
    await until(lambda: incoming.devices[A].data_bytes == 1)
    await until(lambda: running(incoming) is None)


def _taken(incoming: Incoming) -> int:
    return sum(channel.bytes for channel in incoming.result().channels)


def _has_taken(incoming: Incoming, count: int) -> bool:
    return _taken(incoming) == count


async def inside_a_packet(
    incoming: Incoming, source: ScriptedSource, nursery: trio.Nursery, pipe: int
) -> None:
    await source.packets(0, data_packet(A, 0, bytes(50_000))[:-1])
    await until(lambda: _taken(incoming) == FIRST + HEADER + 49_999)


async def while_it_comes(
    incoming: Incoming, source: ScriptedSource, nursery: trio.Nursery, pipe: int
) -> None:
    """More often than a thread looks up by itself."""

    async def trickle() -> None:
        await source.packets(0, StateHeader(A, 0, 16 * MIB - 12).encode())
        while True:
            await source.packets(0, bytes(100))
            await trio.sleep(0.002)

    nursery.start_soon(_until_broken, trickle)
    await until(lambda: _taken(incoming) > 10_000)


async def for_the_next_packet(
    incoming: Incoming, source: ScriptedSource, nursery: trio.Nursery, pipe: int
) -> None:
    """A device whose thread lingers for it."""

    async def trickle() -> None:
        idx = 0
        while True:
            await source.packets(0, data_packet(A, idx, b"x"))
            idx += 1
            await trio.sleep(0.02)

    nursery.start_soon(_until_broken, trickle)
    await until(lambda: incoming.devices[A].data_bytes > 3)
    await until(
        lambda: (
            running(incoming) == "write" and incoming.devices[A].waiting_for is not None
        )
    )


async def in_a_write(
    incoming: Incoming, source: ScriptedSource, nursery: trio.Nursery, pipe: int
) -> None:
    """A device that takes nothing."""
    await source.packets(0, data_packet(A, 0, bytes(MIB)))
    size = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    held = array.array("i", [0])

    def is_full() -> bool:
        fcntl.ioctl(pipe, termios.FIONREAD, held)
        return held[0] == size

    await until(is_full)


async def for_room(
    incoming: Incoming, source: ScriptedSource, nursery: trio.Nursery, pipe: int
) -> None:
    """A channel that has more than there is memory for."""
    await in_a_write(incoming, source, nursery, pipe)
    await source.packets(0, data_packet(A, 2, b"x"))
    await until(lambda: "room for packet 2" in incoming.waiting_for())


async def for_room_in_a_thread(
    incoming: Incoming, source: ScriptedSource, nursery: trio.Nursery, pipe: int
) -> None:
    """The same, in the short time before a task waits."""
    await in_a_write(incoming, source, nursery, pipe)
    (channel,) = session_of(incoming).router.channels.values()
    packets = channel.packets
    await source.packets(0, data_packet(A, 2, b"x"))
    await until(lambda: channel.packets > packets)


async def _until_broken(function: Callable[[], Awaitable[None]]) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await function()


@pytest.mark.parametrize(
    "stage",
    [
        idle,
        inside_a_packet,
        while_it_comes,
        for_the_next_packet,
        in_a_write,
        for_room,
        for_room_in_a_thread,
    ],
    ids=lambda stage: stage.__name__,
)
async def test_a_cancel(path: Path, files: Files, stage: CancelStage) -> None:
    """All ends without a deadline; devices are aborted once, and the source is told."""
    sink, pipe = files.pipe()
    other = files.memfd()
    before = set(os.listdir("/proc/self/fd"))
    heard: list[tuple[ReturnPathType, int | None]] = []

    async def listen(source: ScriptedSource) -> None:
        heard.extend(await source.hang_up())

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with receiving(
                    path,
                    {A: sink, B: other},
                    max_queued_bytes=MIB,
                    device_grace=None,
                    # None may be what ends it.
                    deadlines=Deadlines(handshake=None, silence=None),
                ) as incoming:
                    source = await connected(path)
                    nursery.start_soon(listen, source)
                    await source.begin(A, B, return_path=True)
                    await source.switch_over()
                    # Both devices have begun then; a channel may be ahead of main.
                    await until(lambda: session_of(incoming).router.started)
                    await stage(incoming, source, nursery, pipe)
                    scope.cancel()
                    await trio.sleep_forever()
            assert active_thread_count() == 0
            assert incoming.result().status == "cancelled"
            assert (sink.aborts, other.aborts) == (1, 1)
            # They are as they were.
            assert os.get_blocking(sink.fd)
            for stream in path.opened[1:]:
                await trio.aclose_forcefully(stream)
    assert heard[-1] == (ReturnPathType.SHUT, 1)
    await trio.aclose_forcefully(path.opened[0])
    assert set(os.listdir("/proc/self/fd")) == before
