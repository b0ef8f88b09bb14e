"""Collaboration: the contract check finds what is wrong with a device, and says it."""

from __future__ import annotations

import errno
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import trio
from trio.testing import MockClock

from trio_vfio import StateSink
from trio_vfio._device._port import Gathers
from trio_vfio.testing._checks import check_state_sink


class Sound:
    """A device that does all it must, to be broken in one place."""

    precopy: bool | None = None

    def __init__(self) -> None:
        self.data = b""
        self.aborting = trio.Event()

    async def begin(self) -> None:
        await trio.lowlevel.checkpoint()
        self.data = b""
        self.aborting = trio.Event()

    async def write(self, buffers: Iterator[memoryview]) -> None:
        for buffer in buffers:
            await trio.lowlevel.checkpoint()
            self.data += buffer

    async def load_config(self, blob: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        self.aborting.set()
        await trio.lowlevel.checkpoint()


class OddPrecopy(Sound):
    precopy = "yes"  # type: ignore[assignment]


class FailsToBegin(Sound):
    async def begin(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


class NeverFinishes(Sound):
    async def finish(self) -> None:
        await trio.sleep_forever()


class NeedsData(Sound):
    async def finish(self) -> None:
        if not self.data:
            raise ValueError("no data")


class TakesOneBuffer(Sound):
    async def write(self, buffers: Iterator[memoryview]) -> None:
        await trio.lowlevel.checkpoint()
        for buffer in buffers:
            self.data += buffer
            return


class NeedsABuffer(Sound):
    async def write(self, buffers: Iterator[memoryview]) -> None:
        self.data += next(buffers)
        await super().write(buffers)


class KeepsViews(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.views: list[memoryview] = []

    async def write(self, buffers: Iterator[memoryview]) -> None:
        await trio.lowlevel.checkpoint()
        self.views += buffers

    async def finish(self) -> None:
        self.data = b"".join(self.views)


class GathersAll(Sound):
    """It takes several buffers together, and a part of them at a time."""

    async def write(self, buffers: Iterator[memoryview]) -> None:
        assert isinstance(buffers, Gathers)
        while batch := buffers.gather(100_000):
            await trio.lowlevel.checkpoint()
            data = b"".join(batch)[:90_001]
            self.take(batch, data)
            buffers.written(len(data))

    def take(self, batch: list[memoryview], data: bytes) -> None:
        self.data += data


class KeepsGatheredViews(GathersAll):
    """But for the last buffer of a batch it would do."""

    def __init__(self) -> None:
        super().__init__()
        self.views: list[memoryview] = []

    def take(self, batch: list[memoryview], data: bytes) -> None:
        left = len(data)
        for view in batch:
            self.views.append(view[:left])
            left -= len(self.views[-1])

    async def finish(self) -> None:
        self.data = b"".join(self.views)


class LetsOthersWrite(GathersAll):
    """What comes while it waits is written by whoever brings it, in any thread."""

    is_quick = False

    def __init__(self) -> None:
        super().__init__()
        self.others: set[int] = set()

    async def write(self, buffers: Iterator[memoryview]) -> None:
        assert isinstance(buffers, Gathers)
        while batch := buffers.gather(100_000, Writer(self)):
            await trio.lowlevel.checkpoint()
            data = b"".join(batch)
            self.data += data
            self.is_quick = True
            buffers.written(len(data))

    def write_at_once(self, data: bytes) -> int:
        self.others.add(threading.get_ident())
        self.data += data
        return len(data)


class Writer:
    """What a device lets others write with."""

    def __init__(self, device: LetsOthersWrite) -> None:
        self.device = device

    @property
    def is_quick(self) -> bool:
        return self.device.is_quick

    def write(self, buffers: Sequence[memoryview]) -> int:
        return self.device.write_at_once(b"".join(buffers))


class LetsOthersWriteALittle(LetsOthersWrite):
    def write_at_once(self, data: bytes) -> int:
        return super().write_at_once(data[:2])


class LosesWhatOthersWrite(LetsOthersWrite):
    def write_at_once(self, data: bytes) -> int:
        return len(data)


class OthersSayTooMuch(LetsOthersWrite):
    def write_at_once(self, data: bytes) -> int:
        return super().write_at_once(data) + 1


class OthersSayTooLittle(LetsOthersWrite):
    def write_at_once(self, data: bytes) -> int:
        return super().write_at_once(data) - 1


class FailsWhenOthersWrite(LetsOthersWrite):
    def write_at_once(self, data: bytes) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")


class SaysTooMuch(GathersAll):
    async def write(self, buffers: Iterator[memoryview]) -> None:
        assert isinstance(buffers, Gathers)
        while batch := buffers.gather(100_000):
            await trio.lowlevel.checkpoint()
            buffers.written(sum(map(len, batch)) + 1)


class GathersOnce(GathersAll):
    async def write(self, buffers: Iterator[memoryview]) -> None:
        assert isinstance(buffers, Gathers)
        await trio.lowlevel.checkpoint()
        batch = buffers.gather(1 << 20)
        self.data += b"".join(batch)
        buffers.written(sum(map(len, batch)))


class LosesTheEnd(Sound):
    async def finish(self) -> None:
        self.data = self.data[:-1]


class CannotAbortWhenFinished(Sound):
    finished = False

    async def finish(self) -> None:
        self.finished = True

    async def abort(self) -> None:
        if self.finished:
            raise OSError(errno.EBADF, "Bad file descriptor")
        await super().abort()


class HangsInAbort(Sound):
    async def abort(self) -> None:
        await super().abort()
        await trio.sleep_forever()


class DeafToCancel(Sound):
    """It waits for something that only an abort ends."""

    async def write(self, buffers: Iterator[memoryview]) -> None:
        for n, buffer in enumerate(buffers):
            self.data += buffer
            with trio.CancelScope(shield=True):
                if n == 8:
                    await self.aborting.wait()
                await trio.lowlevel.checkpoint()


class StopsSilently(Sound):
    async def write(self, buffers: Iterator[memoryview]) -> None:
        for buffer in buffers:
            self.data += buffer
            if trio.current_effective_deadline() == -math.inf:
                return
            await trio.lowlevel.checkpoint()


class FailsWhenCancelled(Sound):
    async def write(self, buffers: Iterator[memoryview]) -> None:
        try:
            await super().write(buffers)
        finally:
            if trio.current_effective_deadline() == -math.inf:
                raise OSError(errno.EINTR, "Interrupted system call")


class CannotAbortAfterACancel(Sound):
    cancelled = False

    async def write(self, buffers: Iterator[memoryview]) -> None:
        try:
            await super().write(buffers)
        except trio.Cancelled:
            self.cancelled = True
            raise

    async def abort(self) -> None:
        if self.cancelled:
            raise OSError(errno.EBUSY, "Device or resource busy")
        await super().abort()


class AbortEndsNothing(Sound):
    """A cancel ends its write where an abort does not."""

    async def write(self, buffers: Iterator[memoryview]) -> None:
        for n, buffer in enumerate(buffers):
            self.data += buffer
            await trio.sleep(math.inf if n == 8 else 0)


class FailsToAbortAWrite(Sound):
    writing = False

    async def write(self, buffers: Iterator[memoryview]) -> None:
        self.writing = True
        try:
            await super().write(buffers)
        finally:
            self.writing = False

    async def abort(self) -> None:
        if self.writing:
            raise OSError(errno.EBUSY, "Device or resource busy")
        await super().abort()


class KeepsAnAttempt(Sound):
    """It goes on with what it has when it is begun again."""

    async def begin(self) -> None:
        await trio.lowlevel.checkpoint()


class HangsInASecondBegin(Sound):
    async def begin(self) -> None:
        if self.aborting.is_set():
            await trio.sleep_forever()


class RefusesAnotherAttempt(Sound):
    async def begin(self) -> None:
        if self.aborting.is_set():
            raise OSError(errno.ESPIPE, "Illegal seek")


async def read_back(sink: StateSink) -> bytes:
    assert isinstance(sink, Sound)
    return sink.data


async def test_a_sound_device_passes(autojump_clock: MockClock) -> None:
    await check_state_sink(Sound, read_back)
    await check_state_sink(Sound)
    await check_state_sink(GathersAll, read_back)
    await check_state_sink(RefusesAnotherAttempt, read_back)
    assert trio.current_time() == 0


@pytest.mark.parametrize("device", [LetsOthersWrite, LetsOthersWriteALittle])
async def test_what_others_write_is_part_of_it(
    autojump_clock: MockClock, device: type[LetsOthersWrite]
) -> None:
    """In another thread, as in a session."""
    made: list[LetsOthersWrite] = []

    def make() -> StateSink:
        made.append(device())
        return made[-1]

    await check_state_sink(make, read_back)
    assert made[0].others
    assert threading.get_ident() not in made[0].others


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        (OddPrecopy, "precopy is 'yes'"),
        (FailsToBegin, "begin raised OSError(5, 'Input/output error')"),
        (NeverFinishes, "finish did not end within 10 s"),
        (NeedsData, "finish without data and without config raised ValueError"),
        (TakesOneBuffer, "write of 1 buffers returned before it asked for the one"),
        (NeedsABuffer, "write of 0 buffers raised"),
        (KeepsViews, "is a buffer kept longer than until the next one is asked for?"),
        (KeepsGatheredViews, "is a buffer kept longer than until the next one is"),
        (SaysTooMuch, "write says that it has written 2 bytes, but was not given so"),
        (GathersOnce, "write of 1 buffers returned before it asked for the one"),
        (LosesWhatOthersWrite, "Does the writer that gather was given write to the"),
        (
            OthersSayTooMuch,
            "the writer that gather was given says that it has written ",
        ),
        (OthersSayTooLittle, "Does the writer that gather was given write to the"),
        (FailsWhenOthersWrite, "write of 8 buffers raised OSError(9"),
        (LosesTheEnd, "519125 bytes were written and 519124 came back; they differ at"),
        (CannotAbortWhenFinished, "abort after finish raised OSError(9"),
        (HangsInAbort, "abort right after begin did not end within 10 s"),
        (DeafToCancel, "write was cancelled and had not left 10 s later: look for"),
        (StopsSilently, "write returned when it was cancelled, but had not taken"),
        (FailsWhenCancelled, "write raised InterruptedError(4"),
        (CannotAbortAfterACancel, "abort after a cancelled write raised OSError(16"),
        (AbortEndsNothing, "write was aborted and had not left 10 s later"),
        (FailsToAbortAWrite, "abort during a write raised OSError(16"),
        (KeepsAnAttempt, "is something left of an attempt that was aborted?"),
        (HangsInASecondBegin, "begin after abort did not end within 10 s"),
    ],
)
async def test_what_is_wrong_is_said(
    autojump_clock: MockClock, device: Callable[[], StateSink], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        await check_state_sink(device, read_back)
