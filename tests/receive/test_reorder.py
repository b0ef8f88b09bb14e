"""Which packets are admitted, which refused, and in what order they leave.

Pure, but for those threads that wait a while.
"""

from __future__ import annotations

import os
import random
import threading
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_vfio import PeerProtocolError
from trio_vfio._receive._memory import Memory
from trio_vfio._receive._reorder import WINDOW, ReorderQueue
from trio_vfio._wire._multifd import StateFlag, StateHeader, StatePacket

from .waiting import LONG, until_waiting

DEVICE = "0000:00:04.0/vfio"


def header(idx: int, size: int = 1, *, config: bool = False) -> StateHeader:
    """Make the header of a packet."""
    flags = StateFlag.CONFIG if config else StateFlag(0)
    return StateHeader(DEVICE, idx, size, flags, offset=64)


def queue(max_bytes: int = 100, session_bytes: int = 1000) -> ReorderQueue:
    """Make an empty queue."""
    made = ReorderQueue(max_bytes, Memory(session_bytes))
    made.started = True
    return made


def admit(q: ReorderQueue, each: StateHeader) -> memoryview:
    """Let the header of a packet arrive, and say where its data goes."""
    assert q.admits(each)
    memory = q.admit_untrusted(each)
    assert memory is not None and len(memory) == each.size
    return memory


def arrive(q: ReorderQueue, *headers: StateHeader) -> None:
    """Let packets arrive whole."""
    for each in headers:
        is_due = each.idx == q.due
        assert q.put(StatePacket(each, admit(q, each))) == is_due


def release(q: ReorderQueue, packets: list[StatePacket]) -> None:
    """Let *packets* be written."""
    for packet in packets:
        q.release(packet.data)


def indexes(packets: list[StatePacket]) -> list[int]:
    """Return the indexes of *packets*."""
    return [packet.header.idx for packet in packets]


def test_packets_leave_in_order_however_they_arrive() -> None:
    q = queue()
    arrive(q, header(2), header(0))
    assert indexes(q.take(100)) == [0]
    assert q.take(100) == []
    arrive(q, header(1))
    assert indexes(q.take(100)) == [1, 2]


def test_the_config_is_no_data() -> None:
    q = queue()
    arrive(q, header(1, config=True), header(0))
    assert [q.has_due, q.has_due_data] == [True, True]
    assert indexes(q.take(100)) == [0]
    assert [q.has_due, q.has_due_data] == [True, False]
    assert q.take(100) == []
    assert q.take_config().header.idx == 1


def test_many_are_taken_as_long_as_they_are_small() -> None:
    """But one in any case."""
    q = queue()
    arrive(q, header(0, 60), header(1, 20), header(2, 20))
    assert indexes(q.take(50)) == [0]
    assert indexes(q.take(40)) == [1, 2]
    q = queue()
    arrive(q, header(0), header(1), header(2))
    q.take(3)
    arrive(q, header(3, 20), header(4, 20), header(5, 1))
    assert indexes(q.take(39)) == [3]
    assert indexes(q.take(1)) == [4]


def test_no_more_are_taken_at_once_than_go_with_one_system_call() -> None:
    """It is the window that keeps writev() from more than it takes: IOV_MAX."""
    q = queue(10_000, 10_000)
    arrive(q, *(header(idx) for idx in range(WINDOW)))
    assert not q.admits(header(WINDOW))
    assert len(q.take(10_000)) == WINDOW <= os.sysconf("SC_IOV_MAX")


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
    admit(q, first)  # It need not have arrived.
    with pytest.raises(PeerProtocolError) as refused:
        q.check_untrusted(second)
    assert str(refused.value) == f"{reason} (at byte 64)"
    with pytest.raises(PeerProtocolError):
        q.admit_untrusted(second)
    assert q.bytes == q.memory.used == first.size


def test_a_packet_that_was_written_is_refused() -> None:
    q = queue()
    arrive(q, header(0))
    release(q, q.take(100))
    with pytest.raises(PeerProtocolError, match="packet 0 of .* was sent twice"):
        q.check_untrusted(header(0))


def test_the_window_moves_with_what_the_loader_takes() -> None:
    q = queue(max_bytes=10_000)
    assert q.admits(header(WINDOW - 1))
    assert not q.admits(header(WINDOW))
    arrive(q, header(0))
    q.take(1)
    assert q.admits(header(WINDOW))


