"""Which packets are admitted, which refused, and in what order they leave.

Pure, but for those threads that wait a while.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_vfio import PeerProtocolError
from trio_vfio._receive._memory import Memory
from trio_vfio._receive._reorder import WINDOW, AtOnce, ReorderQueue
from trio_vfio._receive._signal import Signal
from trio_vfio._wire._multifd import StateFlag, StateHeader, StatePacket

from .waiting import LONG, until, until_waiting

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


def packet(q: ReorderQueue, each: StateHeader) -> StatePacket:
    """Let a packet arrive, for somebody to hand it over."""
    return StatePacket(each, admit(q, each))


def waits_for_due(
    q: ReorderQueue,
    at_once: AtOnce | None = None,
    *,
    most: int = 100,
) -> tuple[threading.Thread, list[list[int]]]:
    """Let a thread wait for what is due; return it, and what will be in the list."""
    found: list[list[int]] = []

    def take() -> None:
        found.append(indexes(q.take(most, LONG, None, at_once)))

    thread = threading.Thread(target=take)
    thread.start()
    until_waiting(q._due_came)
    return thread, found


class Notes:
    """Does nothing but to note with what, and in which thread."""

    def __init__(self) -> None:
        self.done: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, packets: list[StatePacket]) -> bool:
        self.done.append(indexes(packets))
        self.threads.add(threading.get_ident())
        return True


class Holds(Notes):
    """It takes until it is let go."""

    def __init__(self, *, whole: bool = True) -> None:
        super().__init__()
        self.whole = whole
        self.began = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, packets: list[StatePacket]) -> bool:
        self.began.set()
        assert self.go_on.wait(LONG)
        super().__call__(packets)
        return self.whole

    def begin(self, q: ReorderQueue, each: StateHeader) -> threading.Thread:
        """Let a thread bring a packet and begin with it."""
        brought = packet(q, each)
        thread = threading.Thread(target=q.do_at_once, args=[brought])
        thread.start()
        assert self.began.wait(LONG)
        return thread


def test_what_is_due_is_done_by_the_thread_that_brings_it() -> None:
    """Who waits for it is not even woken, and waits on."""
    q = queue()
    notes = Notes()
    thread, found = waits_for_due(q, notes)
    waiting = list(q._due_came._waiting)
    assert q.do_at_once(packet(q, header(0)))
    assert q.do_at_once(packet(q, header(1)))
    assert (q.due, q.waiting, q.missing) == (2, 0, 2)
    assert notes.done == [[0], [1]]
    assert notes.threads == {threading.get_ident()}
    assert (q._due_came._waiting, found) == (waiting, [])
    arrive(q, header(2))
    thread.join(LONG)
    assert (found, notes.done) == ([[2]], [[0], [1]])
    assert not q.do_at_once(packet(q, header(3))), "nobody waits any more"


def test_what_is_not_due_is_not_done_at_once() -> None:
    q = queue()
    notes = Notes()
    thread, found = waits_for_due(q, notes)
    early = packet(q, header(1))
    assert not q.do_at_once(early)
    q.put(early)
    arrive(q, header(0))
    thread.join(LONG)
    assert (found, notes.done) == ([[0, 1]], [])


def test_the_config_is_not_done_at_once() -> None:
    q = queue()
    notes = Notes()
    thread, found = waits_for_due(q, notes)
    config = packet(q, header(0, config=True))
    assert not q.do_at_once(config)
    assert q.put(config)
    thread.join(LONG)
    assert (found, notes.done) == ([[]], [])
    assert q.take_config() is config


def test_nothing_is_done_at_once_if_nobody_waits() -> None:
    q = queue()
    brought = packet(q, header(0))
    assert not q.do_at_once(brought)
    assert q.put(brought)
    # Nor if one does that need not wait, or whose patience has had its end.
    notes = Notes()
    assert indexes(q.take(100, LONG, None, notes)) == [0]
    assert q.take(100, 0.001, None, notes) == []
    assert not q.do_at_once(packet(q, header(1)))
    assert notes.done == []


def test_nothing_is_done_at_once_if_nobody_has_said_how() -> None:
    q = queue()
    thread, found = waits_for_due(q)
    brought = packet(q, header(0))
    assert not q.do_at_once(brought)
    assert q.put(brought)
    thread.join(LONG)
    assert found == [[0]]


def test_the_last_is_known_once_the_config_has_come() -> None:
    q = queue()
    config = packet(q, header(1, config=True))
    assert not q.is_last(0)
    q.put(config)
    assert [q.is_last(idx) for idx in (None, 0, 1)] == [False, True, False]


def test_what_is_due_behind_it_goes_along() -> None:
    """As much as would be taken; the rest is for the one who waits."""
    q = queue()
    notes = Notes()
    thread, found = waits_for_due(q, notes, most=50)
    arrive(q, header(1, 20), header(2, 20), header(3, 20))
    assert q.do_at_once(packet(q, header(0, 10)))
    thread.join(LONG)
    assert (notes.done, found) == ([[0, 1, 2]], [[3]])


def test_the_index_moves_on_for_those_who_wait_for_that() -> None:
    """Before it is done, and has given back any memory."""
    q = queue(max_bytes=100)
    admitted: list[int] = []

    def at_once(packets: list[StatePacket]) -> bool:
        channel.join(LONG)
        admitted.extend(map(len, room))
        return True

    thread, found = waits_for_due(q, at_once)
    brought = packet(q, header(0, 60))
    channel, room = waits_for_room(q, header(1, 50))
    assert q.do_at_once(brought)
    assert admitted == [50]
    q.put(StatePacket(header(1, 50), room[0]))
    thread.join(LONG)
    assert found == [[1]]


def test_who_waits_has_to_go_on_with_what_is_left() -> None:
    q = queue()
    holds = Holds(whole=False)
    thread, found = waits_for_due(q, holds, most=1)
    arrive(q, header(1))
    holds.go_on.set()
    assert q.do_at_once(packet(q, header(0)))
    thread.join(LONG)
    assert (found, holds.done) == ([[]], [[0]])
    early = packet(q, header(2))
    assert not q.do_at_once(early)
    q.put(early)
    assert indexes(q.take(1)) == [1], "which was due all the time"
    assert indexes(q.take(1)) == [2]


@pytest.mark.parametrize("whole", [True, False])
def test_what_becomes_due_meanwhile_comes_after_it(whole: bool) -> None:
    """Never are two threads at it."""
    q = queue()
    holds = Holds(whole=whole)
    thread, found = waits_for_due(q, holds)
    waiting = list(q._due_came._waiting)
    bringing = holds.begin(q, header(0))
    brought = packet(q, header(1))
    assert not q.do_at_once(brought)
    assert q.put(brought)
    with q.memory.lock:
        assert (q._due_came._waiting, found) == (waiting, [])
    holds.go_on.set()
    bringing.join(LONG)
    thread.join(LONG)
    assert holds.done == [[0]]
    assert found == ([[1]] if whole else [[]])
    assert indexes(q.take(100)) == ([] if whole else [1])


def test_the_config_behind_it_ends_the_wait() -> None:
    q = queue()
    holds = Holds()
    thread, found = waits_for_due(q, holds)
    bringing = holds.begin(q, header(0))
    arrive(q, header(1, config=True))
    assert found == []
    holds.go_on.set()
    bringing.join(LONG)
    thread.join(LONG)
    assert (holds.done, found) == ([[0]], [[]])
    assert q.take_config().header.idx == 1


def test_patience_has_no_end_while_something_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And begins anew behind it."""
    q = queue()
    waits: list[tuple[bool, int]] = []
    true_wait_for = Signal.wait_for

    def wait_for(signal: Signal, ready: Callable[[], bool], seconds: float) -> None:
        assert seconds == 0.001
        waits.append((q._busy, q._done))
        true_wait_for(signal, ready, seconds)

    monkeypatch.setattr(Signal, "wait_for", wait_for)
    found: list[int] = []

    def keep_taking() -> None:
        while not q.due:
            assert q.take(100, 0.001, None, at_once) == []
            found.append(q.due)

    def at_once(packets: list[StatePacket]) -> bool:
        before = len(found)
        until(lambda: waits.count((True, 0)) >= 3)
        assert len(found) == before, "it was not waited for"
        return True

    thread = threading.Thread(target=keep_taking)
    thread.start()
    brought = packet(q, header(0))
    # It looks away between one wait and the next.
    until(lambda: q.do_at_once(brought))
    thread.join(LONG)
    assert found[-1] == 1
    assert waits[-1] == (False, 1)
    assert waits.count((False, 1)) == 1


