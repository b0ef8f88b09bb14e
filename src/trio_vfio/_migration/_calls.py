"""The calls of one device: one at a time, each seen to end, at last an abort.

Two tasks share a `DeviceCalls`: the one that makes the calls, and `keep`, which
waits beside it and ends what a cancelled call leaves behind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, ParamSpec, Protocol, TypeVar, cast, final

import attrs
import trio

from .._errors import DeviceError, PeerProtocolError, describe, device_name
from ._activity import Activity
from ._position import Position
from ._stop import Stop, log, split_cancelled

P = ParamSpec("P")
T = TypeVar("T")

_LEAST_PAUSE: Final = 1.0
"""Seconds between two lines that say that a call has still not ended."""


class Abortable(Protocol):
    """What a sink and a source have in common."""

    async def abort(self) -> None:
        """End any call that is under way, and undo what was done."""
        ...


@final
@attrs.define(eq=False)
class DeviceCalls:
    """Calls a device, names what fails, and aborts it if the session fails."""

    idstr: str
    instance_id: int
    device: Abortable
    stop: Stop
    grace: float | None
    """Seconds that a call may take after a cancel before the device is aborted."""
    position: Position
    activity: Activity

    running: str | None = attrs.field(default=None, init=False)
    """The call that is under way."""
    began: bool = attrs.field(default=False, init=False)
    aborted: bool = attrs.field(default=False, init=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Of the last call that was started."""
    _released: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def name(self) -> str:
        """What messages call the device."""
        return device_name(self.idstr, self.instance_id)

    def error(
        self,
        operation: str,
        reason: str,
        *,
        idx: int | None = None,
        offset: int | None = None,
        errno: int | None = None,
    ) -> DeviceError:
        """Make the error for a call that failed."""
        return DeviceError(
            self.idstr,
            self.instance_id,
            operation,
            reason,
            idx=idx,
            offset=offset,
            errno=errno,
        )

    async def call(
        self,
        operation: str,
        method: Callable[P, Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Make one call of the device, and return what it returns.

        If cancelled before, the call is not made; if cancelled meanwhile, it is
        the device that decides when to leave.

        Raises:
          DeviceError: if it fails, unless the device was aborted: then that is
            why, and the cancel goes on.
          PeerProtocolError: if that is what it raises.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.running = operation
        self._ended = trio.Event()
        self.activity.calls += 1
        try:
            return await method(*args, **kwargs)
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 (devices are anybody's code)
            await self._failed(operation, error)
        finally:
            self.running = None
            self._ended.set()
            self.activity.calls -= 1
            self.activity.touch()

    async def begin(self, method: Callable[[], Awaitable[T]]) -> T:
        """Make the device ready; from now on it will be aborted or released."""
        result = await self.call("begin", method)
        self.began = True
        return result

    def release(self) -> None:
        """Never abort the device: the migration has succeeded."""
        self._released.set()

    async def keep(self) -> None:
        """Wait until the device is released, or abort it if cancelled before.

        After a cancel this returns only when no call of the device is under way
        any more, however long that takes: its thread cannot be left behind.
        """
        try:
            await self._released.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                for event in (self.stop.last_word, self.stop.abort_after):
                    if event is not None:
                        await event.wait()
                if not self._released.is_set():
                    self.position.stopping = True
                    await self._end()
            raise

    async def _failed(self, operation: str, error: BaseException) -> NoReturn:
        rest = _not_cancelled(error)
        if not isinstance(rest, Exception):
            raise error
        if self.aborted:
            log.info("%s: %s ended by abort: %s", self.name, operation, describe(rest))
            await trio.sleep_forever()
        if isinstance(rest, PeerProtocolError):
            # A device may look at what it is given, and the bytes are the peer's.
            raise PeerProtocolError(f"{self.name}: {rest}") from rest
        moving = operation in ("write", "read")
        raise self.error(
            operation,
            describe(rest),
            idx=self.position.idx if moving else None,
            offset=self.position.bytes if moving else None,
            errno=getattr(rest, "errno", None),
        ) from rest

    async def _end(self) -> None:
        if self.running is not None and self.grace is not None:
            with trio.move_on_after(self.grace):
                await self._ended.wait()
        elif self.running is not None:
            await self._ended.wait()
        if not self.began and self.running is None:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_waiting)
            await self._abort()
            if self.running is not None:
                await self._ended.wait()
            nursery.cancel_scope.cancel(reason="the device is at rest")

    async def _abort(self) -> None:
        self.aborted = True
        try:
            await self.device.abort()
        except Exception as error:  # noqa: BLE001 (devices are anybody's code)
            number = getattr(error, "errno", None)
            fault = self.error("abort", describe(error), errno=number)
            log.warning("%s", fault)
            self.stop.fail(fault)

    async def _report_waiting(self) -> None:
        if self.grace is None:
            return
        while True:
            await trio.sleep(max(self.grace, _LEAST_PAUSE))
            waiting_for = self.running or "abort"
            log.warning("%s: still waiting for %s to end", self.name, waiting_for)


def _not_cancelled(error: BaseException) -> BaseException | None:
    """Return what of *error* is no cancel, without groups of one; None if nothing."""
    _, rest = split_cancelled(error)
    while isinstance(rest, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", rest)
        if len(group.exceptions) != 1:
            return group
        rest = group.exceptions[0]
    return rest
