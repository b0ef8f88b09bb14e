"""Collaboration: links in memory are as slow and as short as they are told to be."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, check_half_closeable_stream, wait_all_tasks_blocked

from trio_vfio import open_incoming
from trio_vfio.testing import (
    LinkStream,
    ScriptedSource,
    SimulatedSink,
    SimulatedSource,
    link,
    state_packets,
)

KIB = 1024
MIB = 1024 * KIB

WINDOW = 256 * KIB


async def pair(**options: Any) -> tuple[LinkStream, LinkStream]:
    """Open one connection; return the source's and the destination's end."""
    here, (there,) = link(**options)
    return await here(), await there.accept()


async def arrivals(stream: LinkStream) -> list[tuple[float, int]]:
    """Receive until the end; return when how much came."""
    came: list[tuple[float, int]] = []
    while data := await stream.receive_some():
        came.append((trio.current_time(), len(data)))
    return [*came, (trio.current_time(), 0)]


async def receive_all(stream: LinkStream, max_bytes: int | None = None) -> bytes:
    """Receive until nothing more comes, however that shows."""
    got = b""
    try:
        while data := await stream.receive_some(max_bytes):
            got += data
    except trio.BrokenResourceError:
        pass
    return got


@asynccontextmanager
async def raises_in_task(
    error: type[Exception], afn: Any, *args: Any
) -> AsyncGenerator[list[float]]:
    """Have *afn* wait in a task; at the end, see that it raised *error*, and when."""
    when: list[float] = []

    async def run() -> None:
        with pytest.raises(error):
            await afn(*args)
        when.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        assert when == []
        yield when
    assert len(when) == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 1000},
        {"delay": 3, "window": 64 * KIB},
        {"delay": 3, "window": 64 * KIB, "bandwidth": MIB},
    ],
)
async def test_ends_are_streams_as_trio_wants_them(
    autojump_clock: MockClock, options: dict[str, Any]
) -> None:
    async def make() -> tuple[LinkStream, LinkStream]:
        return await pair(**options)

    async def clogged() -> tuple[LinkStream, LinkStream]:
        source, destination = await make()
        for end in (source, destination):
            await end.send_all(bytes(options.get("window", WINDOW)))
        return source, destination

    await check_half_closeable_stream(make, clogged)


async def test_without_options_everything_arrives_at_once(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair()
    await source.send_all(b"abc")
    await destination.send_all(b"def")
    assert await destination.receive_some(2) == b"ab"
    assert await destination.receive_some() == b"c"
    assert await source.receive_some() == b"def"
    await source.send_eof()
    assert await destination.receive_some() == b""
    await destination.send_all(b"g")
    assert await source.receive_some() == b"g"
    assert trio.current_time() == 0


async def test_connections_are_named_in_the_order_in_which_they_are_opened(
    autojump_clock: MockClock,
) -> None:
    here, (there,) = link(delay={"main": 1, 0: 2, 2: 3})
    for text in (b"main", b"0", b"1", b"2"):
        await (await here()).send_all(text)
    assert list(here.connections) == ["main", 0, 1, 2]
    times = []
    for text in (b"main", b"0", b"1", b"2"):
        start = trio.current_time()
        accepted = await there.accept()
        assert await accepted.receive_some() == text
        times.append(trio.current_time() - start)
    # Those that were sent at the same time arrive while others are waited for.
    assert times == [1, 1, 0, 1]


async def test_what_went_over_can_be_seen(autojump_clock: MockClock) -> None:
    here, (there,) = link(delay={0: 1})
    for _ in range(2):
        source, destination = await here(), await there.accept()
    await source.send_all(b"abcdef")
    await destination.send_all(b"gh")
    assert await destination.receive_some(4) == b"abcd"
    assert await source.receive_some(1) == b"g"
    seen = here.connections[0]
    assert (seen.sent, seen.received) == (6, 4)
    assert (seen.sent_back, seen.received_back) == (2, 1)
    assert here.connections["main"].sent == 0


async def test_opening_at_the_same_time(autojump_clock: MockClock) -> None:
    here, _ = link()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(here)
    assert list(here.connections) == ["main", 0, 1]


async def test_a_closed_listener() -> None:
    here, (there,) = link()
    async with raises_in_task(trio.ClosedResourceError, there.accept):
        await there.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await here()
    assert here.connections == {}


# --- Delay


async def test_a_delay_is_pipelined_and_holds_both_ways(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(delay=10)
    came: dict[LinkStream, list[tuple[float, int]]] = {}

    async def receive(end: LinkStream) -> None:
        came[end] = await arrivals(end)

    async with trio.open_nursery() as nursery:
        for end in (source, destination):
            nursery.start_soon(receive, end)
        for _ in range(4):
            await source.send_all(b"x")
            await trio.sleep(1)
        await destination.send_all(bytes(MIB))
        await source.send_eof()
        await trio.sleep(1)
        await destination.send_eof()
    assert came[destination] == [(10, 1), (11, 1), (12, 1), (13, 1), (14, 0)]
    assert came[source] == [(14, MIB), (15, 0)]


async def test_a_delay_does_not_limit_what_is_on_the_way(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(delay=10)
    await source.send_all(bytes(4 * WINDOW))
    assert trio.current_time() == 0
    await source.send_eof()
    assert await arrivals(destination) == [(10, 4 * WINDOW), (10, 0)]


async def test_a_close_is_heard_of_behind_what_was_sent(
    autojump_clock: MockClock,
) -> None:
    """Until then the other end may send, to nobody."""
    source, destination = await pair(delay=10)
    await source.send_all(b"last words")
    await source.aclose()
    await trio.sleep(9)
    await destination.send_all(b"x")
    await trio.sleep(1)
    with pytest.raises(trio.BrokenResourceError, match="the other end was closed"):
        await destination.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError, match="the other end was closed"):
        await destination.send_eof()
    assert await receive_all(destination) == b"last words"


async def test_a_sender_that_waits_for_the_window_hears_of_a_close(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(delay=10, window=5)
    await source.send_all(b"12345")
    async with raises_in_task(trio.BrokenResourceError, source.send_all, b"6") as when:
        await destination.aclose()
    assert when == [10]


async def test_a_connection_that_never_delivers(autojump_clock: MockClock) -> None:
    source, destination = await pair(delay=math.inf)
    await source.send_all(b"x")
    await source.aclose()
    with trio.move_on_after(1000) as scope:
        await destination.receive_some()
    assert scope.cancelled_caught


# --- Bandwidth


async def test_a_send_returns_when_its_last_byte_has_left(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(bandwidth=1000, delay=2)
    await source.send_all(bytes(500))
    assert trio.current_time() == 0.5
    await source.send_all(bytes(1500))
    assert trio.current_time() == 2
    await source.send_eof()
    assert await destination.receive_some() == bytes(500)
    assert trio.current_time() == 2.5
    assert await arrivals(destination) == [(4, 1500), (4, 0)]


async def test_data_arrives_piece_by_piece(autojump_clock: MockClock) -> None:
    source, destination = await pair(bandwidth=64 * KIB, delay=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send_all, bytes(224 * KIB))
        for count, size in enumerate((64, 64, 64, 32)):
            assert await destination.receive_some() == bytes(size * KIB)
            assert trio.current_time() == count + 1 + size / 64


async def test_there_are_no_rounding_errors_in_the_end(
    autojump_clock: MockClock,
) -> None:
    source, _ = await pair(bandwidth=1e7, delay=1)
    await source.send_all(bytes(5_000_000))
    assert trio.current_time() == 0.5


async def test_the_way_back_is_not_slowed_down(autojump_clock: MockClock) -> None:
    _, destination = await pair(bandwidth=1)
    await destination.send_all(bytes(1000))
    assert trio.current_time() == 0


async def test_each_connection_has_its_own_bandwidth(autojump_clock: MockClock) -> None:
    here, _ = link(bandwidth={0: 10, 1: 20})
    for seconds in (0, 10, 5):
        start = trio.current_time()
        await (await here()).send_all(bytes(100))
        assert trio.current_time() - start == seconds


# --- Cut


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1,) * 12, (12,)])
@pytest.mark.parametrize("cut", range(13))
async def test_all_bytes_before_the_cut_arrive(
    autojump_clock: MockClock, cut: int, sizes: tuple[int, ...]
) -> None:
    """And a send fails as soon as it has a byte too many, in part or at all."""
    here, (there,) = link(cut=cut)
    source, destination = await here(), await there.accept()
    left = memoryview(b"abcdefghijkl")
    with pytest.raises(trio.BrokenResourceError, match=f"main: cut after {cut} bytes"):
        for size in (*sizes, 1):
            ends_at = 12 - len(left) + size
            await source.send_all(left[:size] or b"m")
            assert ends_at <= cut
            left = left[size:]
    assert here.connections["main"].sent == cut
    with pytest.raises(trio.BrokenResourceError):
        await source.receive_some()
    assert await receive_all(destination, 5) == b"abcdefghijkl"[:cut]
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match=f"cut after {cut} bytes"):
            await destination.receive_some()
        with pytest.raises(trio.BrokenResourceError, match=f"cut after {cut} bytes"):
            await destination.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError, match=f"cut after {cut} bytes"):
            await source.send_all(b"x")


async def test_a_cut_that_is_never_reached(autojump_clock: MockClock) -> None:
    source, destination = await pair(cut=4)
    await source.send_all(b"abc")
    await source.aclose()
    assert await destination.receive_some() == b"abc"
    assert await destination.receive_some() == b""


async def test_the_news_of_a_cut_takes_its_time(autojump_clock: MockClock) -> None:
    """The source knows at once; what was on the way to it is lost."""
    source, destination = await pair(cut=4, delay=10)
    await destination.send_all(b"lost")
    async with raises_in_task(
        trio.BrokenResourceError, source.receive_some
    ) as source_heard:
        await trio.sleep(5)
        await source.send_all(b"abcd")
    assert source_heard == [5]
    for call in (source.receive_some(), source.send_all(b"e"), source.send_eof()):
        with pytest.raises(trio.BrokenResourceError):
            await call
    await destination.send_all(b"x")
    assert await destination.receive_some() == b"abcd"
    assert trio.current_time() == 15
    for call in (destination.receive_some(), destination.send_all(b"e")):
        with pytest.raises(trio.BrokenResourceError):
            await call
    await source.aclose()
    await destination.aclose()


async def test_a_send_that_is_slow_breaks_where_it_is_cut(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(cut=4, bandwidth=1, delay=1)
    with pytest.raises(trio.BrokenResourceError):
        await source.send_all(b"abcdef")
    assert trio.current_time() == 4
    assert await destination.receive_some() == b"abcd"
    assert trio.current_time() == 5


async def test_a_sender_back_that_waits_for_the_window_hears_of_a_cut(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(cut=1, delay=10, window=3)
    await destination.send_all(b"abc")
    async with raises_in_task(
        trio.BrokenResourceError, destination.send_all, b"d"
    ) as when:
        await source.send_all(b"x")
    assert when == [10]


async def test_a_cut_of_one_connection_leaves_the_others(
    autojump_clock: MockClock,
) -> None:
    here, (there,) = link(cut={0: 0})
    main, channel = await here(), await here()
    await main.send_all(b"abc")
    assert await (await there.accept()).receive_some() == b"abc"
    with pytest.raises(trio.BrokenResourceError):
        await channel.send_all(b"abc")


# --- Window


@pytest.mark.parametrize("window", [None, 10 * KIB])
async def test_a_receiver_that_pauses_stops_its_sender(
    autojump_clock: MockClock, window: int | None
) -> None:
    here, (there,) = link(window=window)
    source, destination = await here(), await there.accept()
    limit = window or WINDOW
    data = SimulatedSource(size=3 * limit).state
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send_all, data)
        await trio.sleep(100)
        assert here.connections["main"].sent == limit
        got = await destination.receive_some(7)
        await trio.sleep(100)
        assert here.connections["main"].sent == limit + 7
        while len(got) < len(data):
            got += await destination.receive_some(1000)
    assert got == data
    assert trio.current_time() == 200


async def test_a_window_that_was_given_counts_what_is_on_the_way(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(delay=10, window=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send_all, bytes(250))
        for size, time in ((100, 10), (100, 20), (50, 30)):
            assert await destination.receive_some() == bytes(size)
            assert trio.current_time() == time


async def test_what_waited_for_the_window_leaves_at_the_speed_of_the_link(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(bandwidth=10, window=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send_all, bytes(200))
        await trio.sleep(50)
        assert await destination.receive_some() == bytes(100)
        assert await destination.receive_some() == bytes(100)
    assert trio.current_time() == 60


async def test_the_window_holds_for_the_way_back(autojump_clock: MockClock) -> None:
    source, destination = await pair(window=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.send_all, b"abcdef")
        await wait_all_tasks_blocked()
        assert await source.receive_some() == b"abc"
        assert await source.receive_some() == b"def"


# --- Cancellation, and closing under way


async def test_a_send_that_is_cancelled_before_anything_left(
    autojump_clock: MockClock,
) -> None:
    """Nothing was sent, and the stream goes on."""
    source, destination = await pair(bandwidth=1)
    with trio.move_on_after(2.5) as scope:
        await source.send_all(b"abc")
    assert scope.cancelled_caught
    await source.send_all(b"def")
    assert trio.current_time() == 5.5
    assert await destination.receive_some() == b"def"


async def test_a_send_that_is_cancelled_in_the_middle(
    autojump_clock: MockClock,
) -> None:
    """What has left arrives, and nothing can be sent behind it, but EOF by closing."""
    source, destination = await pair(window=4)
    with trio.move_on_after(1) as scope:
        await source.send_all(b"abcdef")
    assert scope.cancelled_caught
    for call in (source.send_all(b"ef"), source.send_eof()):
        with pytest.raises(trio.BrokenResourceError, match="a send was cancelled"):
            await call
    await destination.send_all(b"back")
    assert await source.receive_some() == b"back"
    await source.aclose()
    assert await destination.receive_some() == b"abcd"
    assert await destination.receive_some() == b""


async def test_a_receive_that_is_cancelled_loses_nothing(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(delay=10)
    await source.send_all(b"abc")
    for seconds in (3, 6):
        with trio.move_on_after(seconds) as scope:
            await destination.receive_some()
        assert scope.cancelled_caught
    await trio.sleep(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await destination.receive_some()
    assert scope.cancelled_caught
    assert await destination.receive_some() == b"abc"
    assert trio.current_time() == 10


async def test_closing_ends_a_send_and_a_receive_that_are_under_way(
    autojump_clock: MockClock,
) -> None:
    source, _ = await pair(bandwidth=1)
    async with raises_in_task(trio.ClosedResourceError, source.receive_some):
        async with raises_in_task(trio.ClosedResourceError, source.send_all, b"abc"):
            await source.aclose()
    assert trio.current_time() == 0


async def test_a_closed_end_cannot_say_eof() -> None:
    source, _ = await pair()
    await source.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await source.send_eof()


async def test_one_task_at_a_time_in_each_direction(autojump_clock: MockClock) -> None:
    source, destination = await pair(bandwidth=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send_all, b"abc")
        nursery.start_soon(destination.receive_some)
        await wait_all_tasks_blocked()
        for call in (
            source.send_all(b"x"),
            source.send_eof(),
            source.wait_send_all_might_not_block(),
            destination.receive_some(),
        ):
            with pytest.raises(trio.BusyResourceError):
                await call
        await destination.send_all(b"x")
        assert await source.receive_some() == b"x"


@pytest.mark.parametrize(
    "options",
    [
        {"delay": -1},
        {"delay": math.nan},
        {"delay": {0: -1}},
        {"bandwidth": 0},
        {"cut": -1},
        {"cut": 1.5},
        {"window": 0},
        {"window": math.inf},
    ],
)
def test_numbers_that_are_out_of_range(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: .* is out of range"):
        link(**options)


@pytest.mark.parametrize("name", ["Main", -1, None])
def test_connections_that_there_are_not(name: Any) -> None:
    with pytest.raises(ValueError, match="cut: there is no connection"):
        link(cut={name: 4})


# --- In use


async def test_a_late_channel_delays_only_the_load(autojump_clock: MockClock) -> None:
    state = SimulatedSource(size=4 * MIB).state
    buffers = [state[at : at + MIB] for at in range(0, 4 * MIB, MIB)]
    sink = SimulatedSink(seconds_per_mib=2)
    here, there = link(delay={0: 10})
    async with open_incoming(there, {"a/vfio": sink}) as incoming:
        source = await ScriptedSource.connect(here)
        await source.begin("a/vfio")
        await source.switch_over()
        for number, packet in enumerate(state_packets("a/vfio", buffers)):
            await source.packets(number % 2, packet)
        await source.end()
        await source.close()
        await incoming.wait_complete()
    assert sink.loaded == state
    assert trio.current_time() == 10 + 4 * 2
