"""Collaboration: the check of sources finds what is wrong with one, and says it."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable, Sequence

import pytest
import trio
from trio.testing import MockClock

from trio_vfio import Buffers, Pending, StateSource
from trio_vfio.testing import check_state_source

STATE = bytes(range(251)) * 1000
CONFIG = b"config blob"
PRECOPY = 5000


class Sound:
    """A source that does all it must, to be broken in one place."""

    def __init__(self) -> None:
        self.rest = STATE
        self.given = 0
        self.stopped = False
        self.aborting = trio.Event()

    async def begin(self) -> bool:
        await trio.lowlevel.checkpoint()
        self.rest = STATE
        self.given = 0
        self.stopped = False
        self.aborting = trio.Event()
        return True

    async def pending(self) -> Pending:
        await trio.lowlevel.checkpoint()
        return Pending(max(0, PRECOPY - self.given), 0, len(self.rest))

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        counts: list[int] = []
        for buffer in buffers:
            await trio.lowlevel.checkpoint()
            limit = len(self.rest) if self.stopped else PRECOPY - self.given
            if limit <= 0 and not self.stopped:
                break
            count = min(limit, len(buffer))
            buffer[:count] = self.rest[:count]
            self.rest = self.rest[count:]
            self.given += count
            counts.append(count)
            if count == 0:
                break
        return counts

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()
        self.stopped = True

    async def config(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return CONFIG

    async def finish(self) -> None:
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        self.aborting.set()
        await trio.lowlevel.checkpoint()


class KeepsAnAttempt(Sound):
    """It goes on where it was when it is begun again."""

    async def begin(self) -> bool:
        await trio.lowlevel.checkpoint()
        self.given = 0
        self.stopped = False
        return True


class HangsInASecondBegin(Sound):
    async def begin(self) -> bool:
        if self.aborting.is_set():
            await trio.sleep_forever()
        return True


class RefusesAnotherAttempt(Sound):
    async def begin(self) -> bool:
        if self.aborting.is_set():
            raise OSError(errno.ESPIPE, "Illegal seek")
        return True


class FailsToBegin(Sound):
    async def begin(self) -> bool:
        raise OSError(errno.EIO, "Input/output error")


class BeginsWithoutAWord(Sound):
    async def begin(self) -> bool:
        await super().begin()
        return None  # type: ignore[return-value]


class SaysNoPreCopy(Sound):
    async def begin(self) -> bool:
        return not await super().begin()


class OddPending(Sound):
    async def pending(self) -> Pending:
        return Pending(-1)


class PendingIsANumber(Sound):
    async def pending(self) -> Pending:
        return 5  # type: ignore[return-value]


class GivesTooMuchBeforeStop(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        self.given = 0
        return await super().read_into(buffers)


class ReturnsATuple(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        return tuple(await super().read_into(buffers))  # type: ignore[return-value]


class ReturnsTooManyNumbers(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        counts = await super().read_into(buffers)
        return [*counts, 0]


class ReturnsTooLargeANumber(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        return [1 + len(buffers[0])]


class GoesOnAfterZero(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        counts = await super().read_into(buffers)
        return [0, *counts[1:]] if len(buffers) > 1 else counts


class WritesBehindTheCount(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        counts = await super().read_into(buffers)
        buffers[-1][-1:] = b"\0"
        return counts


class KeepsBuffers(Sound):
    kept: Sequence[memoryview] = ()

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        self.kept = buffers
        return await super().read_into(buffers)

    async def pending(self) -> Pending:
        for buffer in self.kept:
            buffer[0] = 0
        return await super().pending()


class NeverEnds(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        self.rest = self.rest or STATE
        return [count for count in await super().read_into(buffers) if count]


class HasNothingForNow(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        return [count for count in await super().read_into(buffers) if count]


class LosesTheEnd(Sound):
    async def stop(self) -> None:
        await super().stop()
        self.rest = self.rest[:-1]


class LosesPreCopyThatWasNotRead(Sound):
    async def stop(self) -> None:
        await super().stop()
        self.rest = STATE[PRECOPY:]


class FillsTheLastBufferFirst(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        counts = await super().read_into(buffers)
        for buffer in buffers[1:]:
            buffer[:1], buffers[0][:1] = bytes(buffers[0][:1]), bytes(buffer[:1])
        return counts


class HasNoConfig(Sound):
    async def config(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return None  # type: ignore[return-value]


class HasAnotherConfig(Sound):
    async def config(self) -> bytes:
        return CONFIG[:6]


class NeverFinishes(Sound):
    async def finish(self) -> None:
        await trio.sleep_forever()


class FailsToAbort(Sound):
    """After one of its calls."""

    after: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.last = "begin"

    async def stop(self) -> None:
        self.last = "stop"
        await super().stop()

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        self.last += ", read"
        return await super().read_into(buffers)

    async def config(self) -> bytes:
        self.last = "config"
        return await super().config()

    async def abort(self) -> None:
        if self.last == self.after:
            raise OSError(errno.EBUSY, "Device or resource busy")
        await super().abort()


def fails_to_abort_after(last: str) -> Callable[[], FailsToAbort]:
    return type("Fails", (FailsToAbort,), {"after": last})


class FailsWhenCancelled(Sound):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        try:
            return await super().read_into(buffers)
        finally:
            if trio.current_effective_deadline() == -math.inf:
                raise OSError(errno.EINTR, "Interrupted system call")


class CannotAbortAfterACancel(Sound):
    cancelled = False

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        try:
            return await super().read_into(buffers)
        except trio.Cancelled:
            self.cancelled = True
            raise

    async def abort(self) -> None:
        if self.cancelled:
            raise OSError(errno.EBUSY, "Device or resource busy")
        await super().abort()


class DeafToCancel(Sound):
    """It waits for something that only an abort ends."""

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        if trio.current_effective_deadline() == -math.inf:
            with trio.CancelScope(shield=True):
                await self.aborting.wait()
        return await super().read_into(buffers)


class Waits(Sound):
    """A source with nothing to give, that does all it must."""

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        await self.aborting.wait()
        raise OSError(errno.ECANCELED, "Operation canceled")


class WaitsAndIsDeafToCancel(Waits):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        with trio.CancelScope(shield=True):
            await self.aborting.wait()
        return [0]


class WaitsAndIsSilent(Waits):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        try:
            return await super().read_into(buffers)
        except trio.Cancelled:  # noqa: ASYNC103 - this is what is wrong with it
            return []  # noqa: ASYNC104


class WaitsAndFailsWhenCancelled(Waits):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        try:
            return await super().read_into(buffers)
        except trio.Cancelled:
            # As above.
            raise OSError(errno.EINTR, "Interrupted") from None  # noqa: ASYNC104


class WaitsAndCannotAbortAfterACancel(CannotAbortAfterACancel, Waits):
    """In the order of its bases."""


class AbortEndsNothing(Waits):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        await trio.sleep_forever()
        raise AssertionError


class FailsToAbortARead(Waits):
    reading = False

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        self.reading = True
        try:
            return await super().read_into(buffers)
        finally:
            self.reading = False

    async def abort(self) -> None:
        reading = self.reading
        await super().abort()
        if reading:
            raise OSError(errno.EBUSY, "Device or resource busy")


class DoesNotWait(Waits):
    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


async def test_a_sound_source_passes(autojump_clock: MockClock) -> None:
    await check_state_source(
        Sound, STATE, config=CONFIG, precopy_bytes=PRECOPY, make_waiting=Waits
    )
    await check_state_source(Sound)
    await check_state_source(RefusesAnotherAttempt)
    assert trio.current_time() == 0


async def test_a_source_that_has_ever_more_before_stop_passes(
    autojump_clock: MockClock,
) -> None:
    """A guest may change its device faster than pre-copy reads it."""

    class Dirty(Sound):
        async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
            if not self.stopped:
                self.given = 0
                self.rest = STATE
            return await super().read_into(buffers)

    await check_state_source(Dirty)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (FailsToBegin, "begin raised OSError(5, 'Input/output error')"),
        (KeepsAnAttempt, "after an attempt that was aborted: begin must start afresh"),
        (HangsInASecondBegin, "begin after abort did not end within 10 s"),
        (BeginsWithoutAWord, "begin returned None; it must say whether"),
        (SaysNoPreCopy, "begin returned False, but 5000 bytes may come before stop"),
        (OddPending, "pending raised ValueError('initial_bytes cannot be -1')"),
        (PendingIsANumber, "pending returned 5, not a Pending"),
        (GivesTooMuchBeforeStop, "5001 bytes came before stop; 5000 may"),
        (ReturnsATuple, "returned (1,), not a list of int"),
        (ReturnsTooManyNumbers, "returned [1, 0]: one number a buffer at most"),
        (ReturnsTooLargeANumber, "returned [2] for buffers of [1] bytes"),
        (GoesOnAfterZero, "returned [0, 903]: a 0 is always the last number"),
        (WritesBehindTheCount, "memory was written to behind what the read into"),
        (KeepsBuffers, "memory was written to between two reads, before the read"),
        (NeverEnds, "bytes came, but there are 251000 in all"),
        (HasNothingForNow, "read after stop returned []: wait for data then, or"),
        (LosesTheEnd, "250999 bytes were read before and after stop, of 251000"),
        (LosesPreCopyThatWasNotRead, "246000 bytes were read after stop alone"),
        (FillsTheLastBufferFirst, "memory was written to behind what"),
        (HasNoConfig, "config returned None, not bytes"),
        (HasAnotherConfig, "config returned 6 bytes that differ at byte 6 from the 11"),
        (NeverFinishes, "finish did not end within 10 s"),
        (fails_to_abort_after("begin"), "abort right after begin raised OSError(16"),
        (fails_to_abort_after("begin, read"), "abort before stop raised OSError(16"),
        (fails_to_abort_after("stop"), "abort right after stop raised OSError(16"),
        (fails_to_abort_after("stop, read"), "abort between two reads raised OSErr"),
        (fails_to_abort_after("config"), "abort after config raised OSError(16"),
        (FailsWhenCancelled, "read raised InterruptedError(4"),
        (CannotAbortAfterACancel, "abort after a cancelled read raised OSError(16"),
        (DeafToCancel, "read was cancelled before it began and had not left 10 s"),
    ],
)
async def test_what_is_wrong_is_said(
    autojump_clock: MockClock, source: Callable[[], StateSource], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        await check_state_source(source, STATE, config=CONFIG, precopy_bytes=PRECOPY)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (
            WaitsAndIsDeafToCancel,
            "read was cancelled and had not left 10 s later: look",
        ),
        (WaitsAndIsSilent, "read returned when it was cancelled, but had read nothing"),
        (WaitsAndFailsWhenCancelled, "read raised InterruptedError(4"),
        (
            WaitsAndCannotAbortAfterACancel,
            "abort after a cancelled read raised OSError(16",
        ),
        (AbortEndsNothing, "read was aborted and had not left 10 s later: abort must"),
        (FailsToAbortARead, "abort during a read raised OSError(16"),
        (Sound, "read of a source from make_waiting did not wait, but returned"),
        (DoesNotWait, "did not wait, but raised BlockingIOError(11"),
    ],
)
async def test_what_is_wrong_while_it_waits_is_said(
    autojump_clock: MockClock, source: Callable[[], StateSource], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        await check_state_source(Sound, STATE, make_waiting=source)


class ReadsAllOfIt(Sound):
    """A source that is sound in `read_all`, too."""

    async def read_all(self, buffers: Buffers) -> None:
        while (buffer := buffers.take()) is not None:
            if not (count := (await self.read_into([buffer]))[0]):
                return
            buffers.filled(count)


class FillsBehindTheCount(ReadsAllOfIt):
    async def read_all(self, buffers: Buffers) -> None:
        buffer = buffers.take()
        assert buffer is not None
        buffer[:2] = b"ab"
        buffers.filled(1)


class FillsItAgain(ReadsAllOfIt):
    async def read_all(self, buffers: Buffers) -> None:
        buffer = buffers.take()
        assert buffer is not None
        buffer[:1] = b"a"
        buffers.filled(1)
        buffer[:1] = b"b"
        await super().read_all(buffers)


class FillsTooMuch(ReadsAllOfIt):
    async def read_all(self, buffers: Buffers) -> None:
        buffers.take()
        buffers.filled(4097)


class FillsWithNothing(ReadsAllOfIt):
    async def read_all(self, buffers: Buffers) -> None:
        buffers.take()
        buffers.filled(0)


class FillsWhatItHasNotTaken(ReadsAllOfIt):
    async def read_all(self, buffers: Buffers) -> None:
        buffers.filled(1)


class StopsShort(ReadsAllOfIt):
    async def read_all(self, buffers: Buffers) -> None:
        self.rest = self.rest[:-1]
        await super().read_all(buffers)


class WaitsForBuffers(ReadsAllOfIt):
    async def read_all(self, buffers: Buffers) -> None:
        await super().read_all(buffers)
        if self.rest:
            await trio.sleep_forever()


async def test_a_sound_read_of_all_passes(autojump_clock: MockClock) -> None:
    await check_state_source(ReadsAllOfIt, STATE, config=CONFIG, precopy_bytes=PRECOPY)
    assert trio.current_time() == 0


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (FillsBehindTheCount, "read_all wrote behind what it says"),
        (FillsItAgain, "read_all wrote into a buffer that it had filled before"),
        (FillsTooMuch, "4097 bytes in a buffer of 4096"),
        (FillsWithNothing, "0 bytes in a buffer of 4096"),
        (FillsWhatItHasNotTaken, "a buffer was filled that was not taken"),
        (StopsShort, "250999 bytes were read by read_all, of 251000"),
        (WaitsForBuffers, "read_all without a second buffer did not end within 10 s"),
    ],
)
async def test_what_is_wrong_with_a_read_of_all_is_said(
    autojump_clock: MockClock, source: Callable[[], StateSource], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        await check_state_source(source, STATE, config=CONFIG, precopy_bytes=PRECOPY)
