"""Collaboration: what the strategies make, received by sessions in virtual time."""

from __future__ import annotations

from collections import defaultdict

import pytest
import trio
from hypothesis import Phase, find, given, settings, strategies as st
from trio.testing import MockClock

from tests.forms import form
from trio_vfio import (
    ConnectionLost,
    DeadlineExceeded,
    PeerProtocolError,
    open_incoming,
)
from trio_vfio._wire._multifd import StateHeader, state_header_untrusted
from trio_vfio.testing import (
    Close,
    ScriptedPeer,
    SimulatedSink,
    link,
)
from trio_vfio.testing.strategies import (
    Packet,
    Schedule,
    Stream,
    damaged,
    headers,
    packets,
    schedules,
    streams,
)


def receive(schedule: Schedule, seconds: float = 0.0) -> dict[str, SimulatedSink]:
    """Receive it; return its devices. In the end the source leaves."""
    devices = {
        idstr: SimulatedSink(seconds_per_call=seconds)
        for idstr in schedule.stream.devices
    }

    leaves = [Close(10_000, name) for name in schedule.stream.connections]

    async def migrate() -> None:
        connect, there = link()
        peer = ScriptedPeer(connect, [*schedule.script, *leaves])
        # Where no connection is one of a migration, a session waits for others.
        with trio.move_on_after(20_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.run)
                async with open_incoming(there, devices) as incoming:
                    await incoming.wait_complete()
                # Nobody may be left who would take its connections.
                nursery.cancel_scope.cancel(reason="the migration is over")

    trio.run(migrate, clock=MockClock(autojump_threshold=0))
    return devices


@given(headers())
def test_headers_are_what_a_decoder_reads(header: StateHeader) -> None:
    assert state_header_untrusted(bytearray(header.encode()), 0) == header


@given(packets())
def test_packets_are_whole(packet: Packet) -> None:
    if packet.header is not None:
        assert packet.raw == packet.header.encode() + packet.data


@given(schedules())
@settings(max_examples=form(short=20, long=50))
def test_a_schedule_brings_the_whole_stream(schedule: Schedule) -> None:
    came: defaultdict[int | str, bytes] = defaultdict(bytes)
    for piece in schedule.script:
        came[piece.connection] += piece.data
    assert came == schedule.stream.connections
    times = [piece.time for piece in schedule.script]
    assert times == sorted(times)


@given(schedules(), st.sampled_from([0.0, 1.0]))
@settings(max_examples=form(short=30, long=100))
def test_any_schedule_loads_the_same_state(schedule: Schedule, seconds: float) -> None:
    for idstr, device in receive(schedule, seconds).items():
        state = schedule.stream.devices[idstr]
        assert (device.loaded, device.config) == (state.data, state.config)
        assert device.finished and not device.aborted


@given(schedules(streams().flatmap(damaged)))
@settings(max_examples=form(short=30, long=100))
def test_any_damage_ends_in_a_defined_way(schedule: Schedule) -> None:
    """Complete, or failed for a reason that is the peer's, and nothing half-done."""
    devices: dict[str, SimulatedSink] = {}
    try:
        devices = receive(schedule)
    except ExceptionGroup as failed:
        peers = (PeerProtocolError, ConnectionLost, DeadlineExceeded)
        assert failed.split(peers)[1] is None
    for device in devices.values():
        assert device.finished or device.aborted or not device.began


@pytest.mark.parametrize(
    "holds",
    [
        lambda stream: len(stream.channels) == 3 and len(stream.devices) == 2,
        lambda stream: any(state.data for state in stream.devices.values()),
        lambda stream: len(stream.channels[0]) > 2000,
    ],
    ids=["many", "data", "ram"],
)
def test_there_are_streams_of_all_kinds(holds: object) -> None:
    assert callable(holds)
    # Only whether there is one: to make it small takes most of the time.
    once = settings(max_examples=2000, phases=[Phase.generate])
    assert isinstance(find(streams(), holds, settings=once), Stream)
