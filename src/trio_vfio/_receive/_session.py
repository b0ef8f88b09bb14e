"""What the tasks of an incoming migration share, and how it begins and ends."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, ParamSpec, final

import attrs
import trio

from .._deadlines import Deadlines
from .._device._port import StateSink
from .._errors import DeviceError, MigrationFailed, TrioVfioError, describe
from .._result import DeviceState, MigrationResult, SessionState
from .._values import AsyncValue
from .._wire._main_stream import PAGE_BITS
from ._activity import Activity
from ._calls import DeviceCalls
from ._loader import IncomingDevice
from ._progress import DeviceProgress
from ._reorder import Budget, ReorderQueue
from ._return_path import ReturnPath
from ._router import DeviceKey, Router
from ._run import Written
from ._stop import Stop

LINGER: Final = 1.0
"""Seconds that the source has to close its connections before we do.

To close a socket that holds unread bytes resets the connection, and a source
without a return path could take that for a failure.
"""

P = ParamSpec("P")
MakeSink = Callable[[str, int], StateSink | None]
BeforeShut = Callable[[MigrationResult], Awaitable[None]]


def _at_least(least: float) -> Any:
    return attrs.validators.optional(attrs.validators.ge(least))


_PAGE_SIZES: Final = tuple(1 << bits for bits in PAGE_BITS)


@attrs.frozen(kw_only=True)
class Options:
    """What the caller decides; see `open_incoming`."""

    named: dict[DeviceKey, StateSink]
    make: MakeSink | None
    """For devices that were not named; None: there must be none."""
    deadlines: Deadlines
    device_grace: float | None = attrs.field(validator=_at_least(0))
    digests: bool
    page_size: int | None = attrs.field(
        validator=attrs.validators.optional(attrs.validators.in_(_PAGE_SIZES))
    )
    max_queued_bytes: int = attrs.field(validator=_at_least(0))
    max_session_bytes: int = attrs.field(validator=_at_least(0))
    legacy_switchover_ack: bool | None
    before_shut: BeforeShut | None

    @property
    def all_named(self) -> bool:
        """Whether the caller knows all devices beforehand."""
        return self.make is None


@final
@attrs.define(eq=False)
class Session:
    """One incoming migration.

    Its tasks record their faults in `stop`, so that the first one cancels all
    others and every one that was found is reported.
    """

    options: Options

    stop: Stop = attrs.field(factory=Stop, init=False)
    activity: Activity = attrs.field(init=False)
    router: Router = attrs.field(init=False)
    state: AsyncValue[SessionState] = attrs.field(init=False)
    _configuration: trio.Event = attrs.field(factory=trio.Event, init=False)
    _page_size: int = attrs.field(default=0, init=False)
    error: Exception | None = attrs.field(default=None, init=False)
    """What the caller's `before_shut` raised."""
    _crashed: bool = attrs.field(default=False, init=False)
    ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    _budget: Budget = attrs.field(init=False)
    _nursery: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.activity = Activity(self.options.deadlines)
        self.router = Router(self._make_device, self._keep, self.activity)
        self.state = AsyncValue(SessionState.SETUP)
        self._budget = Budget(self.options.max_session_bytes)
        for key, sink in self.options.named.items():
            self.router.devices[key] = self._device(key, sink)

    async def run(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run *serve* and all tasks that are spawned, until *serve* has ended.

        A fault ends them and is kept in `stop`; it is not raised. On return no
        device call is under way, and each device is completed or aborted.
        """
        try:
            with self.stop.tasks:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self.spawn(self.activity.watch_first_connection)
                    waiting_for = self.router.waiting_for
                    self.spawn(self.activity.watch_switchover, waiting_for)
                    self.spawn(self.activity.watch_silence, waiting_for)
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
        """Start a task whose faults are the session's."""
        guarded = partial(self._guard, task, *args, **kwargs)
        self._nursery.start_soon(guarded, name=task)

    def leave(self) -> None:
        """The caller's block has ended: nobody waits for an unfinished migration."""
        if not self.stop.completed:
            self.stop.tasks.cancel(reason="the block was left before completion")

    def configured(self, page_size: int) -> None:
        """The main stream has begun."""
        self._page_size = page_size
        self._configuration.set()
        self.state.value = SessionState.ACTIVE

    async def wait_for_page_size(self) -> int:
        """Wait until the main stream has said what a channel has to know."""
        await self._configuration.wait()
        return self._page_size

    def open_return_path(self, stream: trio.abc.Stream) -> ReturnPath:
        """The source listens on *stream*: start the task that speaks."""
        return_path = ReturnPath(stream, self.stop, self._complete)
        self.spawn(return_path.run)
        return return_path

    def begin_switchover(self) -> None:
        """The source's guest stands still, from the first sign of it."""
        if self.activity.switchover_at is None:
            self.activity.begin_switchover()
            self.state.value = SessionState.DEVICE

    async def start_loading(self) -> None:
        """Handle SWITCHOVER_START: all pre-copy data has been written.

        Raises:
          PeerProtocolError: if a device that the caller named was never announced.
        """
        self.begin_switchover()
        for device in await self.router.start():
            self.load(device)

    def load(self, device: IncomingDevice) -> None:
        """Start the loader of *device*."""
        self.spawn(device.load)

    async def succeed(self, return_path: ReturnPath | None) -> None:
        """Tell the caller and then the source that all devices are loaded.

        Returns when the source was told, if it wants to be.
        """
        self.activity.complete()
        if self.options.before_shut is not None:
            try:
                await self.options.before_shut(self.result())
            except Exception as error:  # noqa: BLE001 (the caller's code)
                if not self.stop.faults:
                    # Else it is what the hook made of the cancel.
                    self.error = error
                self.stop.cancel(f"before_shut failed: {error!r}")
                await trio.sleep_forever()
        if return_path is None:
            # Nobody waits for our word, so there is time to see the channels
            # out: one that ends inside a packet is a failure even now.
            with trio.move_on_after(LINGER):
                await self.router.open_channels.wait_value(0)
            await trio.lowlevel.checkpoint_if_cancelled()
            self._complete()
        else:
            return_path.succeed()
            await self.ended.wait()

    def result(self) -> MigrationResult:
        """Return how far the migration has come."""
        faults = self.stop.faults
        return MigrationResult(
            status=self.state.value.value,
            errors=tuple(map(str, faults)) + self._other_errors(),
            devices=tuple(
                device.result([str(fault) for fault in faults if _is_of(fault, device)])
                for device in self.router.devices.values()
            ),
            channels=tuple(
                each.result() for _, each in sorted(self.router.channels.items())
            ),
            switchover_seconds=self.activity.switchover_seconds,
            seconds=self.activity.seconds,
        )

    def failure(self) -> MigrationFailed:
        """Return all faults as one exception."""
        other = [TrioVfioError(text) for text in self._other_errors()]
        cancelled = [TrioVfioError("the migration was cancelled")]
        return MigrationFailed(self.stop.faults or other or cancelled, self.result())

    async def _guard(
        self, task: Callable[P, Awaitable[None]], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        try:
            await task(*args, **kwargs)
        except TrioVfioError as fault:
            self.stop.fail(fault)
        except Exception:
            # A mistake, ours or a device's: it leaves as what it is.
            self._crashed = True
            raise

    def _keep(self, device: IncomingDevice) -> None:
        self._nursery.start_soon(device.calls.keep)

    def _complete(self) -> None:
        """The migration has succeeded, and the source knows it."""
        self.stop.succeed()
        for device in self.router.devices.values():
            device.calls.release()
        self.state.value = SessionState.COMPLETED
        self.ended.set()

    def _settle(self) -> None:
        """All tasks have ended: fix what became of the migration."""
        if self.stop.completed:
            return
        if self.activity.completed_at is None:
            self.activity.complete()
        for device in self.router.devices.values():
            device.progress.state.value = DeviceState.FAILED
        failed = bool(self.stop.faults) or self.error is not None or self._crashed
        self.state.value = SessionState.FAILED if failed else SessionState.CANCELLED
        self.ended.set()

    def _other_errors(self) -> tuple[str, ...]:
        if self.error is None:
            return ()
        return (" ".join(f"{type(self.error).__name__}: {self.error}".split()),)

    def _make_device(self, idstr: str, instance_id: int) -> IncomingDevice | None:
        if self.options.make is None:
            return None
        key = (idstr, instance_id)
        try:
            sink = self.options.make(*key)
        except Exception as error:
            raise DeviceError(*key, "make", describe(error)) from error
        return None if sink is None else self._device(key, sink)

    def _device(self, key: DeviceKey, sink: StateSink) -> IncomingDevice:
        written = Written(hashlib.sha256() if self.options.digests else None)
        calls = DeviceCalls(
            *key,
            sink=sink,
            stop=self.stop,
            grace=self.options.device_grace,
            written=written,
            activity=self.activity,
        )
        return IncomingDevice(
            calls=calls,
            queue=ReorderQueue(self.options.max_queued_bytes, self._budget),
            written=written,
            progress=DeviceProgress(*key, written),
            after_release=self.router.wake_over_budget,
            check_progress=self.router.check_progress,
        )


def _is_of(fault: TrioVfioError, device: IncomingDevice) -> bool:
    return isinstance(fault, DeviceError) and (fault.idstr, fault.instance_id) == (
        device.progress.idstr,
        device.progress.instance_id,
    )
