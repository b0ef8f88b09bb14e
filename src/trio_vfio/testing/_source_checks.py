"""The contract of a device that gives its state, as a check for anyone's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from .._device._port import Pending, ReadsAll, StateSource
from ._contract import (
    PATIENCE,
    CallInTask,
    begins_again,
    call,
    check_counts,
    complaint,
    first_difference,
    is_a,
    require,
)
from ._lent_memory import LentMemory

# What one read after the other is offered: as little as can be, odd sizes, and as
# much as sessions offer.
_RUNS: Final = ((1,), (4096, 10_007), (65_536,) * 16, (1, 2, 3, 100_003))
_LARGEST: Final = max(map(sum, _RUNS))

# What memory holds that nothing was read into.
_UNTOUCHED: Final = b"\xee"

# How many reads pre-copy may take of a device that may have more and more of it.
_ROUNDS: Final = 100


async def check_state_source(
    make: Callable[[], StateSource],
    state: bytes | None = None,
    *,
    config: bytes | None = None,
    precopy_bytes: int | None = None,
    make_waiting: Callable[[], StateSource] | None = None,
) -> None:
    """Drive sources the way sessions do, and check that they keep to `StateSource`.

    And to `ReadsAll`, if they have that.

    Each part of the check makes a new source and leaves it finished or aborted.
    With a source that works in threads, run it on Trio's own clock: an autojump
    clock jumps past what a thread still does. A call that neither ends by itself
    nor by ``abort`` hangs the check. One source is begun again after an abort: it may
    refuse that in ``begin``.

    Args:
      make: returns a new source that was not begun, and does no I/O.
      state: all data that each of them gives. Without it, nobody looks at the
        data.
      config: the config blob of each. Without it, nobody looks at what it holds.
      precopy_bytes: how much of the data a source may give before ``stop``; 0 if
        it gives none. Without it, nobody looks at how much that is.
      make_waiting: returns a source as *make* does, but one that has nothing to
        give after ``stop`` and has not ended, so that a read waits. Without it,
        cancel and abort meet whatever a read is doing.

    Raises:
      AssertionError: if the source breaks the contract; says where and how.
    """
    facts = _Facts(state, config, precopy_bytes)
    first = make()
    reads_all = isinstance(first, ReadsAll)
    await _check_whole_state(first, facts)
    await _check_no_precopy(make(), facts)
    await _check_abort_after_begin(make())
    await _check_abort_during_precopy(make(), facts)
    await _check_abort_after_stop(make())
    await _check_abort_half_way(make(), facts)
    await _check_read_when_cancelled(make())
    for waits in [False] if make_waiting is None else [False, True]:
        source = make_waiting if make_waiting is not None and waits else make
        for at_once in [False, True] if reads_all else [False]:
            await _check_cancelled_read(source(), waits=waits, at_once=at_once)
            await _check_aborted_read(source(), waits=waits, at_once=at_once)
    if reads_all:
        await _check_read_all(make(), facts)
        await _check_no_more_buffers(make())
    await _check_another_attempt(make(), facts)


@attrs.frozen
class _Facts:
    """What the caller says of the sources; None where that is nothing."""

    state: bytes | None
    config: bytes | None
    precopy_bytes: int | None

    @property
    def size(self) -> int | None:
        return None if self.state is None else len(self.state)


@final
@attrs.define(eq=False)
class _Reader:
    """Reads a source into one and the same memory, as a session is free to do."""

    _source: StateSource = attrs.field(alias="source")
    _size: int | None = attrs.field(alias="size", default=None)
    """How much there is in all, if that is known."""
    data: bytearray = attrs.field(factory=bytearray, init=False)
    ended: bool = attrs.field(default=False, init=False)
    """Whether the last read said that this was all."""
    _memory: bytearray = attrs.field(
        factory=lambda: bytearray(_UNTOUCHED * _LARGEST), init=False
    )
    _reads: int = attrs.field(default=0, init=False)

    def offer(self) -> list[memoryview]:
        """Return buffers for the next read."""
        sizes = _RUNS[self._reads % len(_RUNS)]
        self._reads += 1
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        memory = memoryview(self._memory)
        return [memory[at : at + size] for at, size in zip(starts, sizes, strict=True)]

    async def read(self, when: str) -> list[int]:
        """Read once; check what the read said and did to the memory."""
        buffers = self.offer()
        what = f"read into {len(buffers)} buffers {when}"
        # A source that writes late, or has kept the buffers of another read.
        self._require_untouched(f"between two reads, before the {what}")
        counts = await call(what, self._source.read_into(buffers))
        check_counts(what, buffers, counts)
        for buffer, count in zip(buffers, counts, strict=False):
            self.data += buffer[:count]
            buffer[:count] = _UNTOUCHED * count
        self._require_untouched(f"behind what the {what} says it gave")
        self.ended = bool(counts) and counts[-1] == 0
        require(
            self._size is None or len(self.data) <= self._size,
            f"{what}: {len(self.data)} bytes came, but there are {self._size} in all",
        )
        return counts

    async def read_rest(self) -> None:
        """Read after ``stop``, to the end of the data."""
        self.ended = False
        while not self.ended:
            counts = await self.read("after stop")
            require(
                len(counts) > 0,
                "read after stop returned []: wait for data then, or say with a 0"
                " that this was all",
            )

    def _require_untouched(self, where: str) -> None:
        at = first_difference(self._memory, _UNTOUCHED * len(self._memory))
        require(at is None, f"memory was written to {where}: at byte {at}")


async def _begin(source: StateSource, precopy_bytes: int | None = None) -> bool:
    precopy = await call("begin", source.begin())
    require(
        is_a(bool, precopy),
        f"begin returned {precopy!r}; it must say whether data comes before stop",
    )
    require(
        precopy_bytes is None or precopy == (precopy_bytes > 0),
        f"begin returned {precopy}, but {precopy_bytes} bytes may come before stop",
    )
    return precopy


async def _begin_and_stop(source: StateSource) -> None:
    await _begin(source)
    await call("stop", source.stop())


async def _check_pending(source: StateSource) -> None:
    pending = await call("pending", source.pending())
    complaint = f"pending returned {pending!r}, not a Pending"
    require(is_a(Pending, pending), complaint)


async def _read_precopy(
    source: StateSource, reader: _Reader, precopy_bytes: int | None
) -> None:
    for _ in range(_ROUNDS):
        await _check_pending(source)
        counts = await reader.read("before stop")
        require(
            precopy_bytes is None or len(reader.data) <= precopy_bytes,
            f"{len(reader.data)} bytes came before stop; {precopy_bytes} may",
        )
        if not counts or reader.ended:
            break
    await _check_pending(source)


async def _check_config(source: StateSource, config: bytes | None) -> None:
    blob = await call("config", source.config())
    require(is_a(bytes, blob), f"config returned {blob!r}, not bytes")
    if config is not None:
        at = first_difference(config, blob)
        require(
            at is None,
            f"config returned {len(blob)} bytes that differ at byte {at} from the"
            f" {len(config)} expected",
        )


def _check_same(got: bytearray, state: bytes | None, how: str) -> None:
    if state is None:
        return
    at = first_difference(got, state)
    require(
        at is None,
        f"{len(got)} bytes were read {how}, of {len(state)}; they differ at byte {at}:"
        " does it read into each buffer from its start, one after another?",
    )


async def _check_whole_state(source: StateSource, facts: _Facts) -> None:
    precopy = await _begin(source, facts.precopy_bytes)
    await _read_whole(source, facts, precopy=precopy, how="before and after stop")


async def _read_whole(
    source: StateSource, facts: _Facts, *, precopy: bool, how: str
) -> None:
    reader = _Reader(source, facts.size)
    if precopy:
        await _read_precopy(source, reader, facts.precopy_bytes)
    await call("stop", source.stop())
    await reader.read_rest()
    await _check_config(source, facts.config)
    await call("finish", source.finish())
    _check_same(reader.data, facts.state, how)


async def _check_another_attempt(source: StateSource, facts: _Facts) -> None:
    await _begin_and_stop(source)
    await _Reader(source, facts.size).read("after stop")
    await call("abort between two reads", source.abort())
    # It may say that it cannot, which costs nobody anything: the guest still runs.
    for precopy in await begins_again(source.begin()):
        how = "after an attempt that was aborted: begin must start afresh, or raise"
        await _read_whole(source, facts, precopy=precopy, how=how)


async def _check_no_precopy(source: StateSource, facts: _Facts) -> None:
    # The session may stop at once, and then everything comes after that. The
    # destination may refuse the state when all of it has gone.
    reader = _Reader(source, facts.size)
    await _begin_and_stop(source)
    await reader.read_rest()
    _check_same(reader.data, facts.state, "after stop alone")
    await _check_config(source, facts.config)
    await call("abort after config", source.abort())


async def _check_read_all(source: StateSource, facts: _Facts) -> None:
    lent = LentMemory()
    await _begin_and_stop(source)
    assert isinstance(source, ReadsAll)
    await call("read_all", source.read_all(lent))
    lent.check()
    _check_same(lent.data, facts.state, "by read_all")
    await _check_config(source, facts.config)
    await call("finish", source.finish())


async def _check_no_more_buffers(source: StateSource) -> None:
    lent = LentMemory(most=1)
    await _begin_and_stop(source)
    assert isinstance(source, ReadsAll)
    # As after a fault: a cancel comes, too, but this must not wait for it.
    await call("read_all without a second buffer", source.read_all(lent))
    lent.check()
    await call("abort when there were no more buffers", source.abort())


async def _check_abort_after_begin(source: StateSource) -> None:
    await _begin(source)
    await call("abort right after begin", source.abort())


async def _check_abort_during_precopy(source: StateSource, facts: _Facts) -> None:
    if await _begin(source):
        await _Reader(source, facts.size).read("before stop")
    await call("abort before stop", source.abort())


async def _check_abort_after_stop(source: StateSource) -> None:
    await _begin_and_stop(source)
    await call("abort right after stop", source.abort())


async def _check_abort_half_way(source: StateSource, facts: _Facts) -> None:
    await _begin_and_stop(source)
    await _Reader(source, facts.size).read("after stop")
    await call("abort between two reads", source.abort())


async def _check_read_when_cancelled(source: StateSource) -> None:
    await _begin_and_stop(source)
    read = CallInTask("read", "cancelled before it began")
    async with trio.open_nursery() as nursery:
        read.scope.cancel(reason="the check says so")
        nursery.start_soon(read.run, source.read_into, _Reader(source).offer())
        await read.wait_left()
        abort = await complaint("abort after a cancelled read", source.abort())
    _check_cancelled(read)
    if abort is not None:
        raise abort


async def _check_cancelled_read(
    source: StateSource, *, waits: bool, at_once: bool
) -> None:
    await _begin_and_stop(source)
    read = CallInTask(_name(at_once=at_once), "cancelled")
    async with trio.open_nursery() as nursery:
        had_left = await _start_read(source, read, nursery, at_once=at_once)
        read.scope.cancel(reason="the check says so")
        await read.wait_left()
        # Also for what the check itself is left with if the read has not.
        abort = await complaint("abort after a cancelled read", source.abort())
    _check_waited(read, waits=waits, had_left=had_left)
    _check_cancelled(read)
    require(
        not waits or read.scope.cancelled_caught,
        f"{read.name} returned when it was cancelled, but had read nothing: raise"
        " trio.Cancelled then",
    )
    if abort is not None:
        raise abort


async def _check_aborted_read(
    source: StateSource, *, waits: bool, at_once: bool
) -> None:
    await _begin_and_stop(source)
    read = CallInTask(_name(at_once=at_once), "aborted")
    async with trio.open_nursery() as nursery:
        had_left = await _start_read(source, read, nursery, at_once=at_once)
        abort = await complaint("abort during a read", source.abort())
        await read.wait_left()
        read.scope.cancel(reason="the check is over")
    _check_waited(read, waits=waits, had_left=had_left)
    read.check_left("abort must end a call that is under way")
    if abort is not None:
        raise abort


def _name(*, at_once: bool) -> str:
    return "read_all" if at_once else "read"


async def _start_read(
    source: StateSource, read: CallInTask, nursery: trio.Nursery, *, at_once: bool
) -> bool:
    """Start to read in a task, until it waits; return whether it has left by then."""
    if at_once and isinstance(source, ReadsAll):
        nursery.start_soon(read.run, source.read_all, LentMemory())
    else:
        nursery.start_soon(read.run, source.read_into, _Reader(source).offer())
    # But not for ever for others that always have something to do.
    with trio.move_on_after(PATIENCE):
        await wait_all_tasks_blocked()
    return read.left.is_set()


def _check_waited(read: CallInTask, *, waits: bool, had_left: bool) -> None:
    require(
        not (waits and had_left),
        "read of a source from make_waiting did not wait, but"
        + (" returned" if read.error is None else f" raised {read.error!r}"),
    )


def _check_cancelled(read: CallInTask) -> None:
    read.check_left(
        "look for the cancel before every wait and between buffers: in a thread with"
        " trio.from_thread.check_cancelled(), elsewhere with a checkpoint"
    )
    require(
        read.error is None, f"{read.name} raised {read.error!r} when it was cancelled"
    )
