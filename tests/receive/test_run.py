"""The buffers of one call, handed out one by one or several at once.

Pure, but for those that another thread writes.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest
from hypothesis import given, strategies as st
from trio.testing import wait_all_tasks_blocked

from trio_vfio import TraceEvent
from trio_vfio._device._port import Gathers
from trio_vfio._migration._position import Position
from trio_vfio._receive._run import AtOnce, Buffer, OneBuffer, Run
from trio_vfio._trace import Trace

DEVICE = "a/vfio"


@attrs.define
class Buffers:
    """A supply of some buffers, which notes what is done with them."""

    waiting: list[Buffer]
    given_back: list[bytes] = attrs.field(factory=list[bytes])
    said: list[AtOnce | None] = attrs.field(factory=list["AtOnce | None"])
    """What may be done at once, as each call has it."""

    def take(self, most: int, at_once: AtOnce | None = None) -> list[Buffer]:
        self.said.append(at_once)
        taken: list[Buffer] = []
        while self.waiting and (
            not taken or sum(len(b.data) for b in [*taken, self.waiting[0]]) <= most
        ):
            taken.append(self.waiting.pop(0))
        return taken

    def written(self, buffer: Buffer) -> None:
        self.given_back.append(bytes(buffer.data))


def numbered(*data: bytes) -> list[Buffer]:
    """Number *data* from 5 on."""
    return [Buffer(memoryview(each), idx) for idx, each in enumerate(data, 5)]


def buffers(*data: bytes) -> Buffers:
    """Return a supply of *data*."""
    return Buffers(numbered(*data))


@attrs.define
class Brought(Buffers):
    """A supply whose buffers come while they are waited for, in another thread.

    It brings some of them at a time, and lets them be written at once.
    """

    together: int = 1
    before: Callable[[], object] = lambda: None

    def take(self, most: int, at_once: AtOnce | None = None) -> list[Buffer]:
        assert at_once is not None
        with ThreadPoolExecutor(1) as thread:
            whole = True
            while whole and self.waiting:
                some = self.waiting[: self.together]
                del self.waiting[: self.together]
                self.before()
                whole = thread.submit(at_once, some).result()
        return []


@attrs.define
class Writer:
    """Writes, or takes so many bytes of what it is given, or raises."""

    takes: list[int | OSError] = attrs.field(factory=list["int | OSError"])
    """All, once this is empty."""
    is_quick: bool = True
    got: bytes = b""
    threads: set[int] = attrs.field(factory=set[int])

    def write(self, buffers: Sequence[memoryview]) -> int:
        self.threads.add(threading.get_ident())
        data = b"".join(buffers)
        count = self.takes.pop(0) if self.takes else len(data)
        if isinstance(count, OSError):
            raise count
        self.got += data[:count]
        return min(count, len(data))


def whole(batch: list[memoryview]) -> list[bytes]:
    return [bytes(each) for each in batch]


def test_a_buffer_counts_when_the_next_is_asked_for() -> None:
    position = Position(hashlib.sha256())
    supply = buffers(b"abc", b"de")
    run = Run(position, supply)
    assert bytes(next(run)) == b"abc"
    assert (position.bytes, position.idx, supply.given_back) == (0, 5, [])
    assert bytes(next(run)) == b"de"
    assert (position.bytes, position.idx, supply.given_back) == (3, 6, [b"abc"])
    assert next(run, None) is None
    assert (position.bytes, position.idx, run.exhausted) == (5, None, True)
    assert supply.given_back == [b"abc", b"de"]
    assert position.digest is not None
    assert position.digest.hexdigest() == hashlib.sha256(b"abcde").hexdigest()


def test_a_run_goes_on_as_long_as_there_are_buffers() -> None:
    """Those that have come while it was written, too."""
    supply = buffers(b"a")
    run = Run(Position(), supply)
    next(run)
    supply.waiting.append(Buffer(memoryview(b"b"), 6))
    assert bytes(next(run)) == b"b"


@pytest.mark.parametrize(
    "hand_out", [lambda run: next(run, None), lambda run: run.gather(1)]
)
def test_a_run_that_is_told_to_stop_ends_at_the_next_buffer(
    hand_out: Callable[[Run], object],
) -> None:
    position = Position()
    supply = buffers(b"a", b"b")
    run = Run(position, supply)
    next(run)
    position.stopping = True
    assert not hand_out(run)
    assert run.exhausted
    assert supply.waiting, "it has taken what it may not give"


def test_a_run_that_was_left_early_is_not_exhausted() -> None:
    run = Run(Position(), buffers(b"a"))
    next(run)
    assert not run.exhausted


def test_a_run_gathers() -> None:
    run = Run(Position(), buffers(b"abc", b"de", b"fgh"))
    assert isinstance(run, Gathers)
    assert whole(run.gather(5)) == [b"abc", b"de"]


def test_a_buffer_that_was_gathered_counts_when_it_is_written() -> None:
    position = Position(hashlib.sha256())
    supply = buffers(b"abc", b"de", b"fgh")
    run = Run(position, supply)
    run.gather(5)
    assert (position.bytes, position.idx, run.partly()) == (0, 5, (0, 3))
    run.written(2)
    assert (position.bytes, position.idx, run.partly()) == (0, 5, (2, 3))
    assert whole(run.gather(5)) == [b"c", b"de"]
    run.written(2)
    assert (position.bytes, position.idx, run.partly()) == (3, 6, (1, 2))
    assert supply.given_back == [b"abc"]
    assert whole(run.gather(5)) == [b"e"]
    run.written(1)
    # Up to its end: the next one was not handed out.
    assert str((position.bytes, position.idx)) == "(5, None)"
    assert whole(run.gather(5)) == [b"fgh"]
    assert position.idx == 7
    run.written(3)
    assert run.gather(5) == []
    assert run.exhausted
    assert position.bytes == 8
    assert supply.given_back == [b"abc", b"de", b"fgh"]
    assert position.digest is not None
    assert position.digest.hexdigest() == hashlib.sha256(b"abcdefgh").hexdigest()


def test_a_run_that_is_told_to_stop_gives_no_more_of_a_buffer() -> None:
    """It ends inside of one, which then is not counted."""
    position = Position()
    supply = buffers(b"abc", b"de")
    run = Run(position, supply)
    run.gather(10)
    run.written(4)
    position.stopping = True
    assert run.gather(10) == []
    assert (position.bytes, run.exhausted, supply.given_back) == (3, True, [b"abc"])


def test_data_of_the_main_channel_has_no_index() -> None:
    position = Position()
    run = Run(position, OneBuffer(memoryview(b"abc")))
    assert whole(run.gather(1)) == [b"abc"]
    assert position.idx is None
    run.written(3)
    assert run.gather(1) == []
    assert (position.bytes, run.exhausted) == (3, True)


def test_a_supply_of_nothing() -> None:
    run = Run(Position(), OneBuffer(memoryview(b"")))
    assert next(run, None) is None
    assert run.exhausted


@given(
    sizes=st.lists(st.integers(1, 20), max_size=12),
    counts=st.lists(st.integers(1, 30), min_size=1),
    most=st.integers(1, 60),
)
async def test_to_gather_is_to_take_one_by_one(
    sizes: list[int], counts: list[int], most: int
) -> None:
    """The same bytes, numbers and events, in the same order, however little is taken."""
    data = [bytes([number]) * size for number, size in enumerate(sizes)]
    said: list[list[TraceEvent]] = [[], []]
    supplies = [buffers(*data), buffers(*data)]
    positions = [Position(hashlib.sha256()), Position(hashlib.sha256())]
    one_by_one, several = (
        Run(position, supply, name=DEVICE, trace=Trace(events.append))
        for position, supply, events in zip(positions, supplies, said, strict=True)
    )
    assert whole(list(one_by_one)) == data
    got = b""
    turn = 0
    while batch := several.gather(most):
        assert all(batch)
        assert len(batch) == 1 or sum(map(len, batch)) <= most
        joined = b"".join(batch)
        count = min(len(joined), counts[turn % len(counts)])
        turn += 1
        got += joined[:count]
        several.written(count)
        whole_ones = b"".join(supplies[1].given_back)
        assert positions[1].bytes == len(whole_ones) <= len(got)
        assert got.startswith(whole_ones)
    assert got == b"".join(data)
    assert said[0] == said[1]
    assert len(said[0]) == 2 * len(data)
    assert supplies[0].given_back == supplies[1].given_back == data
    for position, run in zip(positions, (one_by_one, several), strict=True):
        assert (position.bytes, position.idx, run.exhausted) == (len(got), None, True)
        assert position.digest is not None
        assert position.digest.hexdigest() == hashlib.sha256(got).hexdigest()


def test_who_gives_no_writer_writes_all_itself() -> None:
    supply = buffers(b"a", b"b")
    run = Run(Position(), supply)
    next(run)
    next(run)
    run.written(1)
    assert run.gather(1) == []
    assert supply.said == [None, None, None]


async def test_what_another_thread_has_written_is_not_handed_out() -> None:
    position = Position(hashlib.sha256())
    supply = Brought(numbered(b"abc", b"de", b"fgh"), together=2)
    said: list[TraceEvent] = []
    run = Run(position, supply, name=DEVICE, trace=Trace(said.append))
    writer = Writer()
    assert run.gather(10, writer) == []
    assert run.exhausted
    assert writer.got == b"abcdefgh"
    assert threading.get_ident() not in writer.threads
    assert supply.given_back == [b"abc", b"de", b"fgh"]
    assert str((position.bytes, position.idx)) == "(8, None)"
    assert position.digest is not None
    assert position.digest.hexdigest() == hashlib.sha256(b"abcdefgh").hexdigest()
    await wait_all_tasks_blocked()
    load = "vfio_load_state_device_buffer_load_"
    assert said == [
        TraceEvent(f"{load}{what}", (DEVICE, idx))
        for idx in (5, 6, 7)
        for what in ("start", "end")
    ]


@pytest.mark.parametrize(
    ("count", "rest", "given_back"),
    [
        (0, [b"abc", b"de"], []),
        (2, [b"c", b"de"], []),
        (3, [b"de"], [b"abc"]),
        (4, [b"e"], [b"abc"]),
    ],
)
def test_what_another_thread_has_left_is_handed_out(
    count: int, rest: list[bytes], given_back: list[bytes]
) -> None:
    supply = Brought(numbered(b"abc", b"de", b"fgh", b"i"), together=2)
    position = Position()
    run = Run(position, supply)
    writer = Writer([count])
    assert whole(run.gather(10, writer)) == rest
    assert position.idx == (5 if count < 3 else 6)
    assert run.partly() == ((count, 3) if count < 3 else (count - 3, 2))
    assert (position.bytes, supply.given_back) == (3 * len(given_back), given_back)
    assert supply.waiting, "the next ones are for later"
    run.written(5 - count)
    assert run.gather(10, writer) == []
    assert (position.bytes, run.exhausted) == (9, True)
    assert writer.got == b"abcde"[:count] + b"fghi"
    assert supply.given_back == [b"abc", b"de", b"fgh", b"i"]


def test_what_another_thread_was_refused_is_raised_to_the_own() -> None:
    """As often as it asks: nothing can be written behind it."""
    refused = OSError(errno.ENOSPC, "No space left on device")
    supply = Brought(numbered(b"abc", b"de", b"fgh"))
    position = Position()
    run = Run(position, supply)
    writer = Writer([3, refused])
    for _ in range(2):
        with pytest.raises(OSError, match="No space left") as raised:
            run.gather(10, writer)
        assert raised.value is refused
    assert (position.bytes, position.idx, run.partly()) == (3, 6, (0, 2))
    assert (writer.got, supply.given_back) == (b"abc", [b"abc"])
    assert not run.exhausted


def test_a_slow_device_is_written_to_by_its_own_thread() -> None:
    supply = Brought(numbered(b"abc", b"de"))
    writer = Writer(is_quick=False)
    run = Run(Position(), supply)
    assert whole(run.gather(10, writer)) == [b"abc"]
    assert (run.position.idx, writer.got) == (5, b"")
    run.written(3)
    writer.is_quick = True
    assert run.gather(10, writer) == []
    assert writer.got == b"de"


def test_another_thread_writes_nothing_once_the_run_is_told_to_stop() -> None:
    position = Position()
    writer = Writer()

    def stop() -> None:
        position.stopping = len(writer.got) == 3

    supply = Brought(numbered(b"abc", b"de", b"fgh"), before=stop)
    run = Run(position, supply)
    run.gather(10, writer)
    assert (writer.got, supply.given_back) == (b"abc", [b"abc"])
    # Its own thread decides what becomes of that: as ever, nothing more.
    assert run.gather(10, writer) == []
    assert (position.bytes, run.exhausted) == (3, True)


@given(
    sizes=st.lists(st.integers(1, 20), max_size=12),
    counts=st.lists(st.integers(0, 30), max_size=12),
    together=st.integers(1, 4),
)
async def test_it_does_not_matter_which_thread_has_written_what(
    sizes: list[int], counts: list[int], together: int
) -> None:
    """The same bytes, numbers and events, in the same order."""
    data = [bytes([number]) * size for number, size in enumerate(sizes)]
    wanted: list[TraceEvent] = []
    list(Run(Position(), buffers(*data), name=DEVICE, trace=Trace(wanted.append)))
    position = Position(hashlib.sha256())
    supply = Brought(numbered(*data), together=together)
    said: list[TraceEvent] = []
    run = Run(position, supply, name=DEVICE, trace=Trace(said.append))
    writer = Writer([*counts])
    while batch := run.gather(1, writer):
        assert all(batch)
        # What is too much for the one is written by the other.
        writer.got += (taken := b"".join(batch)[:7])
        run.written(len(taken))
    assert writer.got == b"".join(data)
    assert supply.given_back == data
    await wait_all_tasks_blocked()
    assert said == wanted
    assert (position.bytes, position.idx) == (len(writer.got), None)
    assert position.digest is not None
    assert position.digest.hexdigest() == hashlib.sha256(writer.got).hexdigest()
