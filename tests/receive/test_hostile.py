"""Collaboration: sources that break the protocol, each refused with a name.

Never a hang: virtual time shows when the session ended.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vfio import Deadlines, MigrationFailed, open_incoming
from trio_vfio._wire._main_encode import encode_command, encode_end, encode_header
from trio_vfio._wire._main_events import CommandType
from trio_vfio._wire._multifd import InitialPacket, StateFlag, StateHeader
from trio_vfio.testing import (
    ScriptedSource,
    SimulatedSink,
    config_packet,
    data_packet,
    link,
    state_packets,
)

A, B = "0000:00:04.0/vfio", "0000:00:05.0/vfio"
FIRST = 64
"""Offset of a channel's first packet."""

Stage = Callable[[ScriptedSource], Awaitable[None]]


async def fails_with(
    stage: Stage, *, channels: int = 2, named: tuple[str, ...] = (A,), **options: object
) -> list[str]:
    """Run a migration that must fail; return what was wrong."""
    devices = {name: SimulatedSink() for name in named}
    connect, there = link()
    async with trio.open_nursery() as nursery:
        with pytest.raises(MigrationFailed) as failed:
            async with open_incoming(there, devices, **options) as incoming:  # type: ignore[arg-type]
                source = await ScriptedSource.connect(connect, channels=channels)
                nursery.start_soon(source.hang_up)
                await stage(source)
                await incoming.wait_complete()
    for device in devices.values():
        assert device.began == (device.aborted_at is not None)
    return [str(each) for each in failed.value.exceptions]


