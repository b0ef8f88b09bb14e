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
import random
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, Final, TypeAlias

import attrs
import trio

from ._costs import Cost, cost_at
from ._faults import DeviceFault, os_error

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


MAY_BEGIN: Final = frozenset({Stage.NEW, Stage.NEVER_BEGUN, Stage.ABORTED})
"""Stages from which ``begin`` is legal: a migration that has failed is tried again."""

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

    seconds_per_call: Cost = 0.0
    """What each buffer takes, and each other call; but ``begin``, ``pending`` and
    ``abort`` take no time."""
    seconds_per_mib: Cost = 0.0
    """What data takes on top of that."""
    cost_seed: int = attrs.field(default=0, on_setattr=attrs.setters.frozen)
    """What decides where costs vary. Each step that takes time draws once: one in
    which `seconds_per_call` is high has a high `seconds_per_mib`, too."""
    threaded: bool = False
    """Whether it works as a device whose calls run in a thread: a cancel is not seen
    within a call, which ends by itself, by the end of its buffers or by an abort."""
    faults: Sequence[DeviceFault] = attrs.field(
        default=(), on_setattr=attrs.setters.frozen
    )
    """What goes wrong, and where. Where two meet, the first counts, and all of them
    before those that the fields below are short for."""
    fails: Mapping[str, int] = attrs.field(
        factory=dict[str, int], on_setattr=attrs.setters.frozen
    )
    """Errno by call, for calls that fail once their time is over."""
    fails_at_byte: int | None = attrs.field(
        default=None, on_setattr=attrs.setters.frozen
    )
    """Fails the write or the read of the buffer that holds this byte, and no
    other, with the errno that `fails` has for it, or EIO."""
    hangs_in: str | None = attrs.field(default=None, on_setattr=attrs.setters.frozen)
    """A call that never ends by itself, but only when the device is aborted."""
    hangs_at_byte: int | None = attrs.field(
        default=None, on_setattr=attrs.setters.frozen
    )
    """Hangs in the write or the read of the buffer that holds this byte."""
    seconds_after_abort: float = 0.0
    """How long a call that is under way goes on after the abort."""

    calls: list[Call] = attrs.field(factory=list[Call], init=False)
    """Every call, and for data every buffer in its place, in order."""
    finished: bool = attrs.field(default=False, init=False)
    """Whether ``finish`` did what it is for; stays so until the next ``begin``."""
    aborted_at: float | None = attrs.field(default=None, init=False)
    """When it was aborted, in Trio's time; None after the next ``begin``."""
    violations: list[str] = attrs.field(factory=list[str], init=False)
    """What every `ContractViolation` said that was raised, in order: also where who
    called the device has swallowed it."""
    _begun_at: float = attrs.field(default=math.inf, init=False)
    _faults_in: dict[str, list[DeviceFault]] = attrs.field(
        factory=dict[str, list[DeviceFault]], init=False, repr=False
    )
    """What may go wrong in a call, by its name."""
    _counts: dict[str, int] = attrs.field(
        factory=dict[str, int], init=False, repr=False
    )
    """How often each call that may go wrong was made."""
    _random: random.Random | None = attrs.field(default=None, init=False, repr=False)
    _stage: Stage = attrs.field(default=Stage.NEW, init=False)
    _running: str | None = attrs.field(default=None, init=False)
    _abort_called: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        for fault in (*self.faults, *self._short_hand()):
            if fault.call not in self._legal:
                raise ValueError(f"a device has no call {fault.call!r}")
            self._faults_in.setdefault(fault.call, []).append(fault)
            self._counts[fault.call] = 0

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
            await self._step("finish", self._seconds())
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
        self._count("abort")
        self._stage = Stage.ABORTED
        self.aborted_at = trio.current_time()
        self._abort_called.set()
        await trio.lowlevel.cancel_shielded_checkpoint()
        if (fault := self._fault("abort")) is not None:
            raise os_error(fault.errno)

    @abc.abstractmethod
    def _bytes_done(self) -> int:
        """How many bytes have gone over."""

    def _start_afresh(self) -> None:
        """Forget an earlier migration, but for what tests look at."""
        self.finished = False
        self.aborted_at = None
        self._abort_called = trio.Event()

    def _leads_to(self, name: str) -> Stage:
        _, stage = self._legal[name]
        return stage

    def _record(self, name: str, size: int = 0) -> None:
        self.calls.append(Call(trio.current_time(), name, size))

    def _short_hand(self) -> Iterator[DeviceFault]:
        """Put the fields that are short for faults in full."""
        data = self._data_call
        if self.hangs_in is not None:
            yield DeviceFault(self.hangs_in, does="hangs")
        if self.hangs_at_byte is not None:
            yield DeviceFault(data, does="hangs", at_byte=self.hangs_at_byte)
        if self.fails_at_byte is not None:
            number = self.fails.get(data, errno.EIO)
            yield DeviceFault(data, errno=number, at_byte=self.fails_at_byte)
        for name, number in self.fails.items():
            if name != data or self.fails_at_byte is None:
                yield DeviceFault(name, errno=number)

    def _violation(self, what: str) -> ContractViolation:
        self.violations.append(what)
        return ContractViolation(what)

    def _check_legal(self, name: str) -> None:
        stages, _ = self._legal[name]
        if self._stage not in stages:
            raise self._violation(f"{name} {self._stage.value}")

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncGenerator[None]:
        if self._running is not None:
            raise self._violation(f"{name} while {self._running} is under way")
        self._check_legal(name)
        self._count(name)
        if name == "begin":
            self._start_afresh()
            self._begun_at = trio.current_time()
        self._running = name
        after = Stage.NEVER_BEGUN if name == "begin" else Stage.BROKEN
        try:
            with trio.CancelScope(shield=self.threaded):
                yield
                await trio.lowlevel.checkpoint_if_cancelled()
            after = self._leads_to(name)
        finally:
            self._running = None
            self._stage = Stage.ABORTED if self.aborted else after

    def _count(self, name: str) -> None:
        if name in self._counts:
            self._counts[name] += 1

    def _seconds(self, size: int = 0) -> float:
        """Return what a step takes that moves *size* bytes."""
        per_call, per_mib = self.seconds_per_call, self.seconds_per_mib
        if not isinstance(per_call, (int, float)) or not isinstance(
            per_mib, (int, float)
        ):
            if self._random is None:
                self._random = random.Random(self.cost_seed)  # noqa: S311
            share = self._random.random()
            per_call, per_mib = cost_at(per_call, share), cost_at(per_mib, share)
        return per_call + per_mib * size / MIB

    async def _data_step(self, size: int) -> None:
        """Take the time of a buffer that moves *size* bytes."""
        self._record(self._data_call, size)
        await self._step(self._data_call, self._seconds(size), size)

    async def _step(self, name: str, seconds: float, size: int = 0) -> None:
        fault = self._fault(name, size) if self._faults_in else None
        if fault is not None and fault.does == "hangs":
            seconds = math.inf
        with trio.CancelScope(shield=True):
            with trio.move_on_after(seconds) as step:
                await self._abort_called.wait()
            if not step.cancelled_caught:
                await trio.sleep(self.seconds_after_abort)
                raise os_error(errno.ECANCELED)
        if fault is not None:
            raise os_error(fault.errno)

    def _fault(self, name: str, size: int = 0) -> DeviceFault | None:
        """Return what goes wrong in the step that begins, if anything does."""
        for fault in self._faults_in.get(name, ()):
            if fault.does != "ends" and self._is_met(fault, size):
                return fault
        return None

    def _is_met(self, fault: DeviceFault, size: int) -> bool:
        """Whether a step of *fault*'s call that begins now is where it is."""
        if fault.at_byte is not None:
            begin = self._bytes_done()
            return begin <= fault.at_byte < begin + size
        if fault.at_call is not None:
            return self._counts[fault.call] == fault.at_call + 1
        if fault.at_time is not None:
            return trio.current_time() >= self._begun_at + fault.at_time
        return True
