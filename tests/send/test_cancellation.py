"""Collaboration: what a cancel and a fault leave behind, at every stage.

The invariant: when the block has ended, no device call is under way, and either
the destination has said that it has the devices, or each of them runs again, was
aborted exactly once, and that not before the connections were closed.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_vfio import (
    DeadlineExceeded,
    Deadlines,
    DeviceError,
    DeviceState,
    MigrationFailed,
    Outgoing,
    Pending,
    SessionState,
    open_incoming,
    open_outgoing,
)
from trio_vfio._wire._return_path import shut
from trio_vfio.testing import (
    MemoryListener,
    ScriptedDestination,
    SimulatedSink,
    SimulatedSource,
    link,
)

MIB = 1 << 20
A, B = "0000:00:04.0/vfio", "0000:00:05.0/vfio"


def slow(**options: object) -> SimulatedSource:
    """Make a source whose every call but begin and pending takes a second."""
    return SimulatedSource(
        size=4 * MIB,
        initial_bytes=MIB,
        seconds_per_call=1,
        config=b"c",
        **options,  # type: ignore[arg-type]
    )


async def a_second() -> None:
    """Stop a guest that takes its time."""
    await trio.sleep(1)


def check_runs_again(source: SimulatedSource, *, began: bool = True) -> None:
    """Check the invariant for a migration that did not succeed."""
    assert source.running
    names = [call.name for call in source.calls]
    assert names.count("abort") == began
    assert not began or names[-1] == "abort"
    assert not source.finished


# Begins at 0; one pre-copy read to 1, the guest's stop to 2, the device's to 3, three
# reads to 6, config to 7, the sink's config to 8 and its finish to 9; then the source's
# own finish to 10.
@pytest.mark.parametrize("moment", [each / 4 for each in range(1, 44)])
async def test_cancel_at_any_moment(moment: float, autojump_clock: MockClock) -> None:
    """One side has the device in the end, and it is the one that says so."""
    source, sink = slow(), SimulatedSink(seconds_per_call=1)
    here, there = link()
    received: list[str] = []

    async def receive() -> None:
        try:
            async with open_incoming(there, {A: sink}) as incoming:
                received.append((await incoming.wait_complete()).status)
        except MigrationFailed as failed:
            received.append(failed.result.status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        with trio.CancelScope(deadline=moment) as scope:
            async with open_outgoing(here, {A: source}) as outgoing:
                await outgoing.migrate(before_switchover=a_second)
                assert trio.current_time() == 10
        ended = trio.current_time()
    succeeded = outgoing.state.value is SessionState.COMPLETED
    assert succeeded == (moment >= 9)
    assert received == ["completed" if succeeded else "failed"]
    if succeeded:
        assert source.finished and not source.aborted and not source.running
        assert sink.loaded == source.state and not sink.aborted
        return
    assert scope.cancelled_caught
    assert outgoing.state.value is SessionState.CANCELLED
    assert outgoing.result().errors == ()
    check_runs_again(source)
    assert not sink.began or sink.aborted
    # A call that is under way is seen to end, and there is a last chance for the
    # destination's last word where that may be on its way.
    assert ended < moment + 1.25
    assert outgoing.devices[A].state.value is DeviceState.FAILED


async def sent_to(
    source: SimulatedSource,
    destination: ScriptedDestination,
    here: Callable[[], Awaitable[trio.abc.Stream]],
    *,
    cancel_after: float,
    device_grace: float | None = 10,
) -> tuple[Outgoing, float]:
    """Send *source* and cancel that; return the session, and when it had ended."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with trio.move_on_after(cancel_after) as scope:
            async with open_outgoing(
                here, {A: source}, device_grace=device_grace
            ) as outgoing:
                await outgoing.migrate()
        assert scope.cancelled_caught
        ended = trio.current_time()
    return outgoing, ended


@pytest.mark.parametrize("call", ["begin", "pending", "read_into", "stop", "config"])
async def test_a_call_that_hangs_is_ended_by_abort(
    call: str, autojump_clock: MockClock
) -> None:
    """The destination learns at once that nothing more comes, not after the grace."""
    source = SimulatedSource(size=10, hangs_in=call, seconds_after_abort=1)
    here, there = link()
    destination = ScriptedDestination(there)
    _, ended = await sent_to(source, destination, here, cancel_after=3, device_grace=5)
    assert (source.aborted_at, ended) == (8, 9)
    check_runs_again(source)
    assert destination.closed_at == 3


