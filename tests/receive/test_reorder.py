"""Pure: which packets are admitted, which refused, and in what order they leave."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, strategies as st

from trio_vfio import PeerProtocolError
from trio_vfio._receive._reorder import MAX_RUN, WINDOW, Budget, ReorderQueue
from trio_vfio._wire._multifd import StateFlag, StateHeader, StatePacket

DEVICE = "0000:00:04.0/vfio"


def header(idx: int, size: int = 1, *, config: bool = False) -> StateHeader:
    """Make the header of a packet."""
    flags = StateFlag.CONFIG if config else StateFlag(0)
    return StateHeader(DEVICE, idx, size, flags, offset=64)


def queue(max_bytes: int = 100, session_bytes: int = 1000) -> ReorderQueue:
    """Make an empty queue."""
    made = ReorderQueue(max_bytes, Budget(session_bytes))
    made.started = True
    return made


def arrive(q: ReorderQueue, *headers: StateHeader) -> None:
    """Let packets arrive whole."""
    for each in headers:
        q.check_untrusted(each)
        assert q.admits(each)
        q.reserve(each)
        q.put(StatePacket(each, memoryview(bytes(each.size))))


def indexes(packets: list[StatePacket]) -> list[int]:
    """Return the indexes of *packets*."""
    return [packet.header.idx for packet in packets]


def test_packets_leave_in_order_however_they_arrive() -> None:
    q = queue()
    arrive(q, header(2), header(0))
    assert indexes(q.take_run()) == [0]
    assert q.take_run() == []
    arrive(q, header(1))
    assert indexes(q.take_run()) == [1, 2]


def test_a_run_ends_before_the_config() -> None:
    q = queue()
    arrive(q, header(1, config=True), header(0))
    assert indexes(q.take_run()) == [0]
    assert q.take_run() == []
    assert q.take_config().header.idx == 1


def test_a_run_is_bounded_in_buffers() -> None:
    q = queue()
    arrive(q, *(header(idx) for idx in range(MAX_RUN + 3)))
    assert len(q.take_run()) == MAX_RUN
    assert len(q.take_run()) == 3


def test_a_run_takes_at_most_half_of_the_bytes_but_one_buffer_at_least() -> None:
    q = queue(max_bytes=100)
    arrive(q, header(0, 60), header(1, 20), header(2, 20))
    assert indexes(q.take_run()) == [0]
    assert indexes(q.take_run()) == [1, 2]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (header(3), header(3), f"packet 3 of {DEVICE} was sent twice"),
        (
            header(3, config=True),
            header(2, config=True),
            f"packet 2 of {DEVICE} is a second config, the first is 3",
        ),
        (
            header(3, config=True),
            header(4),
            f"packet 4 of {DEVICE} is data beyond the config, 3",
        ),
        (
            header(3),
            header(2, config=True),
            f"packet 2 of {DEVICE} is the config, but packet 3 is data",
        ),
        (
            header(3),
            header(4, (1 << 20) + 17, config=True),
            f"packet 4 of {DEVICE} is a config of {(1 << 20) + 17} bytes",
        ),
    ],
)
def test_what_contradicts_an_admitted_packet_is_refused(
    first: StateHeader, second: StateHeader, reason: str
) -> None:
    q = queue()
    q.reserve(first)  # It need not have arrived.
    with pytest.raises(PeerProtocolError) as refused:
        q.check_untrusted(second)
    assert str(refused.value) == f"{reason} (at byte 64)"


def test_a_packet_that_was_written_is_refused() -> None:
    q = queue()
    arrive(q, header(0))
    q.release(q.take_run())
    with pytest.raises(PeerProtocolError, match="packet 0 of .* was sent twice"):
        q.check_untrusted(header(0))


def test_the_window_moves_with_what_the_loader_takes() -> None:
    q = queue(max_bytes=10_000)
    assert q.admits(header(WINDOW - 1))
    assert not q.admits(header(WINDOW))
    arrive(q, header(0))
    q.take_run()
    assert q.admits(header(WINDOW))


def test_bytes_count_from_admission_until_they_are_written() -> None:
    q = queue(max_bytes=100)
    q.reserve(header(1, 60))
    assert not q.admits(header(2, 41))
    assert q.admits(header(2, 40))
    arrive(q, header(0, 40))
    run = q.take_run()
    assert not q.admits(header(2, 40)), "what is being written still counts"
    q.release(run)
    assert q.admits(header(2, 40))


def test_the_session_has_a_limit_of_its_own() -> None:
    budget = Budget(50)
    one, other = ReorderQueue(100, budget), ReorderQueue(100, budget)
    one.reserve(header(1, 30))
    assert not other.admits(header(1, 21))
    assert other.admits(header(1, 20))


def test_the_due_packet_is_admitted_whatever_the_limits() -> None:
    q = queue(max_bytes=10, session_bytes=10)
    q.reserve(header(1, 10))
    assert q.admits(header(0, 10_000))
    q.started = False
    assert not q.admits(header(0, 10_000)), "nothing is due before switchover"


@pytest.mark.parametrize(
    ("arrived", "missing"),
    [
        ([], 0),
        ([header(0)], 1),
        ([header(1)], 0),
        ([header(0), header(2, config=True)], 1),
        ([header(0), header(1), header(2, config=True)], None),
        ([header(0, config=True)], None),
    ],
)
def test_the_first_missing_index(
    arrived: list[StateHeader], missing: int | None
) -> None:
    q = queue()
    arrive(q, *arrived)
    assert q.missing == missing


def test_nothing_is_missing_once_the_config_is_taken() -> None:
    q = queue()
    arrive(q, header(0, config=True))
    q.take_config()
    assert q.missing is None


@given(
    sizes=st.lists(st.integers(0, 40), max_size=60),
    seed=st.integers(0, 2**32),
    limit=st.integers(0, 120),
    channels=st.integers(1, 5),
)
def test_an_honest_sender_never_gets_stuck(
    sizes: list[int], seed: int, limit: int, channels: int
) -> None:
    """Whatever the limits, all packets arrive and leave once, in order."""
    rng = random.Random(seed)
    q = queue(max_bytes=limit, session_bytes=limit)
    packets = [header(idx, size) for idx, size in enumerate(sizes)]
    packets.append(header(len(sizes), config=True))
    queues: list[list[StateHeader]] = [[] for _ in range(channels)]
    for packet in packets:
        rng.choice(queues).append(packet)
    taken: list[int] = []
    while any(queues):
        open_ = [each for each in queues if each and q.admits(each[0])]
        run = q.take_run()
        assert open_ or run, "stuck"
        taken += indexes(run)
        q.release(run)
        if open_:
            arrive(q, rng.choice(open_).pop(0))
            assert q.bytes <= max(limit, 40 * channels + limit)
    while run := q.take_run():
        taken += indexes(run)
        q.release(run)
    assert taken == list(range(len(sizes)))
    q.release([q.take_config()])
    assert q.bytes == q.budget.used == 0
