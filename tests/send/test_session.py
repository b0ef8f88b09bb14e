"""Collaboration: both sides of a migration, in virtual time."""

from __future__ import annotations

import hashlib
import logging
import math

import pytest
import trio
from trio.testing import MockClock

from trio_vfio import (
    Deadlines,
    DeviceState,
    MigrationFailed,
    MigrationResult,
    SessionState,
    open_incoming,
    open_outgoing,
)
from trio_vfio._wire._return_path import SWITCHOVER_ACK
from trio_vfio.testing import (
    ScriptedDestination,
    SimulatedSink,
    SimulatedSource,
    link,
)

MIB = 1 << 20
A, B, C, D = (f"0000:00:0{n}.0/vfio" for n in (4, 5, 6, 7))


async def test_a_late_channel_delays_only_the_load(autojump_clock: MockClock) -> None:
    source, sink = SimulatedSource(size=4 * MIB), SimulatedSink(seconds_per_mib=2)
    here, there = link(delay={0: 10})
    async with open_incoming(there, {A: sink}) as incoming:
        async with open_outgoing(here, {A: source}, channels=2) as outgoing:
            await outgoing.migrate()
        await incoming.wait_complete()
    assert sink.loaded == source.state
    assert trio.current_time() == 10 + 4 * 2


async def both(
    sources: dict[str, SimulatedSource],
    sinks: dict[str, SimulatedSink],
    *,
    channels: int = 2,
    return_path: bool = True,
    switchover_ack: bool = False,
    machine: str = "pc-q35-10.0",
    buffer_size: int = MIB,
    max_rounds: int | None = 16,
    downtime: float = 0.3,
    bandwidth: float | None = None,
) -> tuple[MigrationResult, MigrationResult]:
    """Migrate *sources* to *sinks*; return what both sides say of it."""
    here, there = link() if bandwidth is None else link(bandwidth=bandwidth)
    # A device may take its time, and then there is nothing to be heard.
    deadlines = Deadlines(silence=None)
    async with open_incoming(
        there, sinks, digests=True, deadlines=deadlines
    ) as incoming:
        async with open_outgoing(
            here,
            sources,
            channels=channels,
            return_path=return_path,
            switchover_ack=switchover_ack,
            machine=machine,
            buffer_size=buffer_size,
            digests=True,
        ) as outgoing:
            sent = await outgoing.migrate(max_rounds=max_rounds, downtime=downtime)
        received = await incoming.wait_complete()
    return sent, received


