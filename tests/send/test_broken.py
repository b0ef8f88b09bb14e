"""Collaboration: destinations that leave, lie, or talk nonsense.

The invariant: the migration fails with one fault that says why, at once or at its
deadline, and the source's devices run again.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from errno import EIO

import pytest
import trio
from trio.testing import MockClock

from trio_vfio import (
    ConnectionLost,
    Deadlines,
    DestinationFailed,
    DeviceError,
    MigrationFailed,
    PeerProtocolError,
    TrioVfioError,
    open_incoming,
    open_outgoing,
)
from trio_vfio._wire._return_path import (
    SWITCHOVER_ACK,
    ReturnPathFrame,
    ReturnPathType,
    pong,
    shut,
)
from trio_vfio.testing import (
    DeviceFault,
    LinkFault,
    ScriptedDestination,
    SimulatedSink,
    SimulatedSource,
    link,
)

A = "0000:00:04.0/vfio"

Deed = Callable[[ScriptedDestination], Awaitable[None]]

# Pieces of main, in the order in which a destination sees them.
STAGES = [
    "OPEN_RETURN_PATH",
    "PING",
    f"START {A}",
    f"PART {A}",
    "SWITCHOVER_START",
    f"END {A}",
    f"FULL {A}",
    "complete",
]


async def failure(
    deed: Deed,
    at: str,
    *,
    return_path: bool = True,
    deadlines: Deadlines | None = None,
    within: float = 0.3,
) -> TrioVfioError:
    """Let the destination do *deed* when it sees *at*; return the only fault.

    Args:
      within: how many seconds it may take from then on.
    """
    # The state takes seconds to read, so that there is an amid.
    source = SimulatedSource(size=100, initial_bytes=10, seconds_per_call=0.125)
    here, there = link()
    did_at: list[float] = []

    async def do(name: str) -> None:
        if name == at:
            did_at.append(trio.current_time())
            await deed(destination)

    destination = ScriptedDestination(there, on=do, last_word=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(
                here,
                {A: source},
                return_path=return_path,
                deadlines=deadlines,
                buffer_size=10,
            ) as outgoing:
                await outgoing.migrate()
        # A call of the device may be under way, and is seen to end.
        assert trio.current_time() - did_at[0] <= within + 0.125
        nursery.cancel_scope.cancel()
    names = [call.name for call in source.calls]
    assert source.running
    # A begin that is cancelled has cleaned up after itself.
    if len(names) > 1:
        assert (names.count("abort"), names[-1]) == (1, "abort")
    assert outgoing.result().status == "failed"
    (fault,) = caught.value.exceptions
    assert outgoing.result().errors == (str(fault),)
    assert isinstance(fault, TrioVfioError)
    return fault


def says(*frames: ReturnPathFrame) -> Deed:
    """Make a deed of saying something."""

    async def say(destination: ScriptedDestination) -> None:
        await destination.say(*frames)

    return say


def closes(*which: int | str) -> Deed:
    """Make a deed of closing connections."""

    async def close(destination: ScriptedDestination) -> None:
        for each in which:
            await destination.close(each)

    return close


@pytest.mark.parametrize("stage", STAGES)
async def test_it_says_that_it_failed(stage: str, autojump_clock: MockClock) -> None:
    fault = await failure(says(shut(1)), stage)
    assert isinstance(fault, DestinationFailed)
    assert str(fault) == "the destination says that the migration failed"


@pytest.mark.parametrize("stage", STAGES)
async def test_it_says_so_and_leaves(stage: str, autojump_clock: MockClock) -> None:
    """Its word counts, not the connections that break with it."""

    async def leave(destination: ScriptedDestination) -> None:
        for channel in (0, 1):
            await destination.close(channel)
        await destination.say(shut(1))
        await destination.close()

    assert isinstance(await failure(leave, stage), DestinationFailed)


@pytest.mark.parametrize("stage", STAGES)
async def test_it_is_killed(stage: str, autojump_clock: MockClock) -> None:
    fault = await failure(closes("main", 0, 1), stage)
    assert isinstance(fault, ConnectionLost)
    assert fault.channel == "main"


@pytest.mark.parametrize("stage", STAGES[:-2])
@pytest.mark.parametrize("channel", [0, 1])
async def test_a_channel_is_cut(
    stage: str, channel: int, autojump_clock: MockClock
) -> None:
    """Noticed while the guest still runs, not only when the channel is needed."""
    fault = await failure(closes(channel), stage)
    assert isinstance(fault, ConnectionLost)
    assert fault.channel == f"channel {channel}"


@pytest.mark.parametrize("stage", [f"START {A}", "SWITCHOVER_START"])
async def test_a_channel_is_cut_while_bytes_still_go(
    stage: str, autojump_clock: MockClock
) -> None:
    """As a system takes them: that it could be sent does not mean that it arrives."""
    source = SimulatedSource(size=100, initial_bytes=10)
    here, there = link()

    async def do(name: str) -> None:
        if name == stage:
            stream = destination.streams[0]
            assert isinstance(stream, trio.abc.HalfCloseableStream)
            await stream.send_eof()

    destination = ScriptedDestination(there, on=do, last_word=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(here, {A: source}) as outgoing:
                await outgoing.migrate()
    assert [str(fault) for fault in caught.value.exceptions] == [
        "channel 0: the destination closed it before all was sent"
    ]
    # So long it might have said what is wrong, or that it has all.
    assert trio.current_time() == pytest.approx(0.3)
    assert source.running


async def test_a_channel_is_cut_when_its_part_is_done(
    autojump_clock: MockClock,
) -> None:
    """A QEMU closes the channels before it says its last word."""
    source = SimulatedSource(size=100)
    here, there = link()

    async def do(name: str) -> None:
        if name == "complete":
            await destination.close(0)
            await destination.close(1)

    destination = ScriptedDestination(there, on=do)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(here, {A: source}) as outgoing:
            await outgoing.migrate()
    assert source.finished


@pytest.mark.parametrize("stage", STAGES[:5])
async def test_success_before_its_time_is_a_lie(
    stage: str, autojump_clock: MockClock
) -> None:
    fault = await failure(says(shut(0)), stage)
    assert isinstance(fault, PeerProtocolError)
    assert str(fault) == "return path: success before all was sent"


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([ReturnPathFrame(ReturnPathType.REQ_PAGES, bytes(12))], "REQ_PAGES, which is"),
        ([ReturnPathFrame(ReturnPathType.RESUME_ACK, bytes(4))], "RESUME_ACK, which"),
    ],
)
async def test_what_no_destination_says(
    frames: list[ReturnPathFrame], why: str, autojump_clock: MockClock
) -> None:
    fault = await failure(says(*frames), "complete")
    assert isinstance(fault, PeerProtocolError)
    assert why in str(fault)


async def test_bytes_that_are_no_frame(autojump_clock: MockClock) -> None:
    async def babble(destination: ScriptedDestination) -> None:
        await destination.streams["main"].send_all(b"HTTP/1.1 400 Bad Request\r\n")

    fault = await failure(babble, "PING")
    assert isinstance(fault, PeerProtocolError)
    assert str(fault).startswith("return path: ")


async def test_half_of_a_last_word(autojump_clock: MockClock) -> None:
    async def mumble(destination: ScriptedDestination) -> None:
        await destination.streams["main"].send_all(shut(0).encode()[:6])
        await destination.close()

    assert isinstance(await failure(mumble, "complete"), ConnectionLost)


async def test_it_speaks_on_a_channel(autojump_clock: MockClock) -> None:
    async def speak(destination: ScriptedDestination) -> None:
        await destination.streams[1].send_all(b"?")

    fault = await failure(speak, f"START {A}")
    assert isinstance(fault, PeerProtocolError)
    assert fault.channel == "channel 1"


async def test_more_answers_than_questions(autojump_clock: MockClock) -> None:
    """Harmless, and some QEMUs do."""
    source = SimulatedSource(size=100, initial_bytes=10)
    here, there = link()

    async def do(name: str) -> None:
        if name == f"START {A}":
            await destination.say(pong(1), pong(7), SWITCHOVER_ACK, SWITCHOVER_ACK)

    destination = ScriptedDestination(there, on=do)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(
            here, {A: source}, switchover_ack=True, machine="pc-q35-10.0"
        ) as outgoing:
            await outgoing.migrate()
    assert source.finished


async def test_it_takes_nothing_more(autojump_clock: MockClock) -> None:
    async def hang(_: ScriptedDestination) -> None:
        await trio.sleep_forever()

    fault = await failure(
        hang,
        "SWITCHOVER_START",
        deadlines=Deadlines(switchover=4),
        within=4,
    )
    assert str(fault) == (
        "switchover deadline of 4 s passed: waiting for the destination's last word"
    )


# Without a return path.

STAGES_WITHOUT = STAGES[2:]


@pytest.mark.parametrize("stage", STAGES_WITHOUT[:-2])
async def test_it_leaves_without_a_return_path(
    stage: str, autojump_clock: MockClock
) -> None:
    fault = await failure(closes("main", 0, 1), stage, return_path=False)
    assert isinstance(fault, ConnectionLost)


async def test_it_speaks_without_a_return_path(autojump_clock: MockClock) -> None:
    fault = await failure(says(pong(1)), f"START {A}", return_path=False)
    assert isinstance(fault, PeerProtocolError)
    assert str(fault) == "main: the destination speaks without a return path"


async def test_it_never_leaves_without_a_return_path(
    autojump_clock: MockClock,
) -> None:
    async def nothing(destination: ScriptedDestination) -> None:
        await trio.lowlevel.checkpoint()

    fault = await failure(
        nothing,
        "complete",
        return_path=False,
        deadlines=Deadlines(silence=6),
        within=6.5,
    )
    assert str(fault) == (
        "silence deadline of 6 s passed: the destination does not close the connection"
    )


def only(failed: MigrationFailed) -> TrioVfioError:
    (fault,) = failed.exceptions
    assert isinstance(fault, TrioVfioError)
    return fault


async def both_fail(
    source: SimulatedSource, sink: SimulatedSink, *, delay: float = 0.25
) -> tuple[TrioVfioError, TrioVfioError]:
    """Migrate over memory without a return path; return the only fault of each."""
    here, there = link(delay=delay)
    faults: dict[str, TrioVfioError] = {}

    async def receive() -> None:
        with pytest.raises(MigrationFailed) as caught:
            async with open_incoming(there, {A: sink}) as incoming:
                await incoming.wait_complete()
        faults["theirs"] = only(caught.value)

    async def send() -> None:
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(
                here, {A: source}, return_path=False, buffer_size=10
            ) as outgoing:
                await outgoing.migrate()
        faults["ours"] = only(caught.value)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
    assert source.running and not source.finished
    assert source.violations == sink.violations == []
    assert not sink.finished or sink.aborted
    return faults["ours"], faults["theirs"]


@pytest.mark.parametrize("delay", [0, 0.25])
@pytest.mark.parametrize("call", ["begin", "write", "load_config", "finish"])
async def test_a_destination_of_ours_fails_without_a_return_path(
    call: str, delay: float, autojump_clock: MockClock
) -> None:
    """It breaks main, so that its end is not taken for success."""
    source, sink = SimulatedSource(size=100), SimulatedSink(fails={call: EIO})
    source.config_blob = b"blob"
    ours, theirs = await both_fail(source, sink, delay=delay)
    assert isinstance(ours, ConnectionLost)
    assert isinstance(theirs, DeviceError)


@pytest.mark.parametrize(
    "fault",
    [
        DeviceFault("stop"),
        DeviceFault("read_into", at_byte=0),
        DeviceFault("read_into", at_byte=99),
        DeviceFault("config"),
    ],
)
async def test_a_source_fails_without_a_return_path(
    fault: DeviceFault, autojump_clock: MockClock
) -> None:
    """Once the destination knows of it: a main that says nothing is nobody's."""
    source = SimulatedSource(size=100, seconds_per_call=0.5, faults=[fault])
    ours, theirs = await both_fail(source, SimulatedSink())
    assert isinstance(ours, DeviceError)
    # Whether main or the channels are seen to break first is left open.
    assert isinstance(theirs, (ConnectionLost, PeerProtocolError))


