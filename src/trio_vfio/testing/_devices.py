"""A device whose calls take virtual time, and that fails when told to."""

from __future__ import annotations

import enum
import errno
import math
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, final

import attrs
import trio

MIB: Final = 1024 * 1024


class ContractViolation(AssertionError):  # noqa: N818 (an assertion about the caller)
    """A device was driven as no session may drive it."""


class _Stage(enum.Enum):
    """How far a device has come, in the words of a violation."""

    NEW = "before begin"
    READY = "after begin"
    CONFIGURED = "after load_config"
    FINISHED = "after finish"
    BROKEN = "after a call that failed or was cancelled"
    NEVER_BEGUN = "after a begin that failed or was cancelled"
    ABORTED = "after abort"


# From which stages a call is legal, and which it leads to.
_LEGAL: Final[Mapping[str, tuple[frozenset[_Stage], _Stage]]] = {
    "begin": (frozenset({_Stage.NEW}), _Stage.READY),
    "write": (frozenset({_Stage.READY}), _Stage.READY),
    "load_config": (frozenset({_Stage.READY}), _Stage.CONFIGURED),
    "finish": (frozenset({_Stage.READY, _Stage.CONFIGURED}), _Stage.FINISHED),
    "abort": (
        frozenset(
            {_Stage.READY, _Stage.CONFIGURED, _Stage.FINISHED, _Stage.BROKEN},
        ),
        _Stage.ABORTED,
    ),
}


@attrs.frozen
class Call:
    """One call of a device, or one buffer of a write."""

    time: float
    """When it began, in Trio's time."""
    name: str
    size: int = 0
    """How many bytes it was given."""


@final
@attrs.define(eq=False, kw_only=True)
class SimulatedDevice:
    """A `StateSink` in virtual time. Never uses a thread.

    Each buffer and each other call takes its time in one shielded step, as a
    thread that cannot be interrupted would. Between two steps a cancel is seen;
    an abort ends a step, and the call with ECANCELED.

    Raises `ContractViolation` in whoever calls it out of order.
    """

    seconds_per_call: float = 0.0
    """What each buffer takes, and ``load_config`` and ``finish``."""
    seconds_per_mib: float = 0.0
    """What data takes on top of that."""
    precopy: bool | None = None
    """Whether it takes data before switchover; None if it cannot say."""
    fails: Mapping[str, int] = attrs.field(factory=dict[str, int])
    """Errno by call, for calls that fail once their time is over."""
    fails_at_byte: int | None = None
    """Fails the write of the buffer that holds this byte, and no other, with
    ``fails['write']``, or EIO."""
    hangs_in: str | None = None
    """A call that never ends by itself, but only when the device is aborted."""
    hangs_at_byte: int | None = None
    """Hangs in the write of the buffer that holds this byte."""
    seconds_after_abort: float = 0.0
    """How long a call that is under way goes on after the abort."""

    config: bytes | None = attrs.field(default=None, init=False)
    """The config blob, once it is accepted."""
    calls: list[Call] = attrs.field(factory=list[Call], init=False)
    """Every call, and for a write every buffer in its place, in order."""
    finished: bool = attrs.field(default=False, init=False)
    """Whether it has accepted its state as a whole; stays so after an abort."""
    aborted_at: float | None = attrs.field(default=None, init=False)
    """When it was aborted, in Trio's time."""
    _accepted: bytearray = attrs.field(factory=bytearray, init=False)
    _stage: _Stage = attrs.field(default=_Stage.NEW, init=False)
    _running: str | None = attrs.field(default=None, init=False)
    _abort_called: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        for name in (*self.fails, self.hangs_in):
            if name is not None and name not in _LEGAL:
                raise ValueError(f"a device has no call {name!r}")
        if self.hangs_in == "abort":
            raise ValueError("abort is what ends a call that hangs")

    @property
    def loaded(self) -> bytes:
        """All data that was accepted, in order; stays after an abort."""
        return bytes(self._accepted)

    @property
    def began(self) -> bool:
        """Whether `begin` was called."""
        return any(call.name == "begin" for call in self.calls)

    @property
    def aborted(self) -> bool:
        """Whether `abort` was called."""
        return self.aborted_at is not None

    async def begin(self) -> None:
        """Make ready; takes no time unless it hangs."""
        async with self._call("begin"):
            self._record("begin")
            await self._step("begin", 0.0)

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Accept *buffers* one by one.

        If cancelled, the buffer that is being written is accepted first. If this
        fails, that buffer is not accepted.

        Raises:
          OSError: as told; ECANCELED if the device is aborted meanwhile.
        """
        async with self._call("write"):
            for buffer in buffers:
                data = bytes(buffer)
                if not data:
                    raise ContractViolation("write of an empty buffer")
                self._record("write", len(data))
                seconds = self.seconds_per_mib * len(data) / MIB
                await self._step("write", self.seconds_per_call + seconds, len(data))
                self._accepted += data
                # A full one, so that of two things that happen at the same
                # moment a cancel comes before the next buffer.
                await trio.lowlevel.checkpoint()

    async def load_config(self, blob: bytes) -> None:
        """Accept the config. Cancelled or failing as `write`."""
        async with self._call("load_config"):
            self._record("load_config", len(blob))
            await self._step("load_config", self.seconds_per_call)
            self.config = blob

    async def finish(self) -> None:
        """Accept the state as a whole. Cancelled or failing as `write`."""
        async with self._call("finish"):
            self._record("finish")
            await self._step("finish", self.seconds_per_call)
            self.finished = True

    async def abort(self) -> None:
        """End the call that is under way. Takes no time.

        What was accepted stays to be looked at.

        Raises:
          OSError: as told.
        """
        if self._running is None or self._stage is _Stage.ABORTED:
            self._check_legal("abort")
        self._record("abort")
        self._stage = _Stage.ABORTED
        self.aborted_at = trio.current_time()
        self._abort_called.set()
        await trio.lowlevel.cancel_shielded_checkpoint()
        if "abort" in self.fails:
            raise _os_error(self.fails["abort"])

    def _record(self, name: str, size: int = 0) -> None:
        self.calls.append(Call(trio.current_time(), name, size))

    def _check_legal(self, name: str) -> None:
        stages, _ = _LEGAL[name]
        if self._stage not in stages:
            raise ContractViolation(f"{name} {self._stage.value}")

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncGenerator[None]:
        if self._running is not None:
            raise ContractViolation(f"{name} while {self._running} is under way")
        self._check_legal(name)
        self._running = name
        after = _Stage.NEVER_BEGUN if name == "begin" else _Stage.BROKEN
        try:
            yield
            await trio.lowlevel.checkpoint_if_cancelled()
            _, after = _LEGAL[name]
        finally:
            self._running = None
            self._stage = _Stage.ABORTED if self.aborted else after

    async def _step(self, name: str, seconds: float, size: int = 0) -> None:
        with trio.CancelScope(shield=True):
            hangs = self.hangs_in == name or self._holds(self.hangs_at_byte, size)
            with trio.move_on_after(math.inf if hangs else seconds) as step:
                await self._abort_called.wait()
            if not step.cancelled_caught:
                await trio.sleep(self.seconds_after_abort)
                raise _os_error(errno.ECANCELED)
        if self._fails(name, size):
            raise _os_error(self.fails.get(name, errno.EIO))

    def _fails(self, name: str, size: int) -> bool:
        if name == "write" and self.fails_at_byte is not None:
            return self._holds(self.fails_at_byte, size)
        return name in self.fails

    def _holds(self, byte: int | None, size: int) -> bool:
        begin = len(self._accepted)
        return byte is not None and begin <= byte < begin + size


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