@pytest.mark.parametrize("return_path", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
async def test_both_sides_say_the_same(
    return_path: bool, channels: int, autojump_clock: MockClock
) -> None:
    sources = {
        A: SimulatedSource(size=5000, config=b"registers", seed=1),
        B: SimulatedSource(size=300, initial_bytes=200, dirty_bytes=50, seed=2),
        C: SimulatedSource(size=0),
        D: SimulatedSource(size=1, config=b"d"),
    }
    sinks = {name: SimulatedSink() for name in sources}
    sent, received = await both(
        sources, sinks, channels=channels, return_path=return_path, buffer_size=1000
    )
    for name, source in sources.items():
        assert sinks[name].loaded == source.state
        assert sinks[name].config == source.config_blob
        assert source.finished and not source.aborted and not source.running
    assert sent.status == received.status == "completed"
    for ours, theirs in zip(sent.devices, received.devices, strict=True):
        assert ours.sha256 == theirs.sha256
        assert ours.sha256 == hashlib.sha256(sources[ours.idstr].state).hexdigest()
        assert ours.config_sha256 == theirs.config_sha256
        assert (ours.precopy_bytes, ours.data_bytes, ours.buffers) == (
            theirs.precopy_bytes,
            theirs.data_bytes,
            theirs.buffers,
        )
        assert (ours.status, ours.transfer) == ("completed", "multifd")
    assert sent.channels == received.channels


async def test_four_equal_devices_finish_within_a_packet_of_each_other(
    autojump_clock: MockClock,
) -> None:
    """None of them starves while another has a long queue."""
    sources = {name: SimulatedSource(size=40 * MIB) for name in (A, B, C, D)}
    here, there = link(bandwidth=MIB)
    destination = ScriptedDestination(there, channels=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(here, sources, channels=2) as outgoing:
            result = await outgoing.migrate()
    seconds = [device.seconds or 0 for device in result.devices]
    # A packet of 1 MiB takes a second, and there are 160 of them for 2 channels.
    assert min(seconds) > 75
    assert max(seconds) - min(seconds) <= 1.01
    for behind in range(4, 160, 4):
        taken = [packet.idstr for packet in destination.packets[:behind]]
        counts = [taken.count(name) for name in sources]
        assert max(counts) - min(counts) <= 1


async def test_a_slow_device_holds_up_no_other(autojump_clock: MockClock) -> None:
    sources = {
        A: SimulatedSource(size=8 * MIB, seconds_per_mib=100),
        B: SimulatedSource(size=8 * MIB),
    }
    sinks = {name: SimulatedSink() for name in sources}
    _, received = await both(sources, sinks, channels=1)
    slow, fast = (device.seconds for device in received.devices)
    assert (slow, fast) == (800, 0)


async def test_exact_times_of_a_whole_journey(autojump_clock: MockClock) -> None:
    """Pre-copy, the guest's stop, the device's stop, reading, writing, acceptance."""
    source = SimulatedSource(
        size=6 * MIB,
        initial_bytes=2 * MIB,
        seconds_per_mib=1,
        seconds_per_call=0.5,
        config=b"c",
    )
    sink = SimulatedSink(seconds_per_call=0.25)
    times: dict[str, float] = {}

    async def stop_guest() -> None:
        times["stopping"] = trio.current_time()
        assert outgoing.state.value is SessionState.DEVICE
        assert source.running
        await trio.sleep(0.125)
        times["stopped"] = trio.current_time()

    here, there = link()
    async with open_incoming(there, {A: sink}) as incoming:
        async with open_outgoing(here, {A: source}) as outgoing:
            result = await outgoing.migrate(before_switchover=stop_guest, downtime=0)
            times["sent"] = trio.current_time()
        await incoming.wait_complete()
    # Two buffers before the switchover, each half a second and one for its MiB.
    assert times["stopping"] == 3
    assert times["stopped"] == 3.125
    # Half a second for the stop, four buffers, and half a second for the config.
    read = 3.625 + 4 * 1.5 + 0.5
    # The last buffers are written while the config is read; it and the finish take
    # their time. Then the source's own finish does.
    assert result.switchover_seconds == read + 2 * 0.25 - 3
    assert times["sent"] == read + 2 * 0.25 + 0.5
    assert result.devices[0].seconds == 0.5 + 4 * 1.5 + 0.5
    assert sink.loaded == source.state


async def test_states_of_a_source(autojump_clock: MockClock) -> None:
    source = SimulatedSource(
        size=4 * MIB, initial_bytes=2 * MIB, seconds_per_mib=1, seconds_per_call=1
    )
    here, there = link()
    states: list[tuple[float, DeviceState]] = []

    async def note(task_status: trio.TaskStatus[None]) -> None:
        device = outgoing.devices[A]
        state = device.state.value
        task_status.started()
        while True:
            states.append((trio.current_time(), state))
            seen = {state for _, state in states}
            state = await device.state.wait_value(lambda now: now not in seen)  # noqa: B023
            if state is DeviceState.COMPLETED:
                return

    async with open_incoming(there, {A: SimulatedSink()}):
        async with open_outgoing(here, {A: source}) as outgoing:
            async with trio.open_nursery() as nursery:
                await nursery.start(note)
                await outgoing.migrate()
    assert states == [
        (0, DeviceState.SETUP),
        (0, DeviceState.PRECOPY),
        (5, DeviceState.SAVING),
    ]
    assert outgoing.state.value is SessionState.COMPLETED


async def test_rounds_end_when_nothing_more_can_be_gained(
    autojump_clock: MockClock,
) -> None:
    sources = {A: SimulatedSource(size=3000, initial_bytes=1000, dirty_bytes=1000)}
    sent, _ = await both(
        sources, {A: SimulatedSink()}, buffer_size=300, downtime=0, max_rounds=None
    )
    assert sent.devices[0].precopy_bytes == 2000
    reads = [call for call in sources[A].calls if call.name == "pending"]
    # Once to begin with, and once behind the only round.
    assert len(reads) == 2


async def test_acks_are_waited_for(autojump_clock: MockClock) -> None:
    """A machine of 11.1 and newer wants one for each device, an older one all in one."""
    for machine, wanted in [("pc-q35-10.0", 1), ("pc-q35-11.1", 2)]:
        began = trio.current_time()
        here, there = link()
        destination = ScriptedDestination(there)
        sources = {
            A: SimulatedSource(size=20, initial_bytes=10),
            B: SimulatedSource(size=20, dirty_bytes=10),
        }
        async with trio.open_nursery() as nursery:
            nursery.start_soon(destination.run)
            async with (
                open_outgoing(
                    here, sources, machine=machine, switchover_ack=True
                ) as outgoing,
                trio.open_nursery() as inner,
            ):
                inner.start_soon(outgoing.migrate)
                for _ in range(wanted):
                    await trio.sleep(5)
                    assert "SWITCHOVER_START" not in destination.seen
                    assert all(source.running for source in sources.values())
                    await destination.say(SWITCHOVER_ACK)
                await outgoing.state.wait_value(SessionState.COMPLETED)
        assert trio.current_time() == began + 5 * wanted
        # Each device says once that its initial data has gone.
        mark = bytes.fromhex("ffffffffef100005")
        assert destination.main.count(mark) == 2


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("machine", ["pc-q35-10.0", "pc-q35-11.1", "none"])
async def test_our_own_receiver_acknowledges(
    machine: str, known: bool, autojump_clock: MockClock
) -> None:
    """Also where its sinks cannot say whether pre-copy data will come."""
    sources = {
        A: SimulatedSource(size=20, initial_bytes=10),
        B: SimulatedSource(size=20),
    }
    sinks = {
        A: SimulatedSink(precopy=True if known else None),
        B: SimulatedSink(precopy=False if known else None),
    }
    sent, _ = await both(sources, sinks, switchover_ack=True, machine=machine)
    assert sent.status == "completed"


async def test_state_waits_for_the_answer_to_the_ping(
    autojump_clock: MockClock,
) -> None:
    """A QEMU that has not come that far would fail over a packet (W27)."""
    from trio_vfio._wire._return_path import pong

    here, there = link()
    destination = ScriptedDestination(there, answers=False)
    source = SimulatedSource(size=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with (
            open_outgoing(here, {A: source}) as outgoing,
            trio.open_nursery() as inner,
        ):
            inner.start_soon(outgoing.migrate)
            await trio.sleep(20)
            assert source.running
            assert destination.packets == []
            await destination.say(pong(1))
            await outgoing.state.wait_value(SessionState.COMPLETED)
    assert trio.current_time() == 20


async def test_a_destination_that_does_not_answer(autojump_clock: MockClock) -> None:
    here, there = link()
    destination = ScriptedDestination(there, answers=False)
    source = SimulatedSource(size=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        with pytest.raises(MigrationFailed) as caught:
            async with open_outgoing(
                here, {A: source}, deadlines=Deadlines(handshake=7)
            ) as outgoing:
                await outgoing.migrate()
    assert trio.current_time() == 7
    (fault,) = caught.value.exceptions
    assert str(fault) == (
        "handshake deadline of 7 s passed: the destination does not answer"
    )
    assert source.running and source.aborted


async def test_packets_come_behind_switchover_start(autojump_clock: MockClock) -> None:
    """Else a destination may have paused the channels, and main behind them."""
    here, there = link(bandwidth={"main": 100, 0: 1e9, 1: 1e9})
    destination = ScriptedDestination(there)
    came: list[int] = []

    async def look(name: str) -> None:
        if name == "SWITCHOVER_START":
            came.append(len(destination.packets))

    destination.on = look
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        async with open_outgoing(
            here, {A: SimulatedSource(size=1000)}, buffer_size=100
        ) as outgoing:
            await outgoing.migrate()
    assert came == [0]


async def test_a_device_that_cannot_be_let_go_of(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The destination has it, so that is no failure, and it must not run again."""
    import errno

    source = SimulatedSource(size=10, fails={"finish": errno.EIO})
    caplog.set_level(logging.WARNING)
    sent, _ = await both({A: source, B: SimulatedSource(size=1)}, _sinks(A, B))
    assert sent.status == "completed"
    assert [device.status for device in sent.devices] == ["completed"] * 2
    assert not source.aborted
    assert "after the migration: 0000:00:04.0/vfio: finish: EIO" in caplog.text


async def test_devices_are_let_go_of_side_by_side(autojump_clock: MockClock) -> None:
    """There are 10 seconds for all of them, and none of them is left out."""
    sources = {
        name: SimulatedSource(size=1, seconds_per_call=4) for name in (A, B, C, D)
    }
    sent, _ = await both(sources, _sinks(*sources))
    assert all(source.finished for source in sources.values())
    # The stop, the read, the config and the finish.
    assert (sent.switchover_seconds, trio.current_time()) == (12, 16)


def _sinks(*names: str) -> dict[str, SimulatedSink]:
    return {name: SimulatedSink() for name in names}


async def test_migrate_is_for_once(autojump_clock: MockClock) -> None:
    here, there = link()
    async with open_incoming(there, {A: SimulatedSink()}):
        async with open_outgoing(here, {A: SimulatedSource(size=1)}) as outgoing:
            await outgoing.migrate()
            with pytest.raises(RuntimeError, match="has begun before"):
                await outgoing.migrate()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"channels": 0}, "channels must be from 1 to 255, not 0"),
        ({"channels": 256}, "channels must be from 1 to 255"),
        ({"buffer_size": 0}, "buffer_size must be from 1 to 1048576"),
        ({"machine": ""}, "'' is no machine type"),
        ({"machine": "a b"}, "'a b' is no machine type"),
        ({"machine": "x" * 256}, "is no machine type"),
        ({"device_grace": -1}, "'device_grace' must be >= 0"),
        ({"device_grace": math.nan}, "'device_grace' must be >= 0"),
        ({"max_queued_bytes": -1}, "'max_queued_bytes' must be >= 0"),
        ({"max_session_bytes": -1}, "'max_session_bytes' must be >= 0"),
        (
            {"switchover_ack": True, "return_path": False},
            "switchover_ack needs a return path",
        ),
    ],
)
async def test_what_makes_no_sense(wrong: dict[str, object], why: str) -> None:
    here, _ = link()
    with pytest.raises(ValueError, match=why):
        async with open_outgoing(here, {A: SimulatedSource()}, **wrong):  # type: ignore[arg-type]
            pytest.fail("not reached")


@pytest.mark.parametrize(
    "name", ["", "a", "ä/vfio", "x" * 251 + "/vfio", "\n/vfio", (A, -1), (A, 1 << 32)]
)
async def test_names_that_no_device_has(name: str) -> None:
    here, _ = link()
    with pytest.raises(ValueError, match="is no"):
        async with open_outgoing(here, {name: SimulatedSource()}):
            pytest.fail("not reached")
