"""What the tasks of an incoming migration share, and how it begins and ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final, final

import attrs
import trio

from .._deadlines import Deadlines
from .._device._port import StateSink
from .._errors import DeviceError, describe
from .._migration._activity import Activity
from .._migration._calls import DeviceCalls
from .._migration._home import Home
from .._migration._migration import Migration
from .._migration._position import Position
from .._migration._progress import DeviceProgress
from .._result import ChannelResult, SessionState
from .._types import BeforeShut
from .._wire._main_stream import PAGE_BITS
from ._dropped import Dropped
from ._loader import IncomingDevice
from ._memory import Memory
from ._reorder import ReorderQueue
from ._return_path import ReturnPath
from ._router import DeviceKey, Router

LINGER: Final = 1.0
"""Seconds that the source has to close its connections before we do.

To close a socket that holds unread bytes resets the connection, and a source
without a return path could take that for a failure.
"""

MakeSink = Callable[[str, int], StateSink | None]


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
class Session(Migration):
    """One incoming migration."""

    options: Options

    activity: Activity = attrs.field(init=False)
    router: Router = attrs.field(init=False)
    _configuration: trio.Event = attrs.field(factory=trio.Event, init=False)
    _page_size: int = attrs.field(default=0, init=False)
    _home: Home = attrs.field(factory=Home, init=False)
    dropped: Dropped = attrs.field(factory=Dropped, init=False)
    _memory: Memory = attrs.field(init=False)
    was_told: bool = attrs.field(default=False, init=False)
    """Whether the source hears of success, or was told already."""

    def __attrs_post_init__(self) -> None:
        self.activity = Activity(self.options.deadlines)
        self.router = Router(self._make_device, self.keep, self.activity)
        self._memory = Memory(self.options.max_session_bytes)
        for key, sink in self.options.named.items():
            self.router.devices[key] = self._device(key, sink)

    def all_devices(self) -> Iterable[IncomingDevice]:
        """Return those that the caller named, and those the source announced."""
        return self.router.devices.values()

    def channel_results(self) -> Iterable[ChannelResult]:
        """Return what came over each channel, by id."""
        return (each.result() for _, each in sorted(self.router.channels.items()))

    def dropped_connections(self) -> tuple[str, ...]:
        """Return which connections were not taken, and why."""
        return self.dropped.lines

    def watch(self) -> None:
        """Start the tasks that watch the deadlines."""
        activity, waiting_for = self.activity, self.router.waiting_for
        self.spawn(activity.watch_first_connection)
        self.spawn(activity.watch_switchover, waiting_for)
        main_came, connected = activity.main_came, activity.connected
        self.spawn(activity.watch_silence, connected, main_came, waiting_for)
        began, loaded = activity.switchover_began, activity.loaded
        self.spawn(activity.watch_silence, began, loaded, waiting_for)

    def configured(self, page_size: int) -> None:
        """The main stream has begun."""
        self._page_size = page_size
        self._configuration.set()
        self.enter(SessionState.ACTIVE)

    async def wait_for_page_size(self) -> int:
        """Wait until the main stream has said what a channel has to know."""
        await self._configuration.wait()
        return self._page_size

    def open_return_path(self, stream: trio.abc.Stream) -> ReturnPath:
        """The source listens on *stream*: start the task that speaks."""
        return_path = ReturnPath(stream, self.stop, self.complete, self.trace)
        self.spawn(return_path.run)
        return return_path

    def begin_switchover(self) -> None:
        """The source's guest stands still, from the first sign of it."""
        if self.activity.switchover_at is None:
            self.activity.begin_switchover()
            # Untraced: this state of QEMU's is one of the source.
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

    async def conclude(self, return_path: ReturnPath | None) -> None:
        """Tell the caller and then the source that all devices are loaded.

        Returns when the source was told, if it wants to be.
        """
        self.activity.complete()
        if (before_shut := self.options.before_shut) is not None:
            await self.call_back("before_shut", lambda: before_shut(self.result()))
        if return_path is None:
            # Nobody waits for our word, so there is time to see the channels
            # out: one that ends inside a packet is a failure even now.
            with trio.move_on_after(LINGER):
                await self.router.open_channels.wait_value(0)
            await trio.lowlevel.checkpoint_if_cancelled()
            self.complete()
        else:
            self.was_told = True
            return_path.succeed()
            await self.ended.wait()

    def clean_up(self) -> None:
        """Give back all that was taken up, and say so."""
        # Whoever keeps the block's `Incoming` must not keep its memory.
        self._memory.drop()
        if self.router.channels:
            self.trace("multifd_recv_terminate_threads", 0)
        self.trace("loadvm_state_cleanup")
        for device in self.all_devices():
            if device.calls.began:
                self.trace("vfio_load_cleanup", device.name)

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
        position = Position(hashlib.sha256() if self.options.digests else None)
        calls = DeviceCalls(
            *key,
            device=sink,
            stop=self.stop,
            grace=self.options.device_grace,
            position=position,
            activity=self.activity,
        )
        return IncomingDevice(
            calls=calls,
            queue=ReorderQueue(self.options.max_queued_bytes, self._memory),
            sink=sink,
            position=position,
            progress=DeviceProgress(*key, position),
            home=self._home,
            spawn=self.spawn,
            after_release=self.router.wake_over_budget,
            others_wait=self.router.is_over_budget,
            check_progress=self.router.check_progress,
            trace=self.trace,
        )
