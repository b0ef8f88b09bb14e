"""What simulated devices of both kinds share: calls that take virtual time.

A table says from which stages a call is legal. Each call runs in steps that no
cancel interrupts, as a thread would; between two of them a cancel is seen. An
abort ends a step.
"""

from __future__ import annotations

import abc
import enum
import errno
import math
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import ClassVar, Final, TypeAlias

import attrs
import trio

MIB: Final = 1024 * 1024


class ContractViolation(AssertionError):  # noqa: N818 (an assertion about the caller)
    """A device was driven as no session may drive it."""


class Stage(enum.Enum):
    """How far a device has come, in the words of a violation."""

    NEW = "before begin"
    READY = "after begin"
    WITHOUT_PRECOPY = "after a begin that said no to pre-copy"
    STOPPED = "after stop and before the end of all data"
    READ = "after the end of all data and before config"
    CONFIGURED = "after load_config"
    COMPLETE = "after config"
    FINISHED = "after finish"
    BROKEN = "after a call that failed or was cancelled"
    NEVER_BEGUN = "after a begin that failed or was cancelled"
    ABORTED = "after abort"


# From which stages a call is legal, and which it leads to.
LegalCalls: TypeAlias = Mapping[str, tuple[frozenset[Stage], Stage]]


@attrs.frozen
class Call:
    """One call of a device, or one buffer of a write or a read."""

    time: float
    """When it began, in Trio's time."""
    name: str
    size: int = 0
    """How many bytes it was given, or gave."""


@attrs.define(eq=False, kw_only=True)
class Simulation(abc.ABC):
    """Calls that take virtual time, fail when told to, and are looked at later."""

    _legal: ClassVar[LegalCalls]
    _data_call: ClassVar[str]
    """The call that moves data."""

    seconds_per_call: float = 0.0
    """What each buffer takes, and each other call; but ``begin``, ``pending`` and
    ``abort`` take no time."""
    seconds_per_mib: float = 0.0
    """What data takes on top of that."""
    fails: Mapping[str, int] = attrs.field(factory=dict[str, int])
    """Errno by call, for calls that fail once their time is over."""
    fails_at_byte: int | None = None
    """Fails the write or the read of the buffer that holds this byte, and no
    other, with the errno that `fails` has for it, or EIO."""
    hangs_in: str | None = None
    """A call that never ends by itself, but only when the device is aborted."""
    hangs_at_byte: int | None = None
    """Hangs in the write or the read of the buffer that holds this byte."""
    seconds_after_abort: float = 0.0
    """How long a call that is under way goes on after the abort."""

    calls: list[Call] = attrs.field(factory=list[Call], init=False)
    """Every call, and for data every buffer in its place, in order."""
    finished: bool = attrs.field(default=False, init=False)
    """Whether ``finish`` did what it is for; stays so after an abort."""
    aborted_at: float | None = attrs.field(default=None, init=False)
    """When it was aborted, in Trio's time."""
    _stage: Stage = attrs.field(default=Stage.NEW, init=False)
    _running: str | None = attrs.field(default=None, init=False)
    _abort_called: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        for name in (*self.fails, self.hangs_in):
            if name is not None and name not in self._legal:
                raise ValueError(f"a device has no call {name!r}")
        if self.hangs_in == "abort":
            raise ValueError("abort is what ends a call that hangs")

    @property
    def began(self) -> bool:
        """Whether `begin` was called."""
        return any(call.name == "begin" for call in self.calls)

    @property
    def aborted(self) -> bool:
        """Whether `abort` was called."""
        return self.aborted_at is not None

    async def finish(self) -> None:
        """Accept the state as a whole, or let go of it. Is made whole if cancelled.

        Raises:
          OSError: as told; ECANCELED if the device is aborted meanwhile. It has
            not finished then.
        """
        async with self._call("finish"):
            self._record("finish")
            await self._step("finish", self.seconds_per_call)
            self.finished = True

    async def abort(self) -> None:
        """End the call that is under way. Takes no time.

        What went over before stays to be looked at, also if this fails.

        Raises:
          OSError: as told.
        """
        if self._running is None or self._stage is Stage.ABORTED:
            self._check_legal("abort")
        self._record("abort")
        self._stage = Stage.ABORTED
        self.aborted_at = trio.current_time()
        self._abort_called.set()
        await trio.lowlevel.cancel_shielded_checkpoint()
        if "abort" in self.fails:
            raise _os_error(self.fails["abort"])

    @abc.abstractmethod
    def _bytes_done(self) -> int:
        """How many bytes have gone over."""

    def _leads_to(self, name: str) -> Stage:
        _, stage = self._legal[name]
        return stage

    def _record(self, name: str, size: int = 0) -> None:
        self.calls.append(Call(trio.current_time(), name, size))

    def _check_legal(self, name: str) -> None:
        stages, _ = self._legal[name]
        if self._stage not in stages:
            raise ContractViolation(f"{name} {self._stage.value}")

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncGenerator[None]:
        if self._running is not None:
            raise ContractViolation(f"{name} while {self._running} is under way")
        self._check_legal(name)
        self._running = name
        after = Stage.NEVER_BEGUN if name == "begin" else Stage.BROKEN
        try:
            yield
            await trio.lowlevel.checkpoint_if_cancelled()
            after = self._leads_to(name)
        finally:
            self._running = None
            self._stage = Stage.ABORTED if self.aborted else after

    async def _data_step(self, size: int) -> None:
        """Take the time of a buffer that moves *size* bytes."""
        self._record(self._data_call, size)
        seconds = self.seconds_per_mib * size / MIB
        await self._step(self._data_call, self.seconds_per_call + seconds, size)

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
        if name == self._data_call and self.fails_at_byte is not None:
            return self._holds(self.fails_at_byte, size)
        return name in self.fails

    def _holds(self, byte: int | None, size: int) -> bool:
        begin = self._bytes_done()
        return byte is not None and begin <= byte < begin + size


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
