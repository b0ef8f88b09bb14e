"""A device that gives state in virtual time, and fails when told to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import ClassVar, Final, final

import attrs
import trio

from .._device._port import Pending
from ._simulation import MAY_BEGIN, LegalCalls, Simulation, Stage

_LEGAL: Final[LegalCalls] = {
    # Or WITHOUT_PRECOPY, see `_leads_to`.
    "begin": (MAY_BEGIN, Stage.READY),
    # Where it was.
    "pending": (frozenset({Stage.READY, Stage.WITHOUT_PRECOPY}), Stage.READY),
    # Where it was, or to READ.
    "read_into": (frozenset({Stage.READY, Stage.STOPPED}), Stage.STOPPED),
    "stop": (frozenset({Stage.READY, Stage.WITHOUT_PRECOPY}), Stage.STOPPED),
    "config": (frozenset({Stage.READ}), Stage.COMPLETE),
    "finish": (frozenset({Stage.COMPLETE}), Stage.FINISHED),
    "abort": (
        frozenset(
            {
                Stage.READY,
                Stage.WITHOUT_PRECOPY,
                Stage.STOPPED,
                Stage.READ,
                Stage.COMPLETE,
                Stage.BROKEN,
            }
        ),
        Stage.ABORTED,
    ),
}

# No two of the state's blocks are alike, so that it shows where one is swapped
# with another, comes twice or is missing.
_BLOCK: Final = 256
_STAMP: Final = 8


@final
@attrs.define(eq=False, kw_only=True)
class SimulatedSource(Simulation):
    """A `StateSource` in virtual time, the twin of `SimulatedSink`.

    Never uses a thread. Each buffer it fills and each other call takes its time
    in one shielded step, as a thread that cannot be interrupted would. Between
    two steps a cancel is seen; an abort ends a step, and the call with ECANCELED.

    Raises `ContractViolation` in whoever calls it out of order, and keeps it in
    `violations`.
    """

    _legal: ClassVar[LegalCalls] = _LEGAL
    _data_call: ClassVar[str] = "read_into"

    size: int = 0
    """How many bytes of state it has in all."""
    initial_bytes: int = 0
    """How many of them can be read before `stop`, and must be before the
    destination is ready for a switchover."""
    dirty_bytes: int = 0
    """How many can be read before `stop` beyond that, from the beginning."""
    dirty_per_second: float = 0.0
    """How many more of them can be read for each second since ``begin``, as a device
    that runs makes its state anew; never more than there are."""
    config_blob: bytes = attrs.field(default=b"", alias="config")
    """What `config` returns."""
    precopy: bool | None = None
    """What `begin` returns; None: whether anything can be read before `stop`."""
    ends_precopy: bool = False
    """Whether a read before `stop` says 0 when there is nothing left until then;
    otherwise it gives less than it was asked for (the kernel's ENOMSG)."""
    most_per_read: int | None = None
    """How many bytes a buffer is given at most, for short reads."""
    seed: int = 0
    """What the content of the state depends on, besides its size."""

    state: bytes = attrs.field(init=False, repr=False)
    """All its bytes, in order."""
    read: int = attrs.field(default=0, init=False)
    """How many bytes were given so far, always the first ones of `state`."""
    _stopped: bool = attrs.field(default=False, init=False)
    _precopy_over: bool = attrs.field(default=False, init=False)
    """Whether a read has said that this was all before `stop`."""
    _short: bool = attrs.field(default=False, init=False)
    """Whether a fault has ended the data."""
    _ended: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if min(self.initial_bytes, self.dirty_bytes) < 0:
            raise ValueError("a size is not negative")
        if self.initial_bytes + self.dirty_bytes > self.size:
            raise ValueError("what can be read before stop is part of size")
        if not 0 <= self.dirty_per_second < math.inf:
            raise ValueError("dirty_per_second is not negative, and has an end")
        if self.most_per_read is not None and self.most_per_read < 1:
            raise ValueError("most_per_read is 1 or more")
        self.state = _content(self.seed, self.size)

    @property
    def running(self) -> bool:
        """Whether the device runs: before `stop`, and again after an abort."""
        return not self._stopped or self.aborted

    async def begin(self) -> bool:
        """Make ready; takes no time unless it hangs.

        Returns: whether data can be read before `stop`.

        Raises:
          OSError: as told; ECANCELED if the device is aborted meanwhile.
        """
        async with self._call("begin"):
            self._record("begin")
            await self._step("begin", 0.0)
            return self._has_precopy

    async def pending(self) -> Pending:
        """Say exactly what there is still to read; takes no time unless it hangs.

        What a fault of the kind ``ends`` withholds is there for it.

        Raises:
          OSError: as told; ECANCELED if the device is aborted meanwhile.
        """
        async with self._call("pending"):
            self._record("pending")
            await self._step("pending", 0.0)
            initial = max(self.initial_bytes - self.read, 0)
            dirty = self._early - self.read - initial
            return Pending(initial, dirty, self.size - self.read)

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        """Fill *buffers* one by one.

        If cancelled, the buffer that is being filled is filled first, and counts
        as `read`. If this fails, that buffer is not filled.

        Returns: how many bytes each buffer was given, as a `StateSource` does. To
            find out that there is no more takes no time.

        Raises:
          OSError: as told; ECANCELED if the device is aborted meanwhile.
        """
        async with self._call("read_into"):
            if not all(map(len, buffers)) or not buffers:
                raise self._violation("read_into no buffer, or an empty one")
            given: list[int] = []
            for buffer in buffers:
                size = min(len(buffer), self._readable, self.most_per_read or self.size)
                if not size or self._falls_short(size):
                    return given + await self._read_nothing()
                await self._data_step(size)
                buffer[:size] = self.state[self.read : self.read + size]
                self.read += size
                given.append(size)
                # As in `SimulatedSink.write`.
                await trio.lowlevel.checkpoint()
            return given

    async def stop(self) -> None:
        """Make the device stand still. Is made whole if cancelled.

        Raises:
          OSError: as told; ECANCELED if the device is aborted meanwhile. It runs
            on then.
        """
        async with self._call("stop"):
            self._record("stop")
            await self._step("stop", self._seconds())
            self._stopped = True

    async def config(self) -> bytes:
        """Return `config_blob`.

        Raises:
          OSError: as told; ECANCELED if the device is aborted meanwhile.
        """
        async with self._call("config"):
            self._record("config", len(self.config_blob))
            await self._step("config", self._seconds())
            return self.config_blob

    @property
    def _has_precopy(self) -> bool:
        if self.precopy is None:
            dirtied = self.size if self.dirty_per_second else 0
            return self.initial_bytes + self.dirty_bytes + dirtied > 0
        return self.precopy

    @property
    def _early(self) -> int:
        """How many bytes there would be before `stop` if it came now."""
        if self._precopy_over:
            return self.read
        early = self.initial_bytes + self.dirty_bytes
        if self.dirty_per_second:
            seconds = trio.current_time() - self._begun_at
            early += int(self.dirty_per_second * seconds)
        return min(early, self.size)

    @property
    def _readable(self) -> int:
        """How many bytes can be read before anything else happens."""
        return (self.size if self._stopped else self._early) - self.read

    def _falls_short(self, size: int) -> bool:
        """Whether a fault ends the data before a read of *size* bytes."""
        if not self._short and (faults := self._faults_in.get("read_into")):
            self._short = any(
                fault.does == "ends" and self._is_met(fault, size) for fault in faults
            )
        return self._short

    async def _read_nothing(self) -> list[int]:
        self._record("read_into")
        await self._step("read_into", 0.0)
        self._ended = self._stopped
        if not (self._stopped or self._short or self.ends_precopy):
            return []
        # A device that falls short knows of none of it.
        self._precopy_over = self._precopy_over or not self._short
        return [0]

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self.read = 0
        self._stopped = self._precopy_over = self._short = self._ended = False

    def _bytes_done(self) -> int:
        return self.read

    def _leads_to(self, name: str) -> Stage:
        if name == "begin" and not self._has_precopy:
            return Stage.WITHOUT_PRECOPY
        if name == "pending":
            return self._stage
        if name == "read_into":
            return Stage.READ if self._ended else self._stage
        return super()._leads_to(name)


def _content(seed: int, size: int) -> bytes:
    # One block again and again, for random bytes are too slow to make. Each begins
    # with a number of its own, which depends on the seed, for a short state's sake.
    digest = hashlib.shake_128(str(seed).encode()).digest(_BLOCK)
    first, rest = int.from_bytes(digest[:_STAMP]), digest[_STAMP:]
    stamps = (first + n & 2 ** (8 * _STAMP) - 1 for n in range(-(-size // _BLOCK)))
    # The end that changes comes first: a piece of a block differs, too.
    blocks = [stamp.to_bytes(_STAMP, "little") + rest for stamp in stamps]
    return b"".join(blocks)[:size]
