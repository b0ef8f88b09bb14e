"""Collaboration: connections in memory go wrong where and when they are told to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vfio.testing import Connection, LinkFault, LinkStream, link

KIB = 1024

WINDOW = 256 * KIB


async def pair(*faults: LinkFault, **options: Any) -> tuple[LinkStream, LinkStream]:
    """Open one connection; return the source's and the destination's end."""
    here, (there,) = link(faults=faults, **options)
    return await here(), await there.accept()


def fault(does: Any, **where: Any) -> LinkFault:
    return LinkFault("main", does, **where)


async def hear(stream: LinkStream) -> list[tuple[float, bytes | str]]:
    """Receive until the end; return what came when, and how it ended."""
    heard: list[tuple[float, bytes | str]] = []
    while not heard or isinstance(heard[-1][1], bytes):
        try:
            what: bytes | str = await stream.receive_some() or "end"
        except trio.BrokenResourceError:
            what = "broken"
        heard.append((trio.current_time(), what))
    return heard


async def both_hear(
    source: LinkStream, destination: LinkStream
) -> tuple[list[tuple[float, bytes | str]], list[tuple[float, bytes | str]]]:
    """Receive at both ends until the end; nobody sends meanwhile."""
    heard: dict[LinkStream, list[tuple[float, bytes | str]]] = {}

    async def run(end: LinkStream) -> None:
        heard[end] = await hear(end)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, source)
        nursery.start_soon(run, destination)
    return heard[source], heard[destination]


async def send_until_it_fails(stream: LinkStream, text: bytes) -> int:
    """Send byte by byte; return how many went."""
    for count in range(len(text)):
        try:
            await stream.send_all(text[count : count + 1])
        except trio.BrokenResourceError:
            return count
    return len(text)


# --- Cut


async def test_a_cut_at_a_time(autojump_clock: MockClock) -> None:
    """What has left arrives; who sent it knows at once, and loses what was coming."""
    source, destination = await pair(fault("cut", at_time=5), delay=2)
    await source.send_all(b"early")
    await trio.sleep(4)
    await source.send_all(b"late")
    await destination.send_all(b"back")
    assert await both_hear(source, destination) == (
        [(5, "broken")],
        [(4, b"early"), (6, b"late"), (7, "broken")],
    )
    for end in (source, destination):
        with pytest.raises(trio.BrokenResourceError, match="main: cut after 5 s"):
            await end.send_all(b"x")
        assert not end.was_reset


async def test_a_cut_on_the_way_back(autojump_clock: MockClock) -> None:
    source, destination = await pair(fault("cut", at_byte=3, back=True), delay=2)
    await source.send_all(b"lost")
    assert await send_until_it_fails(destination, b"abcdef") == 3
    assert await both_hear(source, destination) == (
        [(2, b"abc"), (2, "broken")],
        [(0, "broken")],
    )


async def test_what_is_sent_to_a_broken_end_never_arrives(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(fault("cut", at_byte=1), delay=5)
    await source.send_all(b"x")
    await destination.send_all(b"before it knows")
    await trio.sleep(20)
    assert await hear(source) == [(20, "broken")]


async def test_behind_an_end_that_arrives_nothing_breaks(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(fault("cut", at_time=5), delay=3)
    await trio.sleep(4)
    await source.send_eof()
    assert await hear(destination) == [(7, "end")]
    assert await hear(destination) == [(7, "end")]


async def test_short_hand_comes_behind_the_faults(autojump_clock: MockClock) -> None:
    source, destination = await pair(fault("garbage", at_byte=2, data=b"!"), cut=2)
    assert await send_until_it_fails(source, b"abcd") == 2
    assert await hear(destination) == [(0, b"ab!"), (0, "broken")]


# --- Reset


async def test_a_reset_loses_what_nobody_has_received(
    autojump_clock: MockClock,
) -> None:
    """Both ends know at the same moment, however long the way."""
    source, destination = await pair(fault("reset", at_time=5), delay=2)
    for end in (source, destination):
        await end.send_all(b"unread")
    await trio.sleep(4)
    for end in (source, destination):
        await end.send_all(b"on the way")
    assert [end.was_reset for end in (source, destination)] == [False, False]
    await trio.sleep(1)
    assert await both_hear(source, destination) == ([(5, "broken")], [(5, "broken")])
    assert [end.was_reset for end in (source, destination)] == [True, True]
    for end in (source, destination):
        with pytest.raises(trio.BrokenResourceError, match="main: reset after 5 s"):
            await end.send_all(b"x")


@pytest.mark.parametrize("back", [False, True])
async def test_a_reset_at_a_byte_wakes_both(
    back: bool, autojump_clock: MockClock
) -> None:
    ends = await pair(fault("reset", at_byte=2, back=back), delay=9)
    sender = ends[back]

    async def send() -> None:
        await trio.sleep(3)
        assert await send_until_it_fails(sender, b"abcd") == 2

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await both_hear(*ends) == ([(3, "broken")], [(3, "broken")])


async def test_a_sender_that_waits_is_woken_in_time(autojump_clock: MockClock) -> None:
    """By the window, or by the speed of the link."""
    for options in ({"window": 1}, {"bandwidth": 1e-3}):
        start = trio.current_time()
        source, _ = await pair(fault("reset", at_time=7), **options)
        with pytest.raises(trio.BrokenResourceError):
            await source.send_all(b"abc")
        assert trio.current_time() == start + 7


# --- Half-close


async def test_half_of_a_connection_closes(autojump_clock: MockClock) -> None:
    source, destination = await pair(fault("half_close", at_byte=3), delay=2)
    assert await send_until_it_fails(source, b"abcdef") == 3
    with pytest.raises(trio.BrokenResourceError, match="half_close after 3 bytes"):
        await source.send_eof()
    assert await hear(destination) == [(2, b"abc"), (2, "end")]
    await destination.send_all(b"lives on")
    assert await source.receive_some() == b"lives on"
    assert not source.was_reset


async def test_half_of_a_connection_closes_back_at_a_time(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(fault("half_close", at_time=3, back=True), delay=2)
    assert await hear(source) == [(5, "end")]
    with pytest.raises(trio.BrokenResourceError, match="half_close after 3 s back"):
        await destination.send_all(b"x")
    await source.send_all(b"lives on")
    assert await destination.receive_some() == b"lives on"


# --- Garbage


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (5, 7)])
@pytest.mark.parametrize("at", [0, 5, 11, 12])
async def test_garbage_at_a_byte(
    at: int, sizes: tuple[int, ...], autojump_clock: MockClock
) -> None:
    """It is in its place however the rest is sent, and not counted as sent."""
    here, (there,) = link(faults=[fault("garbage", at_byte=at, data=b"???")])
    source, destination = await here(), await there.accept()
    left = memoryview(b"abcdefghijkl")
    for size in sizes:
        await source.send_all(left[:size])
        left = left[size:]
    await source.send_eof()
    heard = await hear(destination)
    got = b"".join(each for _, each in heard if isinstance(each, bytes))
    assert got == b"abcdefghijkl"[:at] + b"???" + b"abcdefghijkl"[at:]
    seen = here.connections["main"]
    assert (seen.sent, seen.received) == (12, 15)


async def test_garbage_at_a_time_wakes_who_waits(autojump_clock: MockClock) -> None:
    source, destination = await pair(
        fault("garbage", at_time=3, data=b"?", back=True), delay=2
    )
    assert await source.receive_some() == b"?"
    assert trio.current_time() == 5
    await destination.send_eof()
    assert await source.receive_some() == b""


async def test_garbage_does_not_widen_the_window(autojump_clock: MockClock) -> None:
    source, destination = await pair(fault("garbage", at_byte=0, data=b"??"), window=4)
    assert await destination.receive_some() == b"??"
    with trio.move_on_after(1):
        await source.send_all(b"abcdef")
    assert await destination.receive_some() == b"abcd"


async def test_behind_the_end_there_is_no_garbage(autojump_clock: MockClock) -> None:
    source, destination = await pair(fault("garbage", at_time=3, data=b"?"))
    await source.send_eof()
    await trio.sleep(5)
    assert await hear(destination) == [(5, "end")]


# --- Stall


async def test_a_stall_holds_back_what_leaves_meanwhile(
    autojump_clock: MockClock,
) -> None:
    """And the end, too; what left before arrives in its time."""
    source, destination = await pair(fault("stall", at_time=5, seconds=10), delay=2)
    await trio.sleep(4)
    await source.send_all(b"before")
    await trio.sleep(2)
    await source.send_all(b"meanwhile")
    await destination.send_all(b"back")
    await source.send_eof()
    assert await both_hear_once(source, destination) == [
        (6, b"before"),
        (8, b"back"),
        (15, b"meanwhile"),
        (15, b""),
    ]


async def both_hear_once(
    source: LinkStream, destination: LinkStream
) -> list[tuple[float, bytes]]:
    heard: list[tuple[float, bytes]] = []

    async def run(end: LinkStream, times: int) -> None:
        for _ in range(times):
            data = await end.receive_some()
            heard.append((trio.current_time(), data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, source, 1)
        nursery.start_soon(run, destination, 3)
    return sorted(heard, key=lambda each: each[0])


async def test_what_leaves_late_in_a_stall_takes_its_time(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(fault("stall", at_time=5, seconds=10), delay=2)
    await trio.sleep(14)
    await source.send_all(b"x")
    assert await destination.receive_some() == b"x"
    assert trio.current_time() == 16


@pytest.mark.parametrize("window", [None, 1000])
async def test_a_stall_for_ever_fills_the_window(
    window: int | None, autojump_clock: MockClock
) -> None:
    here, (there,) = link(window=window, faults=[fault("stall", at_byte=100)])
    source, destination = await here(), await there.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send_all, bytes(2 * WINDOW))
        assert await destination.receive_some() == bytes(100)
        await trio.sleep(10_000)
        assert here.connections["main"].sent == 100 + (window or WINDOW)
        assert here.connections["main"].unread == 0
        nursery.cancel_scope.cancel()
    with trio.move_on_after(1e9) as scope:
        await destination.receive_some()
    assert scope.cancelled_caught


async def test_a_sender_goes_on_when_a_stall_is_over(
    autojump_clock: MockClock,
) -> None:
    source, destination = await pair(fault("stall", at_byte=0, seconds=10), delay=20)
    await source.send_all(bytes(2 * WINDOW))
    assert trio.current_time() == 10
    await source.send_eof()
    heard = await hear(destination)
    assert [(time, len(each)) for time, each in heard] == [
        (20, WINDOW),
        (30, WINDOW),
        (30, 3),
    ]


async def test_news_of_a_close_does_not_pass_a_stall(autojump_clock: MockClock) -> None:
    source, destination = await pair(fault("stall", at_time=0, seconds=10, back=True))
    await destination.aclose()
    await source.send_all(b"x")
    await trio.sleep(10)
    with pytest.raises(trio.BrokenResourceError, match="the other end was closed"):
        await source.send_all(b"x")


# --- Where and when


async def test_a_time_counts_from_when_the_link_was_made(
    autojump_clock: MockClock,
) -> None:
    """A connection that is opened later is struck as soon as it is there."""
    await trio.sleep(100)
    here, (there,) = link(
        faults=[
            LinkFault("main", "half_close", at_time=3),
            LinkFault(0, "reset", at_time=2),
            LinkFault(1, "stall", at_time=2, seconds=4),
        ]
    )
    await trio.sleep(1)
    assert await hear((await pair_of(here, there))[1]) == [(103, "end")]
    assert await hear((await pair_of(here, there))[1]) == [(103, "broken")]
    source, destination = await pair_of(here, there)
    await source.send_all(b"x")
    assert await destination.receive_some() == b"x"
    assert trio.current_time() == 107


async def pair_of(here: Any, there: Any) -> tuple[LinkStream, LinkStream]:
    return await here(), await there.accept()


async def test_each_strikes_in_its_turn(autojump_clock: MockClock) -> None:
    source, destination = await pair(
        fault("garbage", at_byte=2, data=b"2"),
        fault("garbage", at_byte=1, data=b"1"),
        fault("garbage", at_time=9, data=b"9"),
        fault("garbage", at_byte=2, data=b"II"),
        fault("garbage", at_time=4, data=b"4"),
    )
    await source.send_all(b"abc")
    await trio.sleep(20)
    assert await destination.receive_some() == b"a1b2IIc49"


async def test_other_connections_live_on(autojump_clock: MockClock) -> None:
    here, (there,) = link(faults=[LinkFault(0, "reset", at_byte=0)])
    main, _ = await pair_of(here, there)
    channel, _ = await pair_of(here, there)
    await main.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await channel.send_all(b"x")


def test_faults_that_have_a_time_need_trio_s() -> None:
    link(faults=[fault("cut", at_byte=1)])
    with pytest.raises(RuntimeError):
        link(faults=[fault("cut", at_time=1)])


@pytest.mark.parametrize(
    "each",
    [
        LinkFault("main", "cut", at_byte=0),
        LinkFault(3, "reset", at_time=2.5, back=True),
        LinkFault(0, "half_close", at_byte=7),
        LinkFault("main", "garbage", at_byte=7, data=b"\0'\"\xff"),
        LinkFault("main", "stall", at_time=0.0, seconds=4.5),
        LinkFault("main", "stall", at_time=0.0, seconds=math.inf),
    ],
)
def test_a_repr_is_python_that_makes_the_same(each: LinkFault) -> None:
    assert eval(repr(each)) == each  # noqa: S307


@pytest.mark.parametrize(
    ("name", "does", "options", "complaint"),
    [
        ("Main", "cut", {"at_byte": 1}, "there is no connection 'Main'"),
        (-1, "cut", {"at_byte": 1}, "there is no connection -1"),
        (0, "cut", {}, "at_byte or at_time"),
        (0, "cut", {"at_byte": 1, "at_time": 1}, "at_byte or at_time"),
        (0, "cut", {"at_byte": -1}, "nothing is at -1"),
        (0, "cut", {"at_time": math.inf}, "nothing is at inf"),
        (0, "cut", {"at_byte": 1, "data": b"x"}, "data is for garbage"),
        (0, "garbage", {"at_byte": 1}, "data is for garbage"),
        (0, "stall", {"at_byte": 1, "seconds": 0}, "more than 0"),
        (0, "cut", {"at_byte": 1, "seconds": 1}, "seconds are for a stall"),
        (0, "burns", {"at_byte": 1}, "must be in"),
    ],
)
def test_faults_that_cannot_be(
    name: Any, does: Any, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        LinkFault(name, does, **options)


# --- Jitter


async def arrivals(seed: int, connections: int = 3) -> list[list[float]]:
    """Send ten bytes, second by second, over each connection; return when they came."""
    here, (there,) = link(delay=5, jitter=4, seed=seed)
    pairs = [await pair_of(here, there) for _ in range(connections)]
    came: list[list[float]] = [[] for _ in pairs]
    start = trio.current_time()

    async def receive(number: int, end: LinkStream) -> None:
        text = b""
        while data := await end.receive_some():
            text += data
            came[number] += [trio.current_time() - start] * len(data)
        assert text == b"abcdefghij"

    async with trio.open_nursery() as nursery:
        for number, (_, destination) in enumerate(pairs):
            nursery.start_soon(receive, number, destination)
        for byte in b"abcdefghij":
            for source, _ in pairs:
                await source.send_all(bytes([byte]))
            await trio.sleep(1)
        for source, _ in pairs:
            await source.send_eof()
    return came


async def test_jitter_keeps_order_and_lets_connections_overtake(
    autojump_clock: MockClock,
) -> None:
    came = await arrivals(1)
    for times in came:
        assert times == sorted(times)
        for number, time in enumerate(times):
            assert number + 5 <= time < 9 + 9
        assert any(time % 1 for time in times)
    # The first of two bytes that left together is not always that of the first.
    order = [sorted(range(3), key=lambda n: came[n][at]) for at in range(10)]
    assert len({tuple(each) for each in order}) > 2


async def test_the_seed_decides_about_jitter(autojump_clock: MockClock) -> None:
    first, again, other = [await arrivals(seed) for seed in (1, 1, 2)]
    for one, two in zip(first, again, strict=True):
        assert one == pytest.approx(two)
    assert all(one != pytest.approx(two) for one, two in zip(first, other, strict=True))
    assert len({tuple(times) for times in first}) == 3


async def test_jitter_is_that_of_its_way_alone(autojump_clock: MockClock) -> None:
    """What other ways draw changes nothing, and the end may come at once."""
    alone = (await arrivals(1, connections=1))[0]
    assert alone == pytest.approx((await arrivals(1))[0])
    source, destination = await pair(jitter={"main": 4, 0: 9})
    await destination.send_all(b"x")
    await destination.send_eof()
    assert await source.receive_some() == b"x"
    assert trio.current_time() % 1 > 0


# --- Reset by one end


async def test_who_resets_drops_what_has_not_arrived(autojump_clock: MockClock) -> None:
    source, destination = await pair(delay=5)
    await source.send_all(b"arrives")
    await trio.sleep(4)
    await source.send_all(b"does not")
    await trio.sleep(2)
    source.reset()
    assert await hear(destination) == [(6, b"arrives"), (11, "broken")]
    with pytest.raises(trio.BrokenResourceError, match="the other end was reset"):
        await destination.send_all(b"x")
    assert destination.was_reset
    assert not source.was_reset
    for call in (source.receive_some(), source.send_all(b"x"), source.send_eof()):
        with pytest.raises(trio.ClosedResourceError):
            await call
    await source.aclose()
    source.reset()
    await destination.aclose()


async def test_what_was_unread_is_lost_with_a_reset(autojump_clock: MockClock) -> None:
    source, destination = await pair()
    await source.send_all(b"unread")
    source.reset()
    assert await hear(destination) == [(0, "broken")]


async def test_a_reset_overtakes_an_end_that_has_not_arrived(
    autojump_clock: MockClock,
) -> None:
    """One that has is seen, and was_reset tells what came behind it."""
    source, destination = await pair(delay=5)
    await source.send_eof()
    await trio.sleep(2)
    source.reset()
    assert await hear(destination) == [(7, "broken")]
    source, destination = await pair(delay=5)
    await source.send_eof()
    await trio.sleep(5)
    source.reset()
    assert await destination.receive_some() == b""
    known = [destination.was_reset]
    await trio.sleep(5)
    assert [*known, destination.was_reset] == [False, True]


async def test_a_reset_wakes_who_waits(autojump_clock: MockClock) -> None:
    source, destination = await pair(window=1)
    await destination.send_all(b"x")
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await destination.send_all(b"y")

        async def send_here() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await source.send_all(b"1234")

        nursery.start_soon(send)
        nursery.start_soon(send_here)
        await wait_all_tasks_blocked()
        source.reset()


async def test_who_is_not_heard_finds_out(autojump_clock: MockClock) -> None:
    """A closed end answers with a reset, also what was on the way to it."""
    source, destination = await pair(delay=5)
    await destination.send_all(b"unheard")
    await trio.sleep(1)
    await source.aclose()
    known = []
    for seconds in (0, 8, 1):
        await trio.sleep(seconds)
        known.append(destination.was_reset)
    assert known == [False, False, True]
    source, destination = await pair(delay=5)
    await source.aclose()
    await trio.sleep(6)
    assert not destination.was_reset


# --- What can be seen


async def test_what_is_unread(autojump_clock: MockClock) -> None:
    here, (there,) = link(delay=5)
    source, destination = await pair_of(here, there)
    seen = here.connections["main"]
    await source.send_all(b"abcdef")
    await destination.send_all(b"back")
    assert (seen.unread, seen.unread_back) == (0, 0)
    await trio.sleep(5)
    assert (seen.unread, seen.unread_back) == (6, 4)
    await destination.receive_some(2)
    assert (seen.unread, seen.unread_back) == (4, 4)
    await destination.aclose()
    await source.receive_some()
    assert (seen.unread, seen.unread_back) == (0, 0)


async def test_an_instrument_may_ask_what_is_unread(autojump_clock: MockClock) -> None:
    """Also at the moment of a fault: whoever sleeps wakes as if nobody had asked."""

    class Watch(trio.abc.Instrument):
        def __init__(self, seen: Connection) -> None:
            self.seen = seen
            self.most = 0

        def before_io_wait(self, timeout: float) -> None:
            self.most = max(self.most, self.seen.unread)

        def after_io_wait(self, timeout: float) -> None:
            self.most = max(self.most, self.seen.unread)

    here, (there,) = link(
        delay=2,
        faults=[
            fault("garbage", at_time=3, data=b"?"),
            fault("reset", at_time=9),
        ],
    )
    source, destination = await pair_of(here, there)
    watch = Watch(here.connections["main"])
    trio.lowlevel.add_instrument(watch)
    await source.send_all(b"abc")
    assert await both_hear(source, destination) == (
        [(9, "broken")],
        [(2, b"abc"), (5, b"?"), (9, "broken")],
    )
    trio.lowlevel.remove_instrument(watch)
    assert watch.most == 3
