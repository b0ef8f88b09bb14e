"""The return path: answers to the source, and exactly one last word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import attrs
import trio

from .._errors import ConnectionLost
from .._link._stream import was_reset
from .._link._tls import why_broken
from .._migration._stop import Stop, log
from .._trace import Trace
from .._wire._return_path import ReturnPathFrame, shut

SHUT_GRACE: Final = 0.5
"""Seconds to get the last word out, whatever else has to end."""

_MOMENT: Final = 0.1
"""Seconds for the task that reads to notice that the connection broke."""


@final
@attrs.define(eq=False)
class ReturnPath:
    """Owns the sending half of the main connection, once the source opens it."""

    stream: trio.abc.Stream
    stop: Stop
    on_success: Callable[[], None]
    """Called when the source has been told that all is loaded."""
    trace: Trace

    source_closed: bool = attrs.field(default=False, init=False)
    """Whether the source has closed its half of the connection, or all of it."""
    ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when the last word is said, or cannot be."""
    _answers: trio.MemorySendChannel[ReturnPathFrame] = attrs.field(init=False)
    _frames: trio.MemoryReceiveChannel[ReturnPathFrame] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # A source that asks without listening has to wait, not we to remember.
        self._answers, self._frames = trio.open_memory_channel[ReturnPathFrame](16)

    async def answer(self, frame: ReturnPathFrame) -> None:
        """Queue an answer."""
        await self._answers.send(frame)

    def succeed(self) -> None:
        """Let `run` tell the source, behind all answers, that all is loaded."""
        self._answers.close()

    async def run(self) -> None:
        """Send answers, and at last SHUT(0).

        If cancelled, SHUT(1) goes out at once: the source's guest stands still
        until it hears. Once SHUT(0) is on its way a cancel comes too late.

        Raises:
          ConnectionLost: if the source cannot be told, and so resumes its guest.
        """
        try:
            await self._run()
        finally:
            self.ended.set()

    async def _run(self) -> None:
        try:
            async for frame in self._frames:
                await self._answer(frame)
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            try:
                # Shielded, with a deadline of its own.
                await self._send_shut(1)  # noqa: ASYNC102
            except ConnectionLost as error:
                log.info("the source was not told that the migration failed: %s", error)
            raise
        told = self.stop.last_word = trio.Event()
        try:
            await self._send_shut(0)
            if self.source_closed:
                await self._check_heard()
            self.on_success()
        finally:
            told.set()

    async def _answer(self, frame: ReturnPathFrame) -> None:
        try:
            await self._send(frame)
        except trio.BrokenResourceError as error:
            fault = _lost(error)
            # Whoever reads from the connection knows better what became of it.
            await trio.sleep(_MOMENT)  # noqa: ASYNC120
            raise fault from error

    async def _check_heard(self) -> None:
        """Find out whether a source that has closed its half still listens.

        Where it does not, its machine answers the last word with a reset.
        """
        with trio.CancelScope(shield=True):
            await trio.sleep(SHUT_GRACE)
        if was_reset(self.stream):
            reason = "the source had closed the connection before it was told"
            raise ConnectionLost(reason, channel="main")

    async def _send(self, frame: ReturnPathFrame) -> None:
        self.trace("migrate_send_rp_message", frame.type, len(frame.payload))
        await self.stream.send_all(frame.encode())

    async def _send_shut(self, value: int) -> None:
        with trio.move_on_after(SHUT_GRACE, shield=True):
            try:
                await self._send(shut(value))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise _lost(error) from error
            return
        raise ConnectionLost("the source does not take the last word", channel="main")


def _lost(
    error: trio.BrokenResourceError | trio.ClosedResourceError,
) -> ConnectionLost:
    reason = f"the return path broke: {why_broken(error, 'the source')}"
    return ConnectionLost(reason, channel="main")
