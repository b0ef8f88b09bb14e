"""Collaboration: scripted peers against sessions, and against what a test drives."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vfio import (
    Connect,
    DeadlineExceeded,
    Deadlines,
    DestinationFailed,
    MigrationFailed,
    MigrationResult,
    open_incoming,
    open_outgoing,
)
from trio_vfio._wire._return_path import shut
from trio_vfio.testing import (
    Close,
    MainStream,
    MemoryListener,
    Piece,
    ScriptedPeer,
    SimulatedSink,
    SimulatedSource,
    Wait,
    config_packet,
    data_packet,
    initial_packet,
    link,
)

from ..capture.build import (
    channel,
    config_packet as captured_config,
    main_stream,
    packet as captured_packet,
    write_capture,
)
from ..captures_data import COMPLETE, CaptureFiles, capture

A = "0000:00:04.0/vfio"
HOUR = 3600.0


async def receive(
    peer: ScriptedPeer, there: list[MemoryListener]
) -> tuple[MigrationResult, dict[str, SimulatedSink]]:
    """Receive whatever devices *peer* sends."""
    devices: dict[str, SimulatedSink] = {}

    def make(idstr: str, instance_id: int) -> SimulatedSink:
        devices[idstr] = SimulatedSink()
        return devices[idstr]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        async with open_incoming(there, make, digests=True) as incoming:
            await incoming.wait_complete()
    return incoming.result(), devices


async def test_a_hostile_source_in_five_lines(autojump_clock: MockClock) -> None:
    connect, there = link()
    stream = MainStream()
    script = [Piece(0, "main", stream.begin(A)), Piece(60, "main", b"GET / HTTP/1.1")]
    with pytest.raises(MigrationFailed, check=lambda e: "main" in str(e.exceptions[0])):
        async with open_incoming(there, {A: SimulatedSink()}):
            await ScriptedPeer(connect, script).run()
    assert trio.current_time() == 60


async def test_packets_of_one_device_spread_over_hours(
    autojump_clock: MockClock,
) -> None:
    """Each connection keeps its own times; the device gets all in order."""
    connect, there = link()
    stream = MainStream()
    peer = ScriptedPeer(
        connect,
        [
            Piece(0, 0, initial_packet(0)),
            Piece(0, 1, initial_packet(1)),
            Piece(0, "main", stream.begin(A) + stream.switch_over() + stream.end()),
            Piece(1 * HOUR, 0, data_packet(A, 2, b"c")),
            Piece(9 * HOUR, 0, data_packet(A, 0, b"a")[:100]),
            Piece(11 * HOUR, 0, data_packet(A, 0, b"a")[100:]),
            Piece(2 * HOUR, 1, data_packet(A, 1, b"b")),
            Piece(20 * HOUR, 1, config_packet(A, 3, b"blob")),
        ],
    )
    device = SimulatedSink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        deadlines = Deadlines(silence=None)
        async with open_incoming(there, {A: device}, deadlines=deadlines) as incoming:
            await incoming.wait_complete()
    assert (device.loaded, device.config) == (b"abc", b"blob")
    assert [call.time for call in device.calls if call.name == "write"] == [
        11 * HOUR
    ] * 3
    assert [call.time for call in device.calls if call.name == "load_config"] == [
        20 * HOUR
    ]


async def test_a_connection_that_is_not_read_holds_up_no_other(
    autojump_clock: MockClock,
) -> None:
    connect, (listener,) = link(window=4)
    script = [Piece(1, "main", b"12345"), Piece(2, 0, b"ab"), Piece(3, "main", b"6")]
    peer = ScriptedPeer(connect, script)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        main, channel = await listener.accept(), await listener.accept()
        assert await channel.receive_some() == b"ab"
        assert trio.current_time() == 2
        await trio.sleep(10)
        assert peer.sent == {"main": 0, 0: 2}
        assert [await main.receive_some() for _ in range(3)] == [b"1234", b"5", b"6"]
        await main.send_all(b"answer")
        await channel.aclose()
        # With the end of main it ends, and would not hear of the other.
        await wait_all_tasks_blocked()
        await main.aclose()
    assert peer.heard == {"main": b"answer", 0: b""}
    assert peer.ended == {"main": 12, 0: 12}


async def test_steps_of_a_connection_keep_their_order(
    autojump_clock: MockClock,
) -> None:
    connect, (listener,) = link()
    peer = ScriptedPeer(
        connect, [Piece(5, "main", b"a"), Piece(1, "main", b"b"), Close(7, "main")]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        main = await listener.accept()
        got = [(await main.receive_some(), trio.current_time()) for _ in range(2)]
        # Both leave at once, and may arrive as one.
        assert got == [(b"ab", 5), (b"", 7)] or got[:2] == [(b"a", 5), (b"b", 5)]
    assert trio.current_time() == 7


async def test_a_reply_can_be_waited_for(autojump_clock: MockClock) -> None:
    connect, (listener,) = link()
    peer = ScriptedPeer(
        connect,
        [
            Piece(0, "main", b"who?"),
            Wait(0, "main", lambda peer: b"me" in peer.heard["main"]),
            Piece(0, "main", b"good"),
            Wait(0, 0, lambda peer: peer.sent["main"] == 8),
            Piece(0, 0, b"on"),
            Close(0, "main"),
        ],
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        main, channel = await listener.accept(), await listener.accept()
        await trio.sleep(30)
        assert await main.receive_some() == b"who?"
        await main.send_all(b"it is ")
        await wait_all_tasks_blocked()
        assert peer.sent["main"] == 4
        await main.send_all(b"me")
        assert await main.receive_some() == b"good"
        assert await channel.receive_some() == b"on"
    assert peer.ended["main"] == 30


async def test_a_wait_ends_with_its_connection(autojump_clock: MockClock) -> None:
    connect, (listener,) = link()
    never = Wait(0, "main", lambda _: False)
    peer = ScriptedPeer(connect, [never, Piece(0, "main", b"x")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        main = await listener.accept()
        await trio.sleep(3)
        await main.aclose()
    assert (peer.sent, peer.ended) == ({"main": 0}, {"main": 3})


async def test_half_a_connection_is_closed(autojump_clock: MockClock) -> None:
    connect, (listener,) = link()
    peer = ScriptedPeer(connect, [Piece(0, "main", b"all"), Close(2, "main", "eof")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        main = await listener.accept()
        assert await main.receive_some() == b"all"
        assert await main.receive_some() == b""
        assert trio.current_time() == 2
        await trio.sleep(1)
        await main.send_all(b"heard")
        await main.aclose()
    assert peer.heard == {"main": b"heard"}
    assert peer.ended == {"main": 3}


async def test_a_reset_over_a_socket() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listeners[0].socket.getsockname()
    connect = partial(trio.open_tcp_stream, host, port)
    peer = ScriptedPeer(connect, [Close(0, "main", "reset")])
    async with trio.open_nursery() as nursery, listeners[0]:
        nursery.start_soon(peer.run)
        stream = await listeners[0].accept()
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
    assert "main" in peer.ended


async def test_a_destination_that_refuses(autojump_clock: MockClock) -> None:
    """It says so instead of an answer to the first PING."""
    connect, there = link()
    peer = ScriptedPeer(there, [Piece(20, "main", shut(1).encode())], channels=2)
    source = SimulatedSource(size=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        with pytest.RaisesGroup(DestinationFailed):
            async with open_outgoing(connect, {A: source}) as outgoing:
                await outgoing.migrate()
    assert source.aborted_at == 20
    assert bytes(peer.heard[0]).startswith(initial_packet(0)[:8])
    assert peer.ended == {"main": 20, 0: 20, 1: 20}
    assert A.encode() in peer.heard["main"]


async def test_a_cancel_closes_all_connections(autojump_clock: MockClock) -> None:
    connect, (listener,) = link()
    peer = ScriptedPeer(connect, [Piece(0, 0, b"x"), Piece(HOUR, 0, b"y")])
    with trio.move_on_after(60):
        await peer.run()
    main, channel = await listener.accept(), await listener.accept()
    assert await channel.receive_some() == b"x"
    assert await main.receive_some() == await channel.receive_some() == b""


async def test_connections_that_cannot_be_opened() -> None:
    opened, there = link()
    count = 0

    async def connect() -> trio.abc.Stream:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError("no more")
        return await opened()

    with pytest.RaisesGroup(
        pytest.RaisesExc(OSError, match="no more"), flatten_subgroups=True
    ):
        await ScriptedPeer(connect, [Piece(0, 0, b"x")]).run()
    # The one that was there is closed.
    main = await there[0].accept()
    assert await main.receive_some() == b""


@pytest.mark.parametrize(
    ("script", "channels", "match"),
    [
        ([Piece(0, cast("Any", "mian"), b"")], None, "no connection 'mian'"),
        ([Piece(0, -1, b"")], None, "no connection -1"),
        ([Piece(0, 3, b"")], 2, "names 4 channels, not 2"),
        ([Close(0, 1), Piece(0, 1, b"")], None, "after the end"),
    ],
)
def test_scripts_that_make_no_sense(
    script: list[Any], channels: int | None, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        ScriptedPeer(link()[0], script, channels=channels)


@pytest.mark.parametrize("files", COMPLETE, ids=lambda files: files.name)
async def test_a_capture_is_played(
    files: CaptureFiles, autojump_clock: MockClock
) -> None:
    """What the devices get is what an independent reader has found in it."""
    connect, there = link()
    peer = ScriptedPeer.from_capture(connect, files.directory)
    result, devices = await receive(peer, there)
    found = attrs.asdict(result)
    for kind in "devices", "channels":
        for each, expected in zip(found[kind], files.expected[kind], strict=True):
            assert {name: each[name] for name in expected} == expected
    assert result.status == "completed"
    assert peer.heard["main"] == (files.return_path or b"")
    assert all(device.finished for device in devices.values())


async def played_in(
    connect: Connect, there: list[MemoryListener], speed: float
) -> float:
    """Play a capture, and return when its switchover began."""
    directory = capture("p-1dev-4ch-pad4M-rp-proxy").directory
    began = trio.current_time()
    peer = ScriptedPeer.from_capture(connect, directory, speed=speed)
    _, devices = await receive(peer, there)
    (device,) = devices.values()
    (config,) = [call.time for call in device.calls if call.name == "load_config"]
    return config - began


async def test_a_capture_takes_the_time_it_took(autojump_clock: MockClock) -> None:
    times = [await played_in(*link(), speed=speed) for speed in (1, 0.01, math.inf)]
    recorded = times[0]
    # By the times of its reads: main ended at 0.377, and the config came later.
    assert 0.37 < recorded < 0.5
    assert times == pytest.approx([recorded, 100 * recorded, 0])


async def test_a_capture_that_was_cut(autojump_clock: MockClock) -> None:
    """Its source cut its channels inside packets, and left."""
    connect, there = link()
    path = capture("q-1dev-4ch-pad4M-mute").directory
    peer = ScriptedPeer.from_capture(connect, path)
    with pytest.RaisesGroup(MigrationFailed) as failed:
        await receive(peer, there)
    assert failed.group_contains(Exception, match="inside|ended")


async def test_a_capture_without_times(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    packets = [captured_packet(0, b"a"), captured_config(1)]
    write_capture(tmp_path, main_stream(), {7: packets})
    connect, there = link()
    peer = ScriptedPeer.from_capture(connect, tmp_path)
    _, (device,) = await receive(peer, there)
    assert device == "0000:00:04.0/vfio"
    assert peer.sent == {"main": len(main_stream()), 0: len(channel(7, packets))}


async def test_a_capture_of_which_there_is_no_main(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    write_capture(tmp_path, None, {0: [captured_packet(0, b"a")]})
    connect, there = link()
    peer = ScriptedPeer.from_capture(connect, tmp_path)
    with pytest.RaisesGroup(pytest.RaisesGroup(DeadlineExceeded)):
        await receive(peer, there)


def test_captures_that_cannot_be_played(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no capture"):
        ScriptedPeer.from_capture(link()[0], tmp_path)
    with pytest.raises(ValueError, match="speed of 0"):
        ScriptedPeer.from_capture(link()[0], tmp_path, speed=0)
