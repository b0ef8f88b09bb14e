"""Collaboration: whole sessions on simulated devices, in virtual time.

Each call of a device takes two seconds here unless a test says otherwise, so a
load of n data buffers, config and acceptance takes 2n + 4 seconds.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trio_vfio import (
    Deadlines,
    DeviceState,
    MigrationFailed,
    PeerProtocolError,
    SessionState,
    open_incoming,
)
from trio_vfio.testing import (
    ScriptedSource,
    SimulatedSink,
    config_packet,
    data_packet,
    link,
    state_packets,
)

A, B = "0000:00:04.0/vfio", "0000:00:05.0/vfio"


async def test_packets_are_loaded_in_order_however_they_arrive(
    autojump_clock: MockClock,
) -> None:
    device = SimulatedSink(seconds_per_call=2)
    connect, there = link()
    async with open_incoming(there, {A: device}, digests=True) as incoming:
        source = await ScriptedSource.connect(connect)
        await source.begin(A)
        await source.switch_over()
        await source.packets(0, data_packet(A, 2, b"c"))
        await source.packets(1, config_packet(A, 3, b"blob"), data_packet(A, 1, b"b"))
        await trio.sleep(10)
        assert device.loaded == b""
        await source.packets(0, data_packet(A, 0, b"a"))
        await source.end()
        await source.close()
        result = await incoming.wait_complete()
    assert (device.loaded, device.config) == (b"abc", b"blob")
    assert trio.current_time() == 10 + 3 * 2 + 2 + 2
    (loaded,) = result.devices
    assert (loaded.buffers, loaded.data_bytes, loaded.starved) == (3, 3, 1)
    assert result.status == "completed"


async def test_no_data_at_all(autojump_clock: MockClock) -> None:
    device = SimulatedSink()
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(A)
        await source.switch_over()
        await source.packets(0, config_packet(A, 0, b"only config"))
        await source.end()
        await source.close()
        result = await incoming.wait_complete()
    assert (device.loaded, device.config) == (b"", b"only config")
    assert result.devices[0].buffers == 0


async def test_a_zero_length_buffer_is_a_buffer_that_the_device_never_sees(
    autojump_clock: MockClock,
) -> None:
    device = SimulatedSink()
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(A)
        await source.switch_over()
        await source.packets(0, *state_packets(A, [b"a", b"", b"b"]))
        await source.end()
        await source.close()
        result = await incoming.wait_complete()
    assert device.loaded == b"ab"
    assert result.devices[0].buffers == 3


async def test_a_starved_loader_goes_on_when_the_due_packet_comes(
    autojump_clock: MockClock,
) -> None:
    device = SimulatedSink(seconds_per_call=2)
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(A)
        await source.switch_over()
        for idx, packet in enumerate(state_packets(A, [b"a", b"b"])):
            await trio.sleep(10)
            await trio.testing.wait_all_tasks_blocked()
            assert incoming.devices[A].waiting_for == idx
            await source.packets(0, packet)
        await source.end()
        await source.close()
        result = await incoming.wait_complete()
    assert result.devices[0].starved == 3
    assert result.switchover_seconds == 3 * 10 + 2 + 2
    assert [call.time for call in device.calls if call.name == "write"] == [10, 20]


async def test_nothing_is_loaded_before_switchover_start(
    autojump_clock: MockClock,
) -> None:
    """Pre-copy data comes first, whatever has arrived on the channels."""
    device = SimulatedSink()
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.packets(0, *state_packets(A, [b"after"]))
        await source.begin(A)
        await trio.sleep(50)
        assert device.loaded == b""
        assert incoming.devices[A].state.value is DeviceState.SETUP
        await source.precopy(A, b"before, ")
        await source.precopy(A)
        await trio.sleep(50)
        assert device.loaded == b"before, "
        assert incoming.devices[A].state.value is DeviceState.PRECOPY
        await source.switch_over()
        await source.end()
        await source.close()
        result = await incoming.wait_complete()
    assert device.loaded == b"before, after"
    assert (result.devices[0].precopy_bytes, result.devices[0].data_bytes) == (8, 13)


async def test_devices_are_loaded_at_the_same_time(autojump_clock: MockClock) -> None:
    devices = {name: SimulatedSink(seconds_per_call=2) for name in (A, B)}
    connect, there = link()
    async with open_incoming(there, devices) as incoming:
        source = await ScriptedSource.connect(connect, channels=2)
        await source.begin(A, B)
        begun = trio.current_time()
        await source.switch_over()
        for channel, name in enumerate((A, B)):
            await source.packets(channel, *state_packets(name, [b"x"] * 20))
        await source.end()
        await source.close()
        result = await incoming.wait_complete()
    assert begun == 0
    assert result.switchover_seconds == 20 * 2 + 2 + 2


async def test_states_are_seen_in_order(autojump_clock: MockClock) -> None:
    seen: list[SessionState | DeviceState] = []

    async def watch_session() -> None:
        for state in SessionState.ACTIVE, SessionState.DEVICE, SessionState.COMPLETED:
            await incoming.state.wait_value(state)
            seen.append(state)

    async def watch_device() -> None:
        for state in DeviceState.PRECOPY, DeviceState.LOADING, DeviceState.COMPLETED:
            await incoming.devices[A].state.wait_value(state)
            seen.append(state)

    connect, there = link()
    device = SimulatedSink(seconds_per_call=1)
    async with open_incoming(there, {A: device}) as incoming:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_session)
            nursery.start_soon(watch_device)
            source = await ScriptedSource.connect(connect, channels=1)
            await source.begin(A)
            await source.precopy(A, b"p")
            await trio.sleep(5)
            await source.switch_over()
            await source.packets(0, *state_packets(A, [b"a"]))
            await source.end()
            await source.close()
    assert seen == [
        SessionState.ACTIVE,
        DeviceState.PRECOPY,
        SessionState.DEVICE,
        DeviceState.LOADING,
        DeviceState.COMPLETED,
        SessionState.COMPLETED,
    ]


async def test_the_source_hears_pong_ack_and_shut(autojump_clock: MockClock) -> None:
    from trio_vfio._wire._return_path import ReturnPathType

    device = SimulatedSink(seconds_per_call=2, precopy=True)
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(A, return_path=True)
        await source.precopy(A, b"x", init_data_sent=True)
        await source.switch_over()
        await source.packets(0, *state_packets(A, []))
        await source.end()
        await incoming.wait_complete()
        assert trio.current_time() == 3 * 2, "with a return path nothing lingers"
    assert await source.heard() == [
        (ReturnPathType.PONG, 1),
        (ReturnPathType.SWITCHOVER_ACK, None),
        (ReturnPathType.SHUT, 0),
    ]


async def test_state_over_the_main_channel(autojump_clock: MockClock) -> None:
    device = SimulatedSink()
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=0)
        await source.begin(A)
        await source.precopy(A, b"a")
        await source.switch_over()
        await source.end_device(A, [b"b", b"c"], b"blob")
        await source.main.send_all(b"\0")
        await source.close()
        result = await incoming.wait_complete()
    assert (device.loaded, device.config) == (b"abc", b"blob")
    (loaded,) = result.devices
    assert (loaded.transfer, loaded.buffers, loaded.starved) == ("main", 2, 0)


async def test_an_old_machine_does_not_announce_the_switchover(
    autojump_clock: MockClock,
) -> None:
    """Up to machine type 9.2 the END section of a device counts for it."""
    device = SimulatedSink()
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=0)
        await source.begin(A, machine="pc-q35-9.2")
        await source.precopy(A, b"a")
        await source.end_device(A, [b"b"], b"blob")
        await source.main.send_all(b"\0\6\0\0\0\0")
        await source.close()
        result = await incoming.wait_complete()
    assert (device.loaded, device.config) == (b"ab", b"blob")
    assert (result.devices[0].precopy_bytes, result.status) == (1, "completed")


@pytest.mark.parametrize(("silence", "seconds"), [(30, 1), (1, 0.5)])
async def test_a_stream_without_description_ends_when_it_falls_silent(
    autojump_clock: MockClock, silence: float, seconds: float
) -> None:
    connect, there = link()
    deadlines = Deadlines(silence=silence)
    async with open_incoming(
        there, {A: SimulatedSink()}, deadlines=deadlines
    ) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(A, return_path=True)
        await source.switch_over()
        await source.packets(0, *state_packets(A, [b"x"]))
        await source.end_device(A)
        await source.main.send_all(b"\0")
        await incoming.wait_complete()
        assert trio.current_time() == seconds
        await source.close()


async def test_a_description_that_comes_after_all_is_dropped(
    autojump_clock: MockClock,
) -> None:
    device = SimulatedSink(seconds_per_call=5)
    connect, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(A, return_path=True)
        await source.switch_over()
        await source.packets(0, *state_packets(A, [b"x"]))
        await source.end_device(A)
        await source.main.send_all(b"\0")
        await trio.sleep(2)
        await source.main.send_all(b"\6\0\0\0\2{}")
        result = await incoming.wait_complete()
        await source.close()
    assert result.status == "completed"


async def test_a_callable_makes_a_sink_for_whatever_comes(
    autojump_clock: MockClock,
) -> None:
    sinks: dict[tuple[str, int], SimulatedSink] = {}

    def make(idstr: str, instance_id: int) -> SimulatedSink:
        return sinks.setdefault((idstr, instance_id), SimulatedSink())

    connect, there = link()
    async with open_incoming(there, make) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin()
        await source.announce("vfio", instance_id=3)
        await source.switch_over()
        await source.packets(0, *state_packets("vfio", [b"x"], instance_id=3))
        await source.end()
        await source.close()
        await incoming.wait_complete()
        assert list(incoming.devices) == [("vfio", 3)]
    assert sinks["vfio", 3].loaded == b"x"


async def test_a_machine_without_vfio_devices_has_nothing_to_load(
    autojump_clock: MockClock,
) -> None:
    connect, there = link()
    async with open_incoming(there, {}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin()
        await source.switch_over()
        await source.end()
        await source.close()
        assert (await incoming.wait_complete()).devices == ()


async def test_what_is_over_the_limits_waits_in_its_channel(
    autojump_clock: MockClock,
) -> None:
    """Memory stays under both limits, and all is loaded all the same."""
    state = [bytes([idx]) * 100 for idx in range(40)]
    devices = {name: SimulatedSink(seconds_per_call=1) for name in (A, B)}
    connect, there = link()
    most = 0
    async with open_incoming(
        there, devices, max_queued_bytes=1000, max_session_bytes=1500
    ) as incoming:
        source = await ScriptedSource.connect(connect, channels=2)
        await source.begin(A, B)
        await source.switch_over()
        packets = [state_packets(A, state), state_packets(B, state)]
        for of_a, of_b in zip(*packets, strict=True):
            await source.packets(0, of_a)
            await source.packets(1, of_b)
        await source.end()
        await source.close()
        while incoming.state.value is not SessionState.COMPLETED:
            queued = [each.queued_bytes for each in incoming.devices.values()]
            assert max(queued) <= 1000
            most = max(most, sum(queued))
            await trio.sleep(0.5)
    assert 1000 < most <= 1500 + 100, "the due packet is always admitted"
    assert [each.loaded for each in devices.values()] == [b"".join(state)] * 2


async def test_streams_that_the_caller_opened(autojump_clock: MockClock) -> None:
    """They are served as accepted ones are, and left open."""
    pairs = [trio.testing.memory_stream_pair() for _ in range(2)]
    device = SimulatedSink()

    async def connect() -> trio.abc.Stream:
        return ours.pop(0)

    ours = [pair[0] for pair in pairs]
    async with open_incoming([pair[1] for pair in pairs], {A: device}) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(A, return_path=True)
        await source.switch_over()
        await source.packets(0, *state_packets(A, [b"x"]))
        await source.end()
        await incoming.wait_complete()
    await pairs[0][1].send_all(b"still open")
    await source.close()
    assert device.loaded == b"x"


async def test_a_failed_migration_is_one_group_with_its_result(
    autojump_clock: MockClock,
) -> None:
    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, {A: SimulatedSink()}) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.main.send_all(b"QEVM\0\0\0\2")
            await incoming.wait_complete()
    (fault,) = failed.value.exceptions
    assert isinstance(fault, PeerProtocolError)
    assert str(fault) == "main: stream of unknown version 2 (at byte 4)"
    assert failed.value.result.status == "failed"
    assert failed.value.result.errors == (str(fault),)
    assert [each.status for each in failed.value.result.devices] == ["failed"]
    part = failed.value.subgroup(PeerProtocolError)
    assert isinstance(part, MigrationFailed)
    assert part.result is failed.value.result