async def test_cancel_while_the_destination_takes_nothing(
    autojump_clock: MockClock,
) -> None:
    """A channel that is stuck leaves at once: no thread, no device is in it."""
    source = SimulatedSource(size=4 * MIB)
    here, there = link(window=1000)
    async with trio.open_nursery() as nursery:

        async def take_nothing() -> None:
            for listener in there:
                while True:
                    await listener.accept()

        nursery.start_soon(take_nothing)
        with trio.move_on_after(3):
            async with open_outgoing(here, {A: source}, return_path=False) as outgoing:
                await outgoing.migrate()
        assert (trio.current_time(), source.aborted_at) == (3, 3)
        check_runs_again(source)
        nursery.cancel_scope.cancel()


async def test_cancel_while_the_last_word_is_awaited(
    autojump_clock: MockClock,
) -> None:
    """It gets a moment, for it may be on its way; then the connection is closed."""
    source = SimulatedSource(size=10)
    here, there = link()
    destination = ScriptedDestination(there, last_word=None)
    outgoing, ended = await sent_to(source, destination, here, cancel_after=3)
    assert (ended, destination.closed_at, source.aborted_at) == (3.1, 3.1, 3.1)
    check_runs_again(source)
    assert outgoing.state.value is SessionState.CANCELLED


async def test_the_last_word_overtakes_a_cancel(autojump_clock: MockClock) -> None:
    """The devices are the destination's then, and nothing may run them here."""
    source = SimulatedSource(size=10)
    here, there = link()
    destination = ScriptedDestination(there, last_word=None)
    async with trio.open_nursery() as nursery:

        async def say() -> None:
            await trio.sleep(3.05)
            await destination.say(shut(0))

        nursery.start_soon(say)
        outgoing, ended = await sent_to(source, destination, here, cancel_after=3)
    assert ended == 3.05
    assert outgoing.state.value is SessionState.COMPLETED
    assert source.finished and not source.aborted and not source.running


async def test_a_cancel_behind_the_last_word_comes_too_late(
    autojump_clock: MockClock,
) -> None:
    """What is begun is brought to its end: the device is let go of."""
    source = SimulatedSource(size=10, seconds_per_call=1)
    here, there = link()
    destination = ScriptedDestination(there)
    # Stop, read, config; then the finish that is cancelled in the middle.
    outgoing, ended = await sent_to(source, destination, here, cancel_after=3.5)
    assert ended == 4
    assert outgoing.result().status == "completed"
    assert source.finished and not source.aborted


async def test_the_block_is_left_before_completion(autojump_clock: MockClock) -> None:
    source = SimulatedSource(size=10, seconds_per_call=2)
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(here, {A: source}) as outgoing:
            with trio.move_on_after(1):
                await outgoing.migrate()
            # That did not end the migration.
            assert outgoing.result().status == "device"
            await trio.sleep(0.5)
    assert outgoing.state.value is SessionState.CANCELLED
    # The stop was under way, and is seen to end.
    assert trio.current_time() == 2
    check_runs_again(source)


async def test_the_block_is_left_without_migrate(autojump_clock: MockClock) -> None:
    source = SimulatedSource(size=10)
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(here, {A: source}) as outgoing:
            await trio.sleep(1)
    assert source.calls == []
    assert outgoing.result().status == "cancelled"
    assert destination.closed_at == 1


async def test_what_the_block_raises_leaves_it_bare(autojump_clock: MockClock) -> None:
    source = SimulatedSource(size=10, hangs_in="read_into")
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(KeyError, match="mine"):
            async with open_outgoing(here, {A: source}, device_grace=1) as outgoing:
                with trio.move_on_after(1):
                    await outgoing.migrate()
                raise KeyError("mine")
    check_runs_again(source)


async def test_the_hook_fails(autojump_clock: MockClock) -> None:
    """What it raised leaves the block bare; the devices were not even stopped."""

    async def cannot() -> None:
        await trio.sleep(1)
        raise LookupError("no guest")

    source = slow()
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(LookupError, match="no guest"):
            async with open_outgoing(here, {A: source}) as outgoing:
                await outgoing.migrate(before_switchover=cannot)
    check_runs_again(source)
    assert "stop" not in [call.name for call in source.calls]
    result = outgoing.result()
    assert (result.status, result.errors) == ("failed", ("LookupError: no guest",))


async def test_the_hook_fails_over_a_cancel(autojump_clock: MockClock) -> None:
    """That hides no fault, not even where the hook has tasks of its own."""

    async def clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("no guest any more")

    async def cannot() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean_up)
            await trio.sleep_forever()

    source = slow()
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(
                here, {A: source}, deadlines=Deadlines(switchover=2)
            ) as outgoing:
                await outgoing.migrate(before_switchover=cannot)
    (fault,) = caught.value.exceptions
    assert isinstance(fault, DeadlineExceeded)
    check_runs_again(source)