def test_bytes_count_from_admission_until_they_are_written() -> None:
    q = queue(max_bytes=100)
    admit(q, header(1, 60))
    assert not q.admits(header(2, 41))
    assert q.admit_untrusted(header(2, 41)) is None
    assert q.admits(header(2, 40))
    arrive(q, header(0, 40))
    taken = q.take(100)
    assert not q.admits(header(2, 40)), "what is being written still counts"
    release(q, taken)
    assert q.admits(header(2, 40))


def test_the_session_has_a_limit_of_its_own() -> None:
    memory = Memory(50)
    one, other = ReorderQueue(100, memory), ReorderQueue(100, memory)
    admit(one, header(1, 30))
    assert not other.admits(header(1, 21))
    assert other.admits(header(1, 20))


def test_the_due_packet_is_admitted_whatever_the_limits() -> None:
    q = queue(max_bytes=10, session_bytes=10)
    admit(q, header(1, 10))
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
    most=st.integers(1, 120),
)
def test_an_honest_sender_never_gets_stuck(
    sizes: list[int], seed: int, limit: int, channels: int, most: int
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
        run = q.take(most)
        assert open_ or run, "stuck"
        taken += indexes(run)
        release(q, run)
        if open_:
            arrive(q, rng.choice(open_).pop(0))
            assert q.bytes <= max(limit, 40 * channels + limit)
    while run := q.take(most):
        taken += indexes(run)
        release(q, run)
    assert taken == list(range(len(sizes)))
    release(q, [q.take_config()])
    assert q.bytes == q.memory.used == 0


def test_a_thread_may_wait_a_while_for_the_packet_that_is_due() -> None:
    q = queue()
    admit(q, header(0))
    taken: list[list[StatePacket]] = []
    thread = threading.Thread(target=lambda: taken.append(q.take(100, LONG)))
    thread.start()
    until_waiting(q._due_came)
    arrive(q, header(1))
    assert q._due_came._waiting, "that is not the one"
    assert q.put(StatePacket(header(0), memoryview(b"x")))
    thread.join(LONG)
    assert indexes(taken[0]) == [0, 1]


def test_patience_with_the_packet_that_is_due_has_an_end() -> None:
    assert queue().take(100, 0.001) == []


def test_patience_is_not_for_the_config() -> None:
    q = queue()
    arrive(q, header(0, config=True))
    assert q.take(100, LONG) == []


def waits_for_room(q: ReorderQueue, each: StateHeader) -> tuple[threading.Thread, Any]:
    """Let a thread wait for memory; return it, and what will be in the list."""
    found: list[memoryview | PeerProtocolError | None] = []

    def admit_it() -> None:
        try:
            found.append(q.admit_untrusted(each, LONG))
        except PeerProtocolError as error:
            found.append(error)

    thread = threading.Thread(target=admit_it)
    thread.start()
    until_waiting(q._moved)
    return thread, found


def test_a_thread_may_wait_a_while_for_room() -> None:
    q = queue(max_bytes=100)
    arrive(q, header(0, 60))
    taken = q.take(100)
    thread, found = waits_for_room(q, header(2, 50))
    release(q, taken)
    thread.join(LONG)
    assert len(found[0]) == 50
    assert q.bytes == q.memory.used == 50


def test_a_thread_has_room_when_its_packet_is_due() -> None:
    q = queue(max_bytes=100)
    arrive(q, header(0, 100))
    thread, found = waits_for_room(q, header(1, 50))
    q.take(100)
    thread.join(LONG)
    assert len(found[0]) == 50


def test_another_channel_may_bring_the_same_packet_meanwhile() -> None:
    q = queue(max_bytes=100)
    arrive(q, header(0, 60))
    taken = q.take(100)
    thread, found = waits_for_room(q, header(2, 50))
    # It fits, as the other did not.
    admit(q, header(2, 40))
    release(q, taken)
    thread.join(LONG)
    assert str(found[0]) == f"packet 2 of {DEVICE} was sent twice (at byte 64)"
    assert q.bytes == q.memory.used == 40


def test_room_that_any_device_may_make_is_not_waited_for_in_a_thread() -> None:
    q = queue(max_bytes=1000, session_bytes=100)
    admit(q, header(1, 60))
    a_day = 86_400
    assert q.admit_untrusted(header(2, 50), a_day) is None


def test_patience_with_room_has_an_end() -> None:
    q = queue(max_bytes=100)
    admit(q, header(1, 60))
    assert q.admit_untrusted(header(2, 50), 0.001) is None
    assert q.bytes == q.memory.used == 60
    assert 2 not in q._arriving
