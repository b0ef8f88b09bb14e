"""Collaboration: what a cancel and a fault leave behind, at every stage.

The invariant: when the block has ended, no device call is under way, every
device that began was aborted exactly once, and the source was told at once.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vfio import (
    Deadlines,
    DeviceError,
    Incoming,
    MigrationFailed,
    SessionState,
    StateSink,
    open_incoming,
)
from trio_vfio._wire._return_path import ReturnPathType
from trio_vfio.testing import (
    ScriptedSource,
    SimulatedSink,
    link,
    state_packets,
)

A, B, C, D = (f"0000:00:0{n}.0/vfio" for n in (4, 5, 6, 7))
PONG = (ReturnPathType.PONG, 1)
SHUT_1 = (ReturnPathType.SHUT, 1)


class Careless:
    """A device that takes everything and remembers nothing."""

    @property
    def precopy(self) -> bool | None:
        return None

    async def begin(self) -> None: ...
    async def write(self, buffers: Iterator[memoryview]) -> None: ...
    async def load_config(self, blob: bytes) -> None: ...
    async def finish(self) -> None: ...
    async def abort(self) -> None: ...


class Told:
    """Notes when the source hears the last word."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.frames: list[tuple[ReturnPathType, int | None]] = []

    async def listen(self, source: ScriptedSource) -> None:
        """Listen until the connection is closed, and close them all."""
        data = b""
        while got := await source.main.receive_some():
            data += bytes(got)
            if b"\0\1\0\4" in data:
                self.at = trio.current_time()
        await source.close()


async def cancelled_at(
    stage: Callable[[ScriptedSource], Awaitable[None]],
    device: SimulatedSink,
    seconds: float,
    *,
    grace: float | None = 10,
) -> tuple[float, float | None, Incoming]:
    """Cancel a migration after *seconds*; return when it ended and SHUT came."""
    told = Told()
    connect, there = link()
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_incoming(
                there, {A: device}, device_grace=grace
            ) as incoming:
                source = await ScriptedSource.connect(connect, channels=1)
                nursery.start_soon(told.listen, source)
                await source.begin(A, return_path=True)
                await wait_all_tasks_blocked()
                await stage(source)
                await trio.sleep(seconds)
                scope.cancel(reason="the test says so")
                await incoming.wait_complete()
        assert scope.cancelled_caught
        ended = trio.current_time()
    assert incoming.state.value is SessionState.CANCELLED
    assert incoming.result().errors == ()
    return ended, told.at, incoming


async def idle(source: ScriptedSource) -> None:
    """Leave the loader without the packet it waits for."""
    await source.switch_over()
    await source.packets(0, *state_packets(A, [b"a", b"b"])[1:])


async def loading(source: ScriptedSource) -> None:
    """Give the loader all it can want."""
    await source.switch_over()
    await source.packets(0, *state_packets(A, [b"a", b"b", b"c"]))
    await source.end()


async def before_start(source: ScriptedSource) -> None:
    """Let packets queue that must not be loaded yet."""
    await source.packets(0, *state_packets(A, [b"a"]))


def names(device: SimulatedSink) -> list[str]:
    """Return the calls of *device*, in order."""
    return [call.name for call in device.calls]


async def test_cancel_while_the_loader_waits_for_a_packet(
    autojump_clock: MockClock,
) -> None:
    """It leaves at once: nothing has to be seen to end."""
    device = SimulatedSink(seconds_per_call=2)
    ended, told, _ = await cancelled_at(idle, device, 3)
    assert (ended, told, device.aborted_at) == (3, 3, 3)
    assert names(device) == ["begin", "abort"]


async def test_cancel_before_the_switchover(autojump_clock: MockClock) -> None:
    """What is queued is dropped; the device has begun, so it is aborted."""
    device = SimulatedSink(seconds_per_call=2)
    ended, told, _ = await cancelled_at(before_start, device, 3)
    assert (ended, told) == (3, 3)
    assert names(device) == ["begin", "abort"]


async def test_cancel_with_a_write_in_flight(autojump_clock: MockClock) -> None:
    """The write is waited for, the source is told meanwhile, no buffer follows."""
    device = SimulatedSink(seconds_per_call=2)
    ended, told, incoming = await cancelled_at(loading, device, 3)
    assert told == 3
    assert ended == device.aborted_at == 4
    assert names(device) == ["begin", "write", "write", "abort"]
    assert device.loaded == b"ab"
    assert incoming.result().devices[0].data_bytes <= 2


