"""The contract of a device, as a check that anyone may run on their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias, final

import attrs
import trio

from .._device._port import QuickWriter, StateSink
from ._contract import (
    PATIENCE,
    CallInTask,
    begins_again,
    call,
    complaint,
    first_difference,
    require,
)

ReadBack: TypeAlias = Callable[[StateSink], Awaitable[bytes]]

# Odd sizes, one larger than a pipe or a socket takes at once, and enough for a thread
# that brings some of them.
_SIZES: Final = (1, 4096, 10_007, 400_001, 70_001, 3, 5003, 30_011, 2)
_CONFIG: Final = b"config blob"

_PIECE: Final = b"0123456789abcdef" * 1024
_RUN: Final = 16

# How many of them are there when several are asked for.
_TOGETHER: Final = 3


async def check_state_sink(
    make: Callable[[], StateSink], read_back: ReadBack | None = None
) -> None:
    """Drive devices the way sessions do, and check that they keep to `StateSink`.

    Each part of the check makes a new device and leaves it finished or aborted.
    With a device that works in threads, run it on Trio's own clock: an autojump
    clock jumps past what a thread still does. A call that neither ends by itself
    nor by ``abort`` hangs the check. If a device lets others write while it waits,
    another thread does, in the middle of each run. One device is begun again after an
    abort: it may refuse that in ``begin``.

    Args:
      make: returns a new device that was not begun, and does no I/O.
      read_back: returns the data that a finished device was given. Without it,
        nobody looks at the data.

    Raises:
      AssertionError: if the device breaks the contract; says where and how.
    """
    await _check_whole_state(make(), read_back)
    await _check_no_state_at_all(make())
    await _check_abort_after_begin(make())
    await _check_abort_after_finish(make())
    await _check_cancelled_write(make())
    await _check_aborted_write(make())
    await _check_another_attempt(make(), read_back)


@final
@attrs.define(eq=False)
class _Run(Iterator[memoryview]):
    """Hands out pieces as a session does, which uses their memory again at once.

    One by one, or several together, as `trio_vfio._device._port.Gathers` has it. Who
    gives a writer, and has written a few, waits for the next few, which another thread
    brings and writes.
    """

    _pieces: Sequence[bytes] = attrs.field(alias="pieces")
    _before: Callable[[int], None] = attrs.field(default=lambda _: None, alias="before")
    """Called with the number of each piece before it is handed out."""
    _next: int = attrs.field(default=0, init=False)
    _lent: list[bytearray] = attrs.field(factory=list[bytearray], init=False)
    """What was handed out and is not written whole."""
    _done: int = attrs.field(default=0, init=False)
    """How much of the first is written, in bytes."""
    exhausted: bool = attrs.field(default=False, init=False)
    brought: bool = attrs.field(default=False, init=False)
    """Whether another thread has written something."""

    def __next__(self) -> memoryview:
        if self._lent:
            self._take_back()
        if not self._lend():
            raise StopIteration
        return memoryview(self._lent[0])

    def gather(self, most: int, writer: QuickWriter | None = None) -> list[memoryview]:
        """Return what is to be written next, of a few pieces."""
        if not self._lent and writer is not None and writer.is_quick:
            self._bring(most, writer)
        return self._lend_some(most)

    def _bring(self, most: int, writer: QuickWriter) -> None:
        """Let another thread write a few pieces, while the device's waits here."""
        if batch := self._lend_some(most):
            self.brought = True
            with ThreadPoolExecutor(1) as thread:
                count = thread.submit(writer.write, batch).result()
            self._written("the writer that gather was given", count)

    def _lend_some(self, most: int) -> list[memoryview]:
        if not self._lent and not self._lend():
            return []
        while len(self._lent) < _TOGETHER and self._next < len(self._pieces):
            if sum(map(len, self._lent)) + len(self._pieces[self._next]) > most:
                break
            self._lend()
        batch = [memoryview(each) for each in self._lent]
        batch[0] = batch[0][self._done :]
        return batch

    def written(self, count: int) -> None:
        """Take back what is written."""
        self._written("write", count)

    def _written(self, who: str, count: int) -> None:
        require(
            0 <= count <= sum(map(len, self._lent)) - self._done,
            f"{who} says that it has written {count} bytes, but was not given so many",
        )
        self._done += count
        while self._lent and self._done >= len(self._lent[0]):
            self._done -= len(self._lent[0])
            self._take_back()

    def partly(self) -> tuple[int, int]:
        """How much is written of the piece that comes next, and its size, in bytes."""
        return self._done, len(self._lent[0]) if self._lent else 0

    def _lend(self) -> bool:
        """Hand out a piece, if there is one."""
        if self._next == len(self._pieces):
            self.exhausted = True
            return False
        self._before(self._next)
        self._lent.append(bytearray(self._pieces[self._next]))
        self._next += 1
        return True

    def _take_back(self) -> None:
        # A view that the device has kept now shows something else.
        lent = self._lent.pop(0)
        lent[:] = b"\xee" * len(lent)


