"""What the destination says, and what its silence means: the return path.

QEMU: ``source_return_path_thread`` in migration/migration.c.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, final

import attrs
import trio

from .._errors import (
    ConnectionLost,
    DestinationFailed,
    PeerProtocolError,
    TrioVfioError,
)
from .._link._tls import why_broken
from .._migration._activity import Activity
from .._migration._stop import Stop, log
from .._trace import Trace
from .._values import AsyncValue
from .._wire._return_path import ReturnPathDecoder, ReturnPathFrame, ReturnPathType

PING_VALUE: Final = 1

LAST_CHANCE: Final = 0.1
"""Seconds for a last word that is on its way while a connection breaks, or a cancel
comes: without it we do not know whose the devices are, or why it failed."""


@final
@attrs.define(eq=False)
class Answers:
    """Listens on the main connection, from the first byte to the last."""

    stream: trio.abc.Stream
    return_path: bool
    stop: Stop
    activity: Activity
    trace: Trace
    all_sent: trio.Event
    """Set when every byte of the migration was handed to the system."""
    fail: Callable[[TrioVfioError], None]
    """Records a fault, which cancels everything."""
    on_success: Callable[[], Awaitable[None]]
    """Awaited, shielded, when the destination has all devices."""
    on_failure: Callable[[], Awaitable[None]]
    """Awaited, shielded, when it never will: closes all connections."""

    ponged: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when the destination has answered, and so takes device state (W27)."""
    acks: AsyncValue[int] = attrs.field(factory=lambda: AsyncValue(0), init=False)
    """How often it has acknowledged the switchover."""
    may_succeed: bool = attrs.field(default=False, init=False)
    """Whether the end of the main stream has gone, before which nothing can."""
    _succeeded: bool = attrs.field(default=False, init=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when nothing more will be heard."""
    _decoder: ReturnPathDecoder = attrs.field(factory=ReturnPathDecoder, init=False)

    async def listen(self) -> None:
        """Listen until the destination has said its last word.

        If this fails or is cancelled, all connections are closed before any
        device may run again: from then on the destination cannot succeed. But a
        word of success that has come before goes: then the devices are its own.

        A fault is recorded, not raised: `DestinationFailed` if that is what it says,
        `ConnectionLost` if it leaves without a word, `PeerProtocolError` if it says
        what no destination says.
        """
        self.trace("source_return_path_thread_entry")
        try:
            while not self._succeeded:
                self.trace("source_return_path_thread_loop_top")
                await self._hear()
            # Its word may overtake the end of our own sending, if only just.
            await self.all_sent.wait()
        except trio.Cancelled:
            # Each of them has a deadline of its own.
            with trio.CancelScope(shield=True):
                try:
                    await self._hear_last_word()
                finally:
                    # Also after a mistake of the stream's: no device may wait for us.
                    await self._end()  # noqa: ASYNC102 (shielded above)
            raise
        except TrioVfioError as fault:
            # First of all, so that the connections do not seem to break by themselves.
            self.trace("source_return_path_thread_bad_end")
            self.fail(fault)
            with trio.CancelScope(shield=True):
                await self.on_failure()
            return
        except BaseException:
            # A mistake, of ours or of a stream's: no device may wait for us.
            with trio.CancelScope(shield=True):
                await self.on_failure()
            raise
        finally:
            self.trace("source_return_path_thread_end")
            self._ended.set()
        with trio.CancelScope(shield=True):
            await self.on_success()

    async def last_words(self) -> None:
        """Give the destination a moment to say why a connection is broken."""
        with trio.move_on_after(2 * LAST_CHANCE):
            await self._ended.wait()

    async def _end(self) -> None:
        # Nobody takes all devices who was not sent all: then it is not true.
        if self._succeeded and (self.all_sent.is_set() or not self.stop.faults):
            await self.on_success()
        else:
            await self.on_failure()

    async def _hear(self) -> None:
        try:
            data = bytes(await self.stream.receive_some())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            why = why_broken(error, "the destination")
            reason = f"broke before the destination's last word: {why}"
            raise ConnectionLost(reason, channel="main") from error
        self.activity.touch()
        if not data:
            self._take_eof()
        elif not self.return_path:
            reason = "the destination speaks without a return path"
            raise PeerProtocolError(reason, channel="main")
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            for frame in self._decoder.received(data):
                if not self._succeeded:
                    self._answer(frame)
        except PeerProtocolError as error:
            error.channel = "return path"
            raise

    def _take_eof(self) -> None:
        if self.return_path or not self.may_succeed:
            reason = "the destination closed the connection before its last word"
            raise ConnectionLost(reason, channel="main")
        # All that a destination without a return path can say.
        self._succeeded = True

    def _answer(self, frame: ReturnPathFrame) -> None:
        match frame.type:
            case ReturnPathType.PONG:
                self.trace("source_return_path_thread_pong", frame.value)
                if frame.value == PING_VALUE:
                    self.ponged.set()
            case ReturnPathType.SWITCHOVER_ACK:
                self.trace("source_return_path_thread_switchover_acked")
                self.acks.value += 1
            case ReturnPathType.SHUT:
                self.trace("source_return_path_thread_shut", frame.value)
                if frame.value:
                    raise DestinationFailed
                if not self.may_succeed:
                    raise PeerProtocolError("success before all was sent")
                self._succeeded = True
            case _:
                raise PeerProtocolError(f"{frame.type.name}, which is for postcopy")

    async def _hear_last_word(self) -> None:
        """Take a last word that has come, or is about to, when we must end."""
        if not self.may_succeed:
            return
        with trio.move_on_after(LAST_CHANCE):
            try:
                while not self._succeeded:
                    await self._hear()
            except TrioVfioError as error:
                log.info("while the migration was given up: %s", error)
