"""A device whose calls take virtual time, and that fails when told to."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import final

import attrs
import trio

MIB = 1024 * 1024


class ContractViolation(AssertionError):  # noqa: N818 (an assertion about the caller)
    """A device was driven as no session may drive it."""


@attrs.frozen
class Call:
    """One call of a device, or one buffer of a write."""

    time: float
    """When it began, in Trio's time."""
    name: str
    size: int = 0
    """Bytes that were to be written."""


@final
@attrs.define(eq=False, kw_only=True)
class SimulatedDevice:
    """A `StateSink` in virtual time. Never uses a thread.

    Each buffer and each other call takes its time in one shielded step, as a
    thread that cannot be interrupted would; between two steps a cancel is seen.

    Raises `ContractViolation` in whoever calls it out of order.
    """

    seconds_per_call: float = 0.0
    """What each buffer takes, and ``load_config`` and ``finish``."""
    seconds_per_mib: float = 0.0
    """What data takes on top of that."""
    precopy: bool | None = None
    fails: Mapping[str, int] = attrs.field(factory=dict[str, int])
    """Errno by call, for calls that fail once their time is over."""
    fails_at_byte: int | None = None
    """Fails the write of the buffer that holds this byte, with ``fails['write']``."""
    hangs_in: str | None = None
    """A call that never ends by itself, but only when the device is aborted."""
    seconds_after_abort: float = 0.0
    """How long a hanging call goes on after the abort."""

    loaded: bytes = attrs.field(default=b"", init=False)
    """All data that was accepted, in order."""
    config: bytes | None = attrs.field(default=None, init=False)
    calls: list[Call] = attrs.field(factory=list[Call], init=False)
    """Every call, and every buffer of a write, in order."""
    finished: bool = attrs.field(default=False, init=False)
    aborted_at: float | None = attrs.field(default=None, init=False)
    """When it was aborted."""
    _running: str | None = attrs.field(default=None, init=False)
    _aborted: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def began(self) -> bool:
        """Whether it was made ready."""
        return any(call.name == "begin" for call in self.calls)

    async def begin(self) -> None:
        """Make ready; takes no time unless it hangs."""
        if self.began:
            raise ContractViolation("begin was called twice")
        async with self._call("begin"):
            if self.hangs_in == "begin":
                await self._step("begin", 0)

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Accept *buffers* one by one.

        If cancelled, the buffer that is being written is accepted first.

        Raises:
          OSError: as told.
        """
        self._check_ready("write")
        async with self._call("write", record=False):
            for buffer in buffers:
                data = bytes(buffer)
                if not data:
                    raise ContractViolation("an empty buffer")
                self.calls.append(Call(trio.current_time(), "write", len(data)))
                await self._step("write", len(data), fails=self._is_bad(len(data)))
                self.loaded += data
                await trio.lowlevel.checkpoint()

    async def load_config(self, blob: bytes) -> None:
        """Accept the config."""
        self._check_ready("load_config")
        async with self._call("load_config"):
            await self._step("load_config", 0)
            self.config = blob

    async def finish(self) -> None:
        """Accept the state as a whole."""
        self._check_ready("finish")
        async with self._call("finish"):
            await self._step("finish", 0)
            self.finished = True

    async def abort(self) -> None:
        """Drop all, and end the call that is under way."""
        if self._aborted.is_set():
            raise ContractViolation("abort was called twice")
        if not self.began:
            raise ContractViolation("abort before begin")
        self.calls.append(Call(trio.current_time(), "abort"))
        self.aborted_at = trio.current_time()
        self._aborted.set()
        if "abort" in self.fails:
            raise _os_error(self.fails["abort"])
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _check_ready(self, name: str) -> None:
        if not self.began:
            raise ContractViolation(f"{name} before begin")
        if self.finished:
            raise ContractViolation(f"{name} after finish")
        if name == "write" and self.config is not None:
            raise ContractViolation("write after load_config")

    @asynccontextmanager
    async def _call(self, name: str, *, record: bool = True) -> AsyncGenerator[None]:
        if self._running is not None:
            raise ContractViolation(f"{name} while {self._running} is under way")
        if self._aborted.is_set():
            raise ContractViolation(f"{name} after abort")
        if record:
            self.calls.append(Call(trio.current_time(), name))
        self._running = name
        try:
            yield
        finally:
            self._running = None
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _step(self, name: str, size: int, *, fails: bool = True) -> None:
        cost = self.seconds_per_call + self.seconds_per_mib * size / MIB
        with trio.CancelScope(shield=True):
            await trio.sleep(cost)
            if self.hangs_in == name:
                await self._aborted.wait()
                await trio.sleep(self.seconds_after_abort)
                raise _os_error(errno.ECANCELED)
        if fails and name in self.fails:
            raise _os_error(self.fails[name])

    def _is_bad(self, size: int) -> bool:
        if self.fails_at_byte is None:
            return True
        begin = len(self.loaded)
        return begin <= self.fails_at_byte < begin + size


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
