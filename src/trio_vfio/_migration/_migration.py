"""What a migration is in either direction: tasks that fail together, and an end."""

from __future__ import annotations

import abc
import math
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import ParamSpec, Protocol

import attrs
import trio

from .._errors import DeviceError, MigrationFailed, TrioVfioError
from .._result import (
    ChannelResult,
    DeviceState,
    MigrationResult,
    SessionState,
)
from .._trace import Trace
from .._values import AsyncValue
from ._activity import Activity
from ._calls import DeviceCalls
from ._progress import DeviceProgress
from ._stop import Stop, split_cancelled

P = ParamSpec("P")


class Device(Protocol):
    """One device of a migration."""

    @property
    def calls(self) -> DeviceCalls:
        """What calls it."""
        ...

    @property
    def progress(self) -> DeviceProgress:
        """How far it has come."""
        ...


@attrs.define(eq=False)
class Migration(abc.ABC):
    """The tasks of one migration, and how they begin and end.

    They record their faults in `stop`, so that the first one cancels all
    others and every one that was found is reported.
    """

    activity: Activity
    trace: Trace = attrs.field(factory=Trace, kw_only=True)
    stop: Stop = attrs.field(factory=Stop, init=False)
    state: AsyncValue[SessionState] = attrs.field(
        factory=lambda: AsyncValue(SessionState.SETUP), init=False
    )
    error: Exception | None = attrs.field(default=None, init=False)
    """What a function of the caller's raised."""
    ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    _crashed: bool = attrs.field(default=False, init=False)
    _nursery: trio.Nursery = attrs.field(init=False)

    @abc.abstractmethod
    def all_devices(self) -> Iterable[Device]:
        """Return the devices, as many as are known."""

    @abc.abstractmethod
    def channel_results(self) -> Iterable[ChannelResult]:
        """Return what came or went over each channel, by id."""

    def dropped_connections(self) -> tuple[str, ...]:
        """Return which connections were not taken, and why."""
        return ()

    async def run(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run *serve* and all tasks that are spawned, until *serve* has ended.

        A fault ends them and is kept in `stop`; it is not raised. On return no
        device call is under way, and each device is completed or aborted.
        """
        self.enter(SessionState.SETUP)
        try:
            with self.stop.tasks:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    await serve()
                    nursery.cancel_scope.cancel(reason="the migration is complete")
        finally:
            self._settle()

    def spawn(
        self,
        task: Callable[P, Awaitable[None]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Start a task whose faults are the migration's."""
        guarded = partial(self.guard, task, *args, **kwargs)
        self._nursery.start_soon(guarded, name=task)

    def enter(self, state: SessionState) -> None:
        """Come to *state*."""
        self.state.value = state
        self.trace("migrate_set_state", state.value)

    def fail(self, fault: TrioVfioError) -> None:
        """End the migration because of *fault*, unless it has succeeded."""
        if not self.stop.completed:
            self.trace("migrate_error", fault)
        self.stop.fail(fault)

    def keep(self, device: Device) -> None:
        """See to it that *device*, once it begins, is released or aborted."""
        self._nursery.start_soon(device.calls.keep)

    def is_failing(self) -> bool:
        """Whether the task that asks is being cancelled before success."""
        cancelled = trio.current_effective_deadline() == -math.inf
        return cancelled and not self.stop.completed

    def leave(self) -> None:
        """The caller's block has ended: nobody waits for an unfinished migration."""
        if not self.stop.completed:
            self.stop.tasks.cancel(reason="the block was left before completion")

    def succeed(self) -> None:
        """Both sides know that the destination has all devices: nothing can fail."""
        self.stop.succeed()
        for device in self.all_devices():
            device.calls.release()

    def complete(self) -> None:
        """The migration has succeeded, and nothing is left to do."""
        self.succeed()
        self.enter(SessionState.COMPLETED)
        self.ended.set()

    async def call_back(self, name: str, call: Callable[[], Awaitable[None]]) -> None:
        """Await a function of the caller's; if it raises, the migration fails.

        Then, and if cancelled, this does not return.
        """
        try:
            await call()
        except BaseException as error:  # noqa: ASYNC103 (what is a cancel goes on)
            _, rest = split_cancelled(error)
            if not isinstance(rest, Exception):
                raise
            if not self.stop.faults:
                # Else it is what the function made of the cancel.
                self.error = rest
            self.stop.cancel(f"{name} failed: {rest!r}")
            # That cancel ends it.
            await trio.sleep_forever()  # noqa: ASYNC102

    def result(self) -> MigrationResult:
        """Return how far the migration has come."""
        faults = self.stop.faults
        return MigrationResult(
            status=self.state.value,
            errors=tuple(map(str, faults)) + self._other_errors(),
            devices=tuple(
                device.progress.result(_texts_of(device, faults))
                for device in self.all_devices()
            ),
            channels=tuple(self.channel_results()),
            switchover_seconds=self.activity.switchover_seconds,
            seconds=self.activity.seconds,
            dropped=self.dropped_connections(),
        )

    def failure(self) -> MigrationFailed:
        """Return all faults as one exception."""
        other = [TrioVfioError(text) for text in self._other_errors()]
        cancelled = [TrioVfioError("the migration was cancelled")]
        return MigrationFailed(self.stop.faults or other or cancelled, self.result())

    async def wait_complete(self) -> MigrationResult:
        """Wait until the migration has ended, and return its result.

        Raises:
          MigrationFailed: if it has failed.
        """
        await self.ended.wait()
        if not self.stop.completed:
            raise self.failure()
        return self.result()

    async def guard(
        self, task: Callable[P, Awaitable[None]], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Await *task*; a fault of it becomes the migration's."""
        try:
            await task(*args, **kwargs)
        except TrioVfioError as fault:
            self.fail(fault)
        except Exception:
            # A mistake, ours or a device's: it leaves as what it is.
            self._crashed = True
            self.stop.cancel("a mistake")
            raise

    def _settle(self) -> None:
        """All tasks have ended: fix what became of the migration."""
        if self.stop.completed:
            return
        if self.activity.completed_at is None:
            self.activity.complete()
        for device in self.all_devices():
            device.progress.state.value = DeviceState.FAILED
        failed = bool(self.stop.faults) or self.error is not None or self._crashed
        self.enter(SessionState.FAILED if failed else SessionState.CANCELLED)
        self.ended.set()

    def _other_errors(self) -> tuple[str, ...]:
        if self.error is None:
            return ()
        return (" ".join(f"{type(self.error).__name__}: {self.error}".split()),)


def _texts_of(device: Device, faults: Iterable[TrioVfioError]) -> list[str]:
    """Return those of *faults* that are the device's."""
    key = (device.progress.idstr, device.progress.instance_id)
    return [
        str(fault)
        for fault in faults
        if isinstance(fault, DeviceError) and (fault.idstr, fault.instance_id) == key
    ]