async def test_cancel_during_config(autojump_clock: MockClock) -> None:
    """The config is waited for, and the state never accepted."""
    device = SimulatedSink(seconds_per_call=2)
    ended, told, _ = await cancelled_at(loading, device, 7)
    assert (ended, told, device.aborted_at) == (8, 7, 8)
    assert names(device)[-2:] == ["load_config", "abort"]
    assert not device.finished


async def test_cancel_with_a_write_that_only_abort_ends(
    autojump_clock: MockClock,
) -> None:
    """The device gets its grace, then one abort; the write's error is its echo."""
    device = SimulatedSink(hangs_in="write")
    ended, told, _ = await cancelled_at(loading, device, 3)
    assert (ended, told, device.aborted_at) == (13, 3, 13)
    assert names(device) == ["begin", "write", "abort"]


async def test_cancel_with_a_call_that_outlasts_even_abort(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread cannot be left behind: the wait goes on and says so."""
    device = SimulatedSink(hangs_in="load_config", seconds_after_abort=25)
    with caplog.at_level(logging.WARNING, "trio_vfio"):
        ended, _, _ = await cancelled_at(loading, device, 3)
    assert ended == 3 + 10 + 25
    waiting = f"{A}: still waiting for load_config to end"
    assert caplog.messages == [waiting, waiting]


async def test_without_a_grace_a_call_is_waited_for(autojump_clock: MockClock) -> None:
    """``device_grace=None``: the abort comes only once the call has ended."""
    device = SimulatedSink(seconds_per_call=100)
    ended, told, _ = await cancelled_at(loading, device, 3, grace=None)
    assert (ended, told, device.aborted_at) == (100, 3, 100)


async def test_cancel_while_the_device_begins(autojump_clock: MockClock) -> None:
    """A device that hangs before it is ready can be aborted too."""
    device = SimulatedSink(hangs_in="begin")
    ended, told, _ = await cancelled_at(before_start, device, 3)
    assert (ended, told) == (13, 3)
    assert names(device) == ["begin", "abort"]


async def test_one_device_of_four_fails(autojump_clock: MockClock) -> None:
    """The siblings stop at their next buffer; the completed one is aborted too."""
    devices = {
        A: SimulatedSink(seconds_per_call=2),
        B: SimulatedSink(seconds_per_call=5),
        C: SimulatedSink(seconds_per_call=6, fails={"write": errno.ENOSPC}),
        D: SimulatedSink(seconds_per_call=1),
    }
    connect, there = link()
    told = Told()
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed) as failed:
            async with open_incoming(there, devices) as incoming:
                source = await ScriptedSource.connect(connect, channels=4)
                nursery.start_soon(told.listen, source)
                await source.begin(A, B, C, D, return_path=True)
                await source.switch_over()
                await source.packets(0, *state_packets(A, [b"x"] * 9))
                await source.packets(1, *state_packets(B, [b"x"] * 9))
                await source.packets(2, *state_packets(C, [b"x"] * 9))
                await source.packets(3, *state_packets(D, [b"x"] * 2))
                await source.end()
                await incoming.wait_complete()
    assert len(failed.value.exceptions) == 1, list(map(str, failed.value.exceptions))
    (fault,) = failed.value.exceptions
    assert isinstance(fault, DeviceError)
    assert (fault.idstr, fault.idx, fault.errno) == (C, 0, errno.ENOSPC)
    assert str(fault) == (
        f"{C}: write of buffer 0 at byte 0: ENOSPC: No space left on device"
    )
    assert told.at == 6
    assert [each.aborted_at for each in devices.values()] == [6, 10, 6, 6]
    assert devices[D].finished
    assert [each.status for each in failed.value.result.devices] == ["failed"] * 4
    assert [each.errors for each in failed.value.result.devices] == [
        (), (), (str(fault),), (),
    ]  # fmt: skip
    assert failed.value.result.errors == (str(fault),)


async def test_faults_that_come_before_a_device_is_aborted_join_the_group(
    autojump_clock: MockClock,
) -> None:
    devices = {
        A: SimulatedSink(seconds_per_call=1, fails={"write": errno.EIO}),
        B: SimulatedSink(seconds_per_call=5, fails={"write": errno.ENODEV}),
        C: SimulatedSink(hangs_in="write"),
    }
    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, devices) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(A, B, C)
            await source.switch_over()
            for name in devices:
                await source.packets(0, *state_packets(name, [b"x"]))
            await incoming.wait_complete()
    assert [type(each) for each in failed.value.exceptions] == [DeviceError] * 2
    assert [str(each).partition(": E")[2][:6] for each in failed.value.exceptions] == [
        "IO: In",
        "NODEV:",
    ]
    assert [each.aborted_at for each in devices.values()] == [1, 5, 11]


@pytest.mark.parametrize("call", ["begin", "write", "load_config", "finish"])
async def test_each_call_that_fails_is_named(
    autojump_clock: MockClock, call: str
) -> None:
    class Refuses:
        precopy = None

        def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
            async def method(*args: object) -> None:
                if name == "write":
                    for _ in args[0]:  # type: ignore[attr-defined]
                        pass
                if name == call:
                    raise OSError(errno.EIO, "Input/output error")

            return method

    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, {A: cast("StateSink", Refuses())}) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(A)
            await loading(source)
            await incoming.wait_complete()
    assert len(failed.value.exceptions) == 1, list(map(str, failed.value.exceptions))
    (fault,) = failed.value.exceptions
    assert isinstance(fault, DeviceError)
    assert (fault.operation, fault.errno) == (call, errno.EIO)
    assert isinstance(fault.__cause__, OSError)


async def test_an_abort_that_fails_is_a_fault_too(autojump_clock: MockClock) -> None:
    """The device is in an unknown state then, which its user must hear."""
    device = SimulatedSink(fails={"write": errno.EIO, "abort": errno.ENXIO})
    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, {A: device}) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(A)
            await loading(source)
            await incoming.wait_complete()
    assert [str(each) for each in failed.value.exceptions] == [
        f"{A}: write of buffer 0 at byte 0: EIO: Input/output error",
        f"{A}: abort: ENXIO: No such device or address",
    ]


async def test_a_device_that_returns_before_it_has_taken_all(
    autojump_clock: MockClock,
) -> None:
    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, {A: Careless()}) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(A)
            await loading(source)
            await incoming.wait_complete()
    assert len(failed.value.exceptions) == 1, list(map(str, failed.value.exceptions))
    (fault,) = failed.value.exceptions
    assert str(fault) == f"{A}: write at byte 0: returned before all buffers were taken"


async def test_a_device_with_tasks_of_its_own_may_fail_and_be_cancelled_at_once(
    autojump_clock: MockClock,
) -> None:
    """What it raises in a group with the cancel is its fault all the same."""

    class Busy(Careless):
        async def begin(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise OSError(errno.EIO, "Input/output error")

        async def abort(self) -> None:
            raise AssertionError("begin has failed, so there is nothing to abort")

    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        sinks: dict[str, StateSink] = {A: Busy(), B: SimulatedSink()}
        async with open_incoming(there, sinks) as incoming:
            source = await ScriptedSource.connect(connect, channels=1)
            await source.begin(A)
            await wait_all_tasks_blocked()
            await source.channels[0].send_all(b"garbage" * 10)
            await incoming.wait_complete()
    assert [str(each) for each in failed.value.exceptions][1:] == [
        f"{A}: begin: EIO: Input/output error"
    ]


async def test_what_the_block_raises_leaves_as_it_is(
    autojump_clock: MockClock,
) -> None:
    """Bare, with its own type, after all devices were aborted."""
    device = SimulatedSink(seconds_per_call=2)
    connect, there = link()
    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyError, match="mine"):
            async with open_incoming(there, {A: device}):
                source = await ScriptedSource.connect(connect)
                nursery.start_soon(source.hang_up)
                await source.begin(A)
                await loading(source)
                await trio.sleep(1)
                raise KeyError("mine")
    assert device.aborted_at == trio.current_time() == 2


async def test_leaving_the_block_early_aborts(autojump_clock: MockClock) -> None:
    device = SimulatedSink(seconds_per_call=2)
    connect, there = link()
    async with trio.open_nursery() as nursery:
        async with open_incoming(there, {A: device}) as incoming:
            source = await ScriptedSource.connect(connect)
            nursery.start_soon(source.hang_up)
            await source.begin(A)
            await loading(source)
            await trio.sleep(1)
        assert device.aborted_at == trio.current_time() == 2
    assert incoming.state.value is SessionState.CANCELLED


async def test_before_shut_has_the_last_word(autojump_clock: MockClock) -> None:
    """If it raises, the source hears of failure and every device is aborted."""
    device = SimulatedSink()
    connect, there = link()

    async def refuse(result: object) -> None:
        assert device.finished
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        async with open_incoming(there, {A: device}, before_shut=refuse) as incoming:
            source = await ScriptedSource.connect(connect, channels=1)
            await source.begin(A, return_path=True)
            await loading(source)
            await incoming.wait_complete()
    assert device.aborted_at is not None
    assert await source.heard() == [PONG, SHUT_1]
    assert incoming.state.value is SessionState.FAILED
    assert incoming.result().errors == ("OSError: [Errno 28] No space left on device",)


async def test_a_source_that_cannot_hear_of_success_makes_it_a_failure(
    autojump_clock: MockClock,
) -> None:
    """It resumes its guest, so the device must not run here as well."""
    device = SimulatedSink(seconds_per_call=1)
    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, {A: device}) as incoming:
            source = await ScriptedSource.connect(connect, channels=1)
            await source.begin(A, return_path=True)
            await loading(source)
            await trio.sleep(2)
            await source.main.aclose()
            await incoming.wait_complete()
    assert "main: the return path broke" in str(failed.value.exceptions[0])
    assert device.finished
    assert device.aborted_at is not None


async def test_after_success_nothing_fails_the_migration(
    autojump_clock: MockClock,
) -> None:
    """Neither garbage on a channel nor leaving the block by an exception."""
    device = SimulatedSink()
    connect, there = link()
    with pytest.raises(KeyError):
        async with open_incoming(there, {A: device}) as incoming:
            source = await ScriptedSource.connect(connect, channels=1)
            await source.begin(A, return_path=True)
            await loading(source)
            await incoming.wait_complete()
            await source.packets(0, b"garbage" * 100)
            await wait_all_tasks_blocked()
            raise KeyError
    assert incoming.state.value is SessionState.COMPLETED
    assert device.aborted_at is None


async def test_a_fault_cancels_a_block_that_waits_for_something_else(
    autojump_clock: MockClock,
) -> None:
    connect, there = link()
    with pytest.raises(MigrationFailed):
        async with open_incoming(there, {A: SimulatedSink()}):
            source = await ScriptedSource.connect(connect)
            await source.packets(0, b"garbage" * 100)
            await source.begin(A)
            await trio.sleep_forever()


async def test_wait_complete_after_the_block_was_left(
    autojump_clock: MockClock,
) -> None:
    """Without a fault there is still a reason."""
    _, there = link()
    async with open_incoming(there, {A: SimulatedSink()}) as incoming:
        pass
    with pytest.raises(MigrationFailed) as failed:
        await incoming.wait_complete()
    assert [str(each) for each in failed.value.exceptions] == [
        "the migration was cancelled"
    ]


async def test_a_block_that_falls_over_the_cancel_does_not_hide_the_fault(
    autojump_clock: MockClock,
) -> None:
    connect, there = link()
    with pytest.raises(ValueError, match="cleanup") as raised:
        async with open_incoming(there, {A: SimulatedSink()}) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.main.send_all(b"QEVM\0\0\0\2")
            try:
                await incoming.wait_complete()
            finally:
                raise ValueError("cleanup")
    assert isinstance(raised.value.__context__, MigrationFailed)


async def test_an_abort_that_ends_a_write_without_an_error_is_no_fault(
    autojump_clock: MockClock,
) -> None:
    """Nor is it one that the device has not taken all."""

    class Quiet(Careless):
        def __init__(self) -> None:
            self.aborted = trio.Event()

        async def write(self, buffers: Iterator[memoryview]) -> None:
            next(buffers)
            with trio.CancelScope(shield=True):
                await self.aborted.wait()

        async def abort(self) -> None:
            self.aborted.set()

    connect, there = link()
    async with open_incoming(there, {A: Quiet()}, device_grace=1) as incoming:
        source = await ScriptedSource.connect(connect)
        await source.begin(A)
        await loading(source)
        await trio.sleep(1)
    assert incoming.result().errors == ()
    assert incoming.state.value is SessionState.CANCELLED


async def test_without_any_grace_the_waiting_is_still_reported_slowly(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    device = SimulatedSink(hangs_in="write", seconds_after_abort=2.5)
    ended, _, _ = await cancelled_at(loading, device, 3, grace=0)
    assert (ended, device.aborted_at) == (5.5, 3)
    assert len(caplog.messages) == 2


async def test_before_shut_may_take_its_time(autojump_clock: MockClock) -> None:
    """Nothing is expected of the source meanwhile, so no deadline runs."""
    connect, there = link()

    async def slow(result: object) -> None:
        await trio.sleep(1000)

    deadlines = Deadlines(silence=1, switchover=1)
    async with open_incoming(
        there, {A: SimulatedSink()}, before_shut=slow, deadlines=deadlines
    ) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(A, return_path=True)
        await loading(source)
        result = await incoming.wait_complete()
        assert (trio.current_time(), result.seconds) == (1000, 0)
        await source.close()


async def test_a_fault_during_before_shut_is_what_is_reported(
    autojump_clock: MockClock,
) -> None:
    """Not what the hook makes of the cancel."""
    connect, there = link()

    async def falls_over(result: object) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        raise OSError(errno.ECANCELED, "Operation canceled")

    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(
            there, {A: SimulatedSink()}, before_shut=falls_over
        ) as incoming:
            source = await ScriptedSource.connect(connect, channels=1)
            await source.begin(A, return_path=True)
            await loading(source)
            await wait_all_tasks_blocked()
            await source.packets(0, b"garbage" * 100)
            await incoming.wait_complete()
    (fault,) = failed.value.exceptions
    assert str(fault).startswith("channel 0: packet with magic")


async def test_wait_complete_raises_where_the_cancel_does_not_reach(
    autojump_clock: MockClock,
) -> None:
    connect, there = link()
    with pytest.raises(MigrationFailed) as outside:
        async with open_incoming(there, {A: SimulatedSink()}) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.main.send_all(b"QEVM\0\0\0\2")
            with trio.CancelScope(shield=True):
                with pytest.raises(MigrationFailed) as inside:
                    await incoming.wait_complete()
    assert inside.value.exceptions == outside.value.exceptions


async def test_a_mistake_in_a_device_is_not_hidden(autojump_clock: MockClock) -> None:
    """It leaves as what it is, once the devices are aborted and the source told."""

    class Unfinished(Careless):
        @property
        def precopy(self) -> bool | None:
            raise ZeroDivisionError

    device = SimulatedSink()
    connect, there = link()
    sinks: dict[str, StateSink] = {A: device}

    def make(idstr: str, instance_id: int) -> StateSink:
        return sinks.get(idstr) or Unfinished()

    with pytest.RaisesGroup(pytest.RaisesGroup(ZeroDivisionError)):
        async with open_incoming(there, make) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(A, B, return_path=True)
            await incoming.wait_complete()
    assert device.aborted_at is not None
    assert await source.heard() == [PONG, SHUT_1]
    assert incoming.state.value is SessionState.FAILED


async def test_what_the_block_raises_with_a_cancel_from_outside(
    autojump_clock: MockClock,
) -> None:
    _, there = link()
    with pytest.raises(ValueError), trio.move_on_after(1):
        async with open_incoming(there, {A: SimulatedSink()}):
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError


@attrs.define(eq=False)
class AtLastWord(trio.abc.Stream):
    """Passes everything on, and does *this* before SHUT(0) goes out."""

    inner: trio.abc.Stream
    this: Callable[[], Awaitable[None]]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if bytes(data) == b"\0\1\0\4\0\0\0\0":
            await self.this()
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


@attrs.define(eq=False)
class BreaksWhenRead(trio.abc.Stream):
    """Passes everything on until *broken* is set."""

    inner: trio.abc.Stream
    broken: trio.Event

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait, scope)
                data = await self.inner.receive_some(max_bytes)
                nursery.cancel_scope.cancel()
            return data
        raise trio.BrokenResourceError

    async def _wait(self, scope: trio.CancelScope) -> None:
        await self.broken.wait()
        scope.cancel()

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.fixture(name="pairs")
def make_pairs() -> list[tuple[trio.abc.Stream, trio.abc.Stream]]:
    """Make a main connection and a channel in memory."""
    return [trio.testing.memory_stream_pair() for _ in range(2)]


async def source_on(
    pairs: list[tuple[trio.abc.Stream, trio.abc.Stream]],
) -> ScriptedSource:
    """Make the source at the far end of *pairs*."""
    ours = [pair[0] for pair in pairs]

    async def connect() -> trio.abc.Stream:
        return ours.pop(0)

    return await ScriptedSource.connect(connect, channels=1)


async def test_a_cancel_that_comes_with_the_last_word_comes_too_late(
    autojump_clock: MockClock, pairs: list[tuple[trio.abc.Stream, trio.abc.Stream]]
) -> None:
    """The source has let go, so the devices are kept, whatever the block does."""
    device = SimulatedSink()

    async def cancel() -> None:
        scope.cancel()
        await trio.sleep(0.1)

    with trio.CancelScope() as scope:
        main = AtLastWord(pairs[0][1], cancel)
        async with open_incoming([main, pairs[1][1]], {A: device}) as incoming:
            source = await source_on(pairs)
            await source.begin(A, return_path=True)
            await loading(source)
            await incoming.wait_complete()
    assert scope.cancelled_caught
    assert incoming.state.value is SessionState.COMPLETED
    assert incoming.result().status == "completed"
    assert (device.finished, device.aborted_at) == (True, None)
    await main.aclose()
    assert await source.heard() == [PONG, (ReturnPathType.SHUT, 0)]


async def test_a_fault_that_comes_with_the_last_word_comes_too_late(
    autojump_clock: MockClock, pairs: list[tuple[trio.abc.Stream, trio.abc.Stream]]
) -> None:
    """Neither the block nor the devices hear of it."""
    device = SimulatedSink()

    async def fail() -> None:
        await source.packets(0, b"garbage" * 100)
        await trio.sleep(0.1)

    main = AtLastWord(pairs[0][1], fail)
    async with open_incoming([main, pairs[1][1]], {A: device}) as incoming:
        source = await source_on(pairs)
        await source.begin(A, return_path=True)
        await loading(source)
        result = await incoming.wait_complete()
    assert (result.status, result.errors) == ("completed", ())
    assert device.aborted_at is None


async def test_a_last_word_that_cannot_be_said_leaves_every_fault(
    autojump_clock: MockClock, pairs: list[tuple[trio.abc.Stream, trio.abc.Stream]]
) -> None:
    """The source does not take it in time, so it has not let go."""
    device = SimulatedSink()

    async def fail() -> None:
        await source.packets(0, b"garbage" * 100)
        await trio.sleep(100)

    main = AtLastWord(pairs[0][1], fail)
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming([main, pairs[1][1]], {A: device}) as incoming:
            source = await source_on(pairs)
            await source.begin(A, return_path=True)
            await loading(source)
            await incoming.wait_complete()
    garbage, silence = map(str, failed.value.exceptions)
    assert garbage.startswith("channel 0: packet with magic 0x67617262 (at byte ")
    assert silence == "main: the source does not take the last word"
    assert device.aborted_at == 0.5


async def test_a_source_that_is_killed_at_the_last_word_is_one_fault(
    autojump_clock: MockClock, pairs: list[tuple[trio.abc.Stream, trio.abc.Stream]]
) -> None:
    """Whoever reads notices it, and so does whoever has the word to say."""
    device = SimulatedSink()

    async def fail() -> None:
        broken.set()
        await trio.sleep(0.1)
        raise trio.BrokenResourceError

    broken = trio.Event()
    main = AtLastWord(BreaksWhenRead(pairs[0][1], broken), fail)
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming([main, pairs[1][1]], {A: device}) as incoming:
            source = await source_on(pairs)
            await source.begin(A, return_path=True)
            await loading(source)
            await incoming.wait_complete()
    (fault,) = map(str, failed.value.exceptions)
    assert fault.startswith("main: broke behind byte ")
    assert device.aborted_at == 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"page_size": 4095},
        {"page_size": 0},
        {"device_grace": -1.0},
        {"max_queued_bytes": -1},
        {"max_session_bytes": -1},
    ],
    ids=str,
)
async def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        async with open_incoming("tcp:127.0.0.1:0", {}, **options):
            pass