async def _check_whole_state(sink: StateSink, read_back: ReadBack | None) -> None:
    require(
        sink.precopy in (True, False, None),
        f"precopy is {sink.precopy!r}; it must be True, False or None",
    )
    pieces = [(bytes(range(n, 251)) * size)[:size] for n, size in enumerate(_SIZES)]
    await call("begin", sink.begin())
    await _write(sink, pieces[:1])
    # A run may end before it began, if the session stops or has nothing left.
    await _write(sink, [])
    run = await _write(sink, pieces[1:])
    await call("load_config", sink.load_config(_CONFIG))
    await call("finish", sink.finish())
    if read_back is not None:
        hint = "is a buffer kept longer than until the next one is asked for?"
        if run.brought:
            hint += " Does the writer that gather was given write to the device?"
        _compare(b"".join(pieces), await read_back(sink), hint)


async def _check_no_state_at_all(sink: StateSink) -> None:
    await call("begin", sink.begin())
    await call("finish without data and without config", sink.finish())


async def _check_abort_after_begin(sink: StateSink) -> None:
    await call("begin", sink.begin())
    await call("abort right after begin", sink.abort())


async def _check_abort_after_finish(sink: StateSink) -> None:
    await call("begin", sink.begin())
    await _write(sink, [_PIECE])
    await call("load_config", sink.load_config(_CONFIG))
    await call("finish", sink.finish())
    # Another device of the migration may fail when this one is complete.
    await call("abort after finish", sink.abort())


async def _check_another_attempt(sink: StateSink, read_back: ReadBack | None) -> None:
    await call("begin", sink.begin())
    await _write(sink, [_PIECE] * 3)
    await call("load_config", sink.load_config(_CONFIG))
    await call("abort after load_config", sink.abort())
    # It may say that it cannot, which costs nobody anything: the guest still runs.
    if not await begins_again(sink.begin()):
        return
    state = _PIECE[::-1]
    await _write(sink, [state])
    await call("finish of another attempt", sink.finish())
    if read_back is not None:
        hint = "is something left of an attempt that was aborted? begin must start"
        _compare(state, await read_back(sink), f"{hint} afresh, or raise")


async def _check_cancelled_write(sink: StateSink) -> None:
    await call("begin", sink.begin())
    write = CallInTask("write", "cancelled")
    run = _long_run(write.scope.cancel)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write.run, sink.write, run)
        await write.wait_left()
        # Also for what the check itself is left with if the write has not.
        abort = await complaint("abort after a cancelled write", sink.abort())
    write.check_left(
        "look for the cancel between buffers and between partial writes: in a"
        " thread with trio.from_thread.check_cancelled(), elsewhere with a checkpoint"
    )
    require(write.error is None, f"write raised {write.error!r} when it was cancelled")
    require(
        write.scope.cancelled_caught or run.exhausted,
        "write returned when it was cancelled, but had not taken all buffers:"
        " raise trio.Cancelled then",
    )
    if abort is not None:
        raise abort


async def _check_aborted_write(sink: StateSink) -> None:
    await call("begin", sink.begin())
    under_way = trio.Event()
    write = CallInTask("write", "aborted")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write.run, sink.write, _long_run(under_way.set))
        with trio.move_on_after(PATIENCE):
            await under_way.wait()
        abort = await complaint("abort during a write", sink.abort())
        await write.wait_left()
        write.scope.cancel(reason="the check is over")
    require(
        under_way.is_set(),
        f"write did not ask for the buffer in the middle of its run of {_RUN}",
    )
    write.check_left("abort must end a call that is under way")
    if abort is not None:
        raise abort


def _long_run(interrupt: Callable[[], object]) -> _Run:
    """Return a run that calls *interrupt* in Trio's thread when it is half done."""
    token = trio.lowlevel.current_trio_token()

    def before(number: int) -> None:
        if number != _RUN // 2:
            return
        if trio.lowlevel.in_trio_run():
            interrupt()
        else:
            trio.from_thread.run_sync(interrupt, trio_token=token)

    return _Run([_PIECE] * _RUN, before)


async def _write(sink: StateSink, pieces: Sequence[bytes]) -> _Run:
    run = _Run(pieces)
    what = f"write of {len(pieces)} buffers"
    await call(what, sink.write(run))
    require(
        run.exhausted,
        f"{what} returned before it asked for the one after the last:"
        " only that says that the last one is written",
    )
    return run


def _compare(written: bytes, got: bytes, hint: str) -> None:
    at = first_difference(written, got)
    require(
        at is None,
        f"{len(written)} bytes were written and {len(got)} came back; they differ at"
        f" byte {at}: {hint}",
    )