def test_what_goes_wrong_at_once_is_raised_to_who_has_brought_it() -> None:
    q = queue()

    def fail(packets: list[StatePacket]) -> bool:
        raise KeyError(indexes(packets)[0])

    thread, found = waits_for_due(q, fail)
    with pytest.raises(KeyError, match="0"):
        q.do_at_once(packet(q, header(0)))
    thread.join(LONG)
    assert found == [[]]
    # It can be used as before.
    notes = Notes()
    thread, found = waits_for_due(q, notes)
    assert q.do_at_once(packet(q, header(1)))
    arrive(q, header(2))
    thread.join(LONG)
    assert (notes.done, found) == ([[1]], [[2]])


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that take turns much more often than they do."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Device:
    """Takes packets in a thread of its own, or has them from those that bring them.

    Of the latter it sometimes leaves a part, to go on with in its own thread.
    """

    def __init__(self, q: ReorderQueue, seed: int) -> None:
        self.q = q
        self.rng = random.Random(seed)
        self.at_work = threading.Lock()
        self.left: list[StatePacket] = []
        self.got: list[int] = []
        self.times_at_once = 0

    def load(self) -> None:
        """Take all until the config is due."""
        patience = LONG
        while self.q.due != self.q.config_idx or not self.q.has_due:
            taken = self.q.take(20, patience, None, self.at_once)
            assert not (taken and self.left)
            with self.alone():
                self.left += taken
                self.work(len(self.left))
            patience = self.rng.choice([0.0001, LONG])

    def at_once(self, packets: list[StatePacket]) -> bool:
        with self.alone():
            self.times_at_once += 1
            assert not self.left
            self.left += packets
            self.work(self.rng.choice([0, len(packets), len(packets)]))
            return not self.left

    def work(self, count: int) -> None:
        for each in self.left[:count]:
            self.got.append(each.header.idx)
            self.q.release(each.data)
        del self.left[:count]

    @contextmanager
    def alone(self) -> Iterator[None]:
        assert self.at_work.acquire(blocking=False), "two are at it"
        try:
            yield
        finally:
            self.at_work.release()


def bring(q: ReorderQueue, packets: list[StateHeader]) -> None:
    """Be a channel."""
    for each in packets:
        memory = q.admit_untrusted(each, LONG)
        assert memory is not None
        if not q.do_at_once(brought := StatePacket(each, memory)):
            q.put(brought)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("limit", [12, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_whoever_does_it_all_is_done_once_and_in_order(seed: int, limit: int) -> None:
    """Nor is anybody left waiting, which would take longer than the deadline."""
    rng = random.Random(seed)
    channels: list[list[StateHeader]] = [[] for _ in range(4)]
    for idx in range(400):
        rng.choice(channels).append(header(idx, rng.randint(1, 9)))
    if limit > 1000:
        for channel in channels:
            rng.shuffle(channel)
    channels[0].append(header(400, config=True))
    q = queue(limit, 10_000)
    device = Device(q, seed)
    with ThreadPoolExecutor(5) as threads:
        loads = [threads.submit(device.load)]
        until_waiting(q._due_came)
        loads += [threads.submit(bring, q, channel) for channel in channels]
        for each in loads:
            each.result(LONG / 2)
    assert device.got == list(range(400))
    assert device.times_at_once > 0
    assert q.take_config().header.idx == 400
    assert q.bytes == 1