async def test_a_packet_twice(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.packets(0, data_packet(A, 5, b"x"))
        await wait_all_tasks_blocked()
        await source.packets(1, data_packet(A, 5, b"y"))

    assert await fails_with(stage) == [
        f"channel 1: packet 5 of {A} was sent twice (at byte {FIRST})"
    ]


async def test_a_packet_twice_while_the_first_still_arrives(
    autojump_clock: MockClock,
) -> None:
    """Admission takes the index, not only the memory."""

    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.packets(0, data_packet(A, 5, b"half")[:-2])
        await wait_all_tasks_blocked()
        await source.packets(1, data_packet(A, 5, b"again"))

    assert await fails_with(stage) == [
        f"channel 1: packet 5 of {A} was sent twice (at byte {FIRST})"
    ]


async def test_a_packet_twice_that_has_had_to_wait(autojump_clock: MockClock) -> None:
    """What is refused at admission is refused when room comes, too."""

    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.packets(0, data_packet(A, 2, b"x" * 8))
        await wait_all_tasks_blocked()
        await source.packets(1, data_packet(A, 1, b"y" * 8))
        await wait_all_tasks_blocked()
        await source.switch_over()
        await source.packets(0, data_packet(A, 0), data_packet(A, 1, b"z" * 8))

    errors = await fails_with(stage, max_queued_bytes=8)
    assert len(errors) == 1, errors
    error = errors[0]
    assert f"packet 1 of {A} was sent twice" in error


async def test_channels_that_end_without_a_packet(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        await source.packets(0, data_packet(A, 0, b"x"), config_packet(A, 2))
        await source.end()
        await source.close()

    assert await fails_with(stage) == [f"all channels have ended without {A}: packet 1"]
    assert trio.current_time() == 0


async def test_channels_that_never_were(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        await source.end()

    assert await fails_with(stage, channels=0) == [
        f"all channels have ended without {A}: packet 0"
    ]
    assert trio.current_time() == 0


async def test_a_missing_packet_while_channels_stay_open(
    autojump_clock: MockClock,
) -> None:
    """An idle channel may still bring it, so only the silence deadline can tell."""

    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        await source.packets(0, config_packet(A, 1))
        await source.end()

    assert await fails_with(stage) == [
        f"silence deadline of 30 s passed: waiting for {A}: packet 0"
    ]
    assert trio.current_time() == 30


async def test_a_stream_without_switchover_start(autojump_clock: MockClock) -> None:
    """QEMU takes this for success and loads nothing."""

    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.packets(0, *state_packets(A, [b"x"]))
        await wait_all_tasks_blocked()
        await source.end()

    assert await fails_with(stage) == [
        f"main: stream ended without SWITCHOVER_START, with 2 packets queued for {A}"
    ]


async def test_a_second_switchover_start(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        await source.switch_over()

    (error,) = await fails_with(stage)
    assert error.startswith("main: second SWITCHOVER_START (at byte ")


async def test_an_index_beyond_the_window_waits(autojump_clock: MockClock) -> None:
    """It is no error in itself, only never admitted; nothing is sized by it."""

    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        await source.packets(0, data_packet(A, 0xFFFF_FFFE, b"x"))
        await source.packets(1, data_packet(A, 1024, b"x"))

    assert await fails_with(stage) == [
        f"all channels are full, and none brings {A}: packet 0"
    ]
    assert trio.current_time() == 0


async def test_a_source_that_fills_all_channels_before_the_due_packet(
    autojump_clock: MockClock,
) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        for channel in 0, 1:
            first = 1 + 10 * channel
            packets = [data_packet(A, first + n, b"x" * 50) for n in range(9)]
            await source.packets(channel, *packets)

    (error,) = await fails_with(stage, max_queued_bytes=100)
    assert error == (f"all channels are full, and none brings {A}: packet 0")
    assert trio.current_time() == 0


async def test_full_channels_before_switchover_are_no_stall(
    autojump_clock: MockClock,
) -> None:
    device = SimulatedSink()
    state = [b"x" * 50] * 10
    connect, there = link()
    async with open_incoming(there, {A: device}, max_queued_bytes=100) as incoming:
        source = await ScriptedSource.connect(connect, channels=1)
        await source.begin(A)
        await source.packets(0, *state_packets(A, state))
        await trio.sleep(1000)
        assert incoming.devices[A].queued_bytes == 100
        await source.switch_over()
        await source.end()
        await source.close()
        await incoming.wait_complete()
    assert device.loaded == b"".join(state)


async def test_an_oversized_packet(autojump_clock: MockClock) -> None:
    """Refused by its header: no memory is taken."""
    size = 16 * 1024 * 1024 - 12 + 1

    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.packets(1, StateHeader(A, 0, size).encode())

    assert await fails_with(stage) == [
        f"channel 1: device-state packet of {A} with a payload of {size + 12} bytes"
        f" (at byte {FIRST})"
    ]


async def test_a_config_that_is_none(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        header = StateHeader(A, 0, 20, StateFlag.CONFIG)
        await source.packets(0, header.encode() + bytes(20))

    assert await fails_with(stage) == [f"config of {A} without its marks"]


async def test_packets_of_a_device_that_was_never_announced(
    autojump_clock: MockClock,
) -> None:
    """They wait until SWITCHOVER_START, for the announcement may be on its way."""

    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.packets(0, data_packet(B, 0, b"x"))
        await trio.sleep(100)
        await source.switch_over()

    assert await fails_with(stage) == [
        f"channel 0: packet 0 of {B} of a device that was never announced"
        f" (at byte {FIRST})"
    ]
    assert trio.current_time() == 100


async def test_a_named_device_that_was_never_announced(
    autojump_clock: MockClock,
) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()

    assert await fails_with(stage, named=(A, B)) == [
        f"main: the source never announced {B}"
    ]


async def test_a_device_that_was_not_asked_for(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A, B)

    (error,) = await fails_with(stage)
    assert error.startswith(f"main: the source sends {B}, which was not asked for")


async def test_state_on_main_and_by_multifd(autojump_clock: MockClock) -> None:
    async def packet_first(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        await source.packets(0, data_packet(A, 0, b"x"))
        await wait_all_tasks_blocked()
        await source.end_device(A, [b"y"])

    async def main_first(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        await source.end_device(A, [b"y"])
        await wait_all_tasks_blocked()
        await source.packets(0, data_packet(A, 0, b"x"))

    both = f"{A}: state after switchover both on main and by multifd"
    (error,) = await fails_with(packet_first)
    assert error.startswith(f"main: {both} (at byte ")
    (error,) = await fails_with(main_first)
    assert error.startswith(f"main: {A}: data on main, but no config (at byte ")


async def test_data_on_main_without_a_config(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        await source.end_device(A, [b"y"])

    (error,) = await fails_with(stage)
    assert error.startswith(f"main: {A}: data on main, but no config (at byte ")


async def test_a_ping_without_a_return_path(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.command(CommandType.PING, bytes(4))

    (error,) = await fails_with(stage)
    assert error.startswith("main: PING without a return path (at byte ")


async def test_a_second_return_path(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A, return_path=True)
        await source.command(CommandType.OPEN_RETURN_PATH)

    (error,) = await fails_with(stage)
    assert error.startswith("main: second OPEN_RETURN_PATH (at byte ")


async def test_a_main_stream_that_is_cut(autojump_clock: MockClock) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.main.aclose()

    (error,) = await fails_with(stage)
    assert error.startswith("main: stream ends in the middle of its sections (at byte ")


@pytest.mark.parametrize("cut", [5, 100, 280, 290])
async def test_a_channel_that_is_cut(autojump_clock: MockClock, cut: int) -> None:
    """In the common header, the fixed part, VFIO's header, the data."""

    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.packets(0, data_packet(A, 0, b"some data")[:cut])
        await source.channels[0].aclose()

    assert await fails_with(stage) == [
        f"channel 0: channel ends inside the packet (at byte {FIRST})"
    ]


@pytest.mark.parametrize("which", range(3))
async def test_every_byte_of_a_packet_header_matters(
    autojump_clock: MockClock, which: int
) -> None:
    """Whichever is changed, the migration fails and says where, in bounded time."""
    for at in range(288):
        packets = state_packets(A, [b"one", b"two"])
        damaged = bytearray(packets[which])
        damaged[at] ^= 0x81
        packets[which] = bytes(damaged)

        async def stage(source: ScriptedSource, packets: list[bytes] = packets) -> None:
            await source.begin(A)
            await source.switch_over()
            await source.packets(0, *packets)
            await source.end()

        before = trio.current_time()
        errors = await fails_with(stage, channels=1, deadlines=Deadlines(silence=1))
        assert trio.current_time() - before <= 2
        for error in errors:
            assert any(word in error for word in ("channel 0", A)), (at, error)
            assert "at byte" in error or "packet" in error, (at, error)


async def test_no_more_than_256_devices(autojump_clock: MockClock) -> None:
    def make(idstr: str, instance_id: int) -> SimulatedSink:
        return SimulatedSink()

    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, make) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(*(f"{n}/vfio" for n in range(300)))
            await incoming.wait_complete()
    assert "more than 256 devices" in str(failed.value.exceptions[0])


async def test_pings_that_nobody_reads_the_answers_of_take_no_memory(
    autojump_clock: MockClock,
) -> None:
    """The source that asks without listening waits, not the other way round."""
    ours, theirs = trio.socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    source, stream = trio.SocketStream(ours), trio.SocketStream(theirs)
    sent = 0
    async with source, stream, open_incoming([stream], {A: SimulatedSink()}):
        await source.send_all(encode_header("pc-q35-10.0"))
        await source.send_all(encode_command(CommandType.OPEN_RETURN_PATH))
        with trio.move_on_after(100) as scope:
            while sent < 100_000:
                await source.send_all(encode_command(CommandType.PING, bytes(4)) * 100)
                sent += 100
    assert scope.cancelled_caught


async def test_full_channels_are_no_stall_while_one_may_still_join(
    autojump_clock: MockClock,
) -> None:
    """What a connection will bring is not known before it says what it is."""
    device = SimulatedSink()
    connect, there = link()
    async with open_incoming(there, {A: device}, max_queued_bytes=4) as incoming:
        main, first, late = [await connect() for _ in range(3)]
        await first.send_all(InitialPacket(channel_id=0).encode())
        source = ScriptedSource(main, [first, late])
        await source.begin(A)
        await source.switch_over()
        packets = state_packets(A, [b"1234"] * 4)
        await source.packets(0, *packets[1:])
        await trio.sleep(5)
        await late.send_all(InitialPacket(channel_id=1).encode())
        await source.packets(1, packets[0])
        await source.end()
        await source.close()
        await incoming.wait_complete()
    assert device.loaded == b"1234" * 4


async def test_a_stall_is_found_when_a_write_of_main_s_data_ends(
    autojump_clock: MockClock,
) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A, B)
        await source.switch_over()
        await source.packets(0, data_packet(B, 5000, b"x"))
        await wait_all_tasks_blocked()
        await source.end_device(A, [b"abc"], b"config")

    assert await fails_with(stage, channels=1, named=(A, B)) == [
        f"all channels are full, and none brings {B}: packet 0"
    ]
    assert trio.current_time() == 0


async def test_before_switchover_all_packets_keep_to_the_session_s_limit(
    autojump_clock: MockClock,
) -> None:
    """Not even the due ones have to be admitted then."""
    names = [f"{n}/vfio" for n in range(32)]
    devices = {name: SimulatedSink() for name in names}
    connect, there = link()
    async with open_incoming(there, devices, max_session_bytes=1000) as incoming:
        source = await ScriptedSource.connect(connect, channels=32)
        await source.begin(*names)
        for channel, name in enumerate(names):
            await source.packets(channel, *state_packets(name, [bytes(400)]))
        await wait_all_tasks_blocked()
        queued = [each.queued_bytes for each in incoming.devices.values()]
        assert 800 <= sum(queued) <= 1000
        await source.switch_over()
        await source.end()
        await source.close()
        await incoming.wait_complete()
    assert all(each.loaded == bytes(400) for each in devices.values())


@pytest.mark.parametrize("together", [True, False])
async def test_bytes_behind_the_end_of_the_stream(
    autojump_clock: MockClock, together: bool
) -> None:
    async def stage(source: ScriptedSource) -> None:
        await source.begin(A)
        await source.switch_over()
        await source.end_device(A)
        await source.main.send_all(encode_end() + b"!" * together)
        await wait_all_tasks_blocked()
        await source.main.send_all(b"!")

    (error,) = await fails_with(stage)
    assert error.startswith("main: bytes behind the end of the stream (at byte ")


@pytest.mark.parametrize("answer", ["raises", "returns None"])
async def test_a_callable_that_does_not_want_a_device(
    autojump_clock: MockClock, answer: str
) -> None:
    def make(idstr: str, instance_id: int) -> SimulatedSink | None:
        if answer == "raises":
            raise KeyError(idstr)
        return None

    connect, there = link()
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(there, make) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(A)
            await incoming.wait_complete()
    (fault,) = failed.value.exceptions
    assert str(fault).startswith(
        f"{A}: make: KeyError" if answer == "raises" else f"main: the source sends {A}"
    )


@pytest.mark.parametrize("steps", range(12))
async def test_a_due_packet_that_waits_for_the_switchover_is_no_stall(
    autojump_clock: MockClock, steps: int
) -> None:
    """At whatever moment another packet arrives beside SWITCHOVER_START."""
    for _ in range(20):
        devices = {name: SimulatedSink() for name in (A, B)}
        connect, there = link()
        async with open_incoming(there, devices, max_queued_bytes=4) as incoming:
            source = await ScriptedSource.connect(connect)
            await source.begin(A, B)
            first, *others = state_packets(A, [b"x" * 8] * 2)
            await source.packets(0, first)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                others += state_packets(B, [b"x" * 8] * 2)
                nursery.start_soon(source.packets, 1, *others)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                await source.switch_over()
            await source.end()
            await source.close()
            await incoming.wait_complete()
        assert all(device.loaded == b"x" * 16 for device in devices.values())