class Late(trio.abc.Stream):
    """A stream of the caller's that says only a moment later that all has gone."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)
        await trio.sleep(0.05)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.parametrize("last_word", [0, None])
async def test_a_destination_closes_before_we_know_that_all_has_gone(
    last_word: int | None, autojump_clock: MockClock
) -> None:
    """If it says that it has all devices, then all has gone; else nobody knows."""
    source = SimulatedSource(size=100)
    here, there = link()
    opened = 0

    async def connect() -> trio.abc.Stream:
        nonlocal opened
        opened += 1
        stream = await here()
        return stream if opened == 1 else Late(stream)

    async def do(name: str) -> None:
        if name == "complete":
            await destination.close(0)
            await destination.close(1)

    destination = ScriptedDestination(there, on=do, last_word=last_word)
    failed: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        try:
            async with open_outgoing(connect, {A: source}) as outgoing:
                await outgoing.migrate()
        except MigrationFailed as error:
            failed = [str(fault) for fault in error.exceptions]
    assert len(failed) == (0 if last_word == 0 else 1)
    assert all(" the destination closed it before all was sent" in it for it in failed)
    assert source.finished == (not failed)
    assert source.running == bool(failed)


class Faulty(trio.abc.Stream):
    """A stream of the caller's with a mistake in it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def send_all(self, data: object) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep(self.seconds)
        raise LookupError("a mistake")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class FaultyAtLast(trio.abc.Stream):
    """A stream of the caller's that makes a mistake after a cancel."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.cancelled = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.cancelled:
            raise LookupError("a mistake")
        try:
            return await self.stream.receive_some(max_bytes)
        except trio.Cancelled:
            self.cancelled = True
            raise

    async def aclose(self) -> None:
        await self.stream.aclose()


async def test_a_stream_with_a_mistake(autojump_clock: MockClock) -> None:
    """It leaves as what it is, and no device waits for ever."""
    source = SimulatedSource(size=10, initial_bytes=5, hangs_in="read_into")

    opened = 0

    async def connect() -> trio.abc.Stream:
        nonlocal opened
        opened += 1
        await trio.lowlevel.checkpoint()
        # Main is the first to show it.
        return Faulty(opened)

    with pytest.RaisesGroup(
        pytest.RaisesExc(LookupError), flatten_subgroups=True, allow_unwrapped=True
    ):
        async with open_outgoing(connect, {A: source}, device_grace=1) as outgoing:
            await outgoing.migrate()
    assert source.running
    assert source.aborted


async def test_a_mistake_while_the_last_word_is_awaited(
    autojump_clock: MockClock,
) -> None:
    """It shows in the last moment that a cancel leaves; the device runs again."""
    source = SimulatedSource(size=10)
    here, there = link()
    destination = ScriptedDestination(there, last_word=None)
    opened: list[trio.abc.Stream] = []

    async def connect() -> trio.abc.Stream:
        stream = await here()
        opened.append(stream)
        return stream if len(opened) > 1 else FaultyAtLast(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with (
            pytest.RaisesGroup(
                pytest.RaisesExc(LookupError),
                flatten_subgroups=True,
                allow_unwrapped=True,
            ),
            trio.move_on_after(3),
        ):
            async with open_outgoing(connect, {A: source}) as outgoing:
                await outgoing.migrate()
    assert (source.aborted_at, destination.closed_at) == (3, 3)
    assert source.running


@pytest.mark.parametrize("odd", [b"", b"QEVM, but no more of it"])
async def test_a_destination_that_ends_before_it_knows_main_has_failed(
    odd: bytes, autojump_clock: MockClock
) -> None:
    # All of main is on its way, and so nobody knows what it is, when it ends: by a
    # cancel, or because a channel says that it is main, and is not.
    source = SimulatedSource(size=100)
    faults = [LinkFault(0, "garbage", at_byte=0, data=odd)] if odd else []
    here, there = link(delay={"main": 1, 0: 0.5}, faults=faults)
    failed: list[MigrationFailed] = []

    async def receive() -> None:
        with trio.move_on_after(math.inf if odd else 0.7):
            try:
                async with open_incoming(there, {A: SimulatedSink()}) as incoming:
                    await incoming.wait_complete()
            except MigrationFailed as error:
                failed.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        with pytest.raises(MigrationFailed) as error:
            async with open_outgoing(
                here, {A: source}, channels=1, return_path=False
            ) as outgoing:
                await outgoing.migrate()
    assert "broke before the destination's last word" in str(error.value.exceptions)
    assert source.aborted
    assert bool(failed) == bool(odd)