async def test_a_cancel_reaches_the_hook(autojump_clock: MockClock) -> None:
    here, there = link()
    destination = ScriptedDestination(there)
    source = slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with trio.move_on_after(5):
            async with open_outgoing(here, {A: source}) as outgoing:
                await outgoing.migrate(before_switchover=trio.sleep_forever)
    assert trio.current_time() == 5
    check_runs_again(source)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("begin", "begin"),
        ("pending", "pending"),
        ("read_into", "read"),
        ("stop", "stop"),
        ("config", "config"),
    ],
)
async def test_a_device_that_fails_ends_the_others(
    call: str, named: str, autojump_clock: MockClock
) -> None:
    """All run again, and the destination does not get half of them."""
    sources = {
        A: SimulatedSource(size=10, fails={call: errno.EIO}),
        B: SimulatedSource(size=10, hangs_in="read_into"),
    }
    sinks = {name: SimulatedSink() for name in sources}
    here, there = link()
    received: list[MigrationFailed] = []

    async def receive() -> None:
        with pytest.raises(MigrationFailed) as caught:
            async with open_incoming(there, sinks):
                await trio.sleep_forever()
        received.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(here, sources, device_grace=1) as outgoing:
                await outgoing.migrate()
    (fault,) = caught.value.exceptions
    assert isinstance(fault, DeviceError)
    assert (fault.idstr, fault.operation, fault.errno) == (A, named, errno.EIO)
    # A begin that fails has cleaned up after itself.
    check_runs_again(sources[A], began=call != "begin")
    check_runs_again(sources[B], began=call not in ("begin", "pending"))
    (device, other) = caught.value.result.devices
    assert (device.status, other.status) == ("failed", "failed")
    assert (device.errors, other.errors) == ((str(fault),), ())
    assert [len(failure.exceptions) for failure in received] == [1], received[
        0
    ].exceptions
    assert all(not sink.began or sink.aborted for sink in sinks.values())


async def test_a_read_that_fails_says_where(autojump_clock: MockClock) -> None:
    source = SimulatedSource(
        size=1000, fails_at_byte=350, fails={"read_into": errno.EIO}
    )
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(here, {A: source}, buffer_size=100) as outgoing:
                await outgoing.migrate()
    (fault,) = caught.value.exceptions
    assert isinstance(fault, DeviceError)
    assert str(fault).startswith(f"{A}: read of buffer ")
    assert fault.idx is not None and fault.offset == 100 * fault.idx


class Odd:
    """A source one of whose calls returns something odd."""

    def __init__(self, source: SimulatedSource, call: str, result: object) -> None:
        self.source, self.call, self.result = source, call, result

    def __getattr__(self, name: str) -> object:
        return self.odd if name == self.call else getattr(self.source, name)

    async def odd(self, *_: object) -> object:
        await trio.lowlevel.checkpoint()
        return self.result() if callable(self.result) else self.result


@pytest.mark.parametrize(
    ("call", "result", "why"),
    [
        ("read_into", None, "read at byte 0: the device says that it put None bytes"),
        ("read_into", 5, "put 5 bytes into 1 buffers of 100"),
        ("read_into", [-1], r"put \[-1\] bytes"),
        ("read_into", [101], r"put \[101\] bytes into 1 buffers of 100"),
        ("read_into", [1, 1], r"put \[1, 1\] bytes"),
        ("read_into", [1.5], r"put \[1.5\] bytes"),
        ("read_into", [None], r"put \[None\] bytes"),
        ("pending", None, "pending: None is no Pending"),
        ("pending", lambda: Pending(-1), "pending: ValueError: initial_bytes cannot"),
        ("pending", lambda: Pending(0, 0.5), "pending: ValueError: dirty_bytes cannot"),  # type: ignore[arg-type]
        ("config", None, "config: a config of type NoneType"),
        ("config", "text", "config: a config of type str"),
        ("config", bytes(MIB + 1), "config: a config blob of 1048577 bytes"),
    ],
)
async def test_a_device_that_returns_what_none_may(
    call: str, result: object, why: str, autojump_clock: MockClock
) -> None:
    """A fault that names the device, not a crash; and the device runs again."""
    source = SimulatedSource(size=10, initial_bytes=5)
    odd: Any = Odd(source, call, result)
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(here, {A: odd}, buffer_size=100) as outgoing:
                await outgoing.migrate()
    (fault,) = caught.value.exceptions
    assert isinstance(fault, DeviceError)
    assert str(fault).startswith(f"{A}: ")
    assert re.search(why, str(fault))
    check_runs_again(source)


async def test_an_abort_that_fails_is_a_fault_too(autojump_clock: MockClock) -> None:
    source = SimulatedSource(size=10, fails={"stop": errno.ENODEV, "abort": errno.EIO})
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(here, {A: source}) as outgoing:
                await outgoing.migrate()
    assert [getattr(fault, "operation", None) for fault in caught.value.exceptions] == [
        "stop",
        "abort",
    ]


async def test_the_switchover_deadline(autojump_clock: MockClock) -> None:
    """The guest has stood still long enough: it shall run again."""
    source = SimulatedSource(size=10, hangs_in="read_into")
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(
                here,
                {A: source},
                deadlines=Deadlines(switchover=2),
                device_grace=1,
            ) as outgoing:
                await outgoing.migrate()
    (fault,) = caught.value.exceptions
    assert str(fault) == (
        f"switchover deadline of 2 s passed: waiting for {A}: read to end"
    )
    assert (destination.closed_at, source.aborted_at) == (2, 3)
    check_runs_again(source)


async def test_the_guest_may_take_its_time_to_stop(autojump_clock: MockClock) -> None:
    """That is no silence of the destination's."""
    source = SimulatedSource(size=10)
    here, there = link()
    destination = ScriptedDestination(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(
            here, {A: source}, deadlines=Deadlines(silence=0.5)
        ) as outgoing:
            await outgoing.migrate(before_switchover=a_second)
    assert source.finished


async def test_silence_while_the_destination_takes_nothing(
    autojump_clock: MockClock,
) -> None:
    source = SimulatedSource(size=MIB)
    here, there = link(window={0: 1000})
    # It leaves the channel where it is.
    destination = ScriptedDestination(there, channels=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(
                here, {A: source}, channels=1, deadlines=Deadlines(silence=2)
            ) as outgoing:
                await outgoing.migrate()
    (fault,) = caught.value.exceptions
    assert str(fault) == (
        "silence deadline of 2 s passed:"
        " waiting for channel 0: the destination to take more"
    )
    assert (trio.current_time(), source.aborted_at) == (2, 2)
    check_runs_again(source)


async def test_connecting_is_cancelled(autojump_clock: MockClock) -> None:
    """What was connected is closed; no device has begun."""
    here, there = link()
    opened: list[trio.abc.Stream] = []

    async def connect() -> trio.abc.Stream:
        if len(opened) == 2:
            await trio.sleep_forever()
        opened.append(await here())
        return opened[-1]

    source = SimulatedSource(size=10)
    with trio.move_on_after(3):
        async with open_outgoing(connect, {A: source}):
            pytest.fail("not reached")
    assert source.calls == []
    for stream in opened:
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
    assert there


async def test_connecting_takes_too_long(autojump_clock: MockClock) -> None:
    deadlines = Deadlines(first_connection=4)
    with pytest.raises(TimeoutError, match="no connection within 4 s"):
        async with open_outgoing(
            trio.sleep_forever, {A: SimulatedSource()}, deadlines=deadlines
        ):
            pytest.fail("not reached")
    assert trio.current_time() == 4


async def test_a_source_that_breaks_main_ends_a_mute_destination(
    autojump_clock: MockClock,
) -> None:
    """It has failed and runs its devices again, so that nobody else may have them."""
    sent = 0
    # Once to find out how much goes over main, then with a cut behind the last byte.
    for cut in (False, True):
        source, sink = SimulatedSource(size=10), SimulatedSink(seconds_per_call=5)
        here, there = link(cut={"main": sent}) if cut else link()
        received: list[str] = []

        async def receive(
            there: list[MemoryListener], sink: SimulatedSink, received: list[str]
        ) -> None:
            try:
                async with open_incoming(there, {A: sink}) as incoming:
                    received.append((await incoming.wait_complete()).status)
            except MigrationFailed as failed:
                received.append(failed.result.status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, there, sink, received)
            try:
                async with open_outgoing(
                    here, {A: source}, return_path=False
                ) as outgoing:
                    await outgoing.migrate()
            except MigrationFailed:
                check_runs_again(source)
        status = "failed" if cut else "completed"
        assert (outgoing.result().status, received) == (status, [status])
        assert sink.aborted == cut
        sent = here.connections["main"].sent
