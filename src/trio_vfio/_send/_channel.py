"""One task per multifd channel: packets to a stream, one whole one after another.

Over a plain socket it is a thread that sends, for as long as the task runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import final

import attrs
import trio

from .._errors import ConnectionLost, PeerProtocolError
from .._link._stream import hear, send_some
from .._link._thread import Interrupted, ThreadSender
from .._link._tls import why_broken
from .._migration._activity import Activity
from .._result import ChannelResult
from .._trace import Trace
from .._wire._multifd import INITIAL_SIZE
from ._answers import Answers
from ._line import Line, Packet


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@final
@attrs.define(eq=False)
class OutgoingChannel:
    """A channel that takes a packet whenever it has sent the one before."""

    id: int
    stream: trio.abc.Stream
    answers: Answers
    activity: Activity
    trace: Trace

    sent_bytes: int = attrs.field(default=INITIAL_SIZE, init=False)
    """How many have gone; the first have with the connection."""
    packets: int = attrs.field(default=0, init=False)
    ready: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when it is about to wait for its first packet."""
    sending: bool = attrs.field(default=False, init=False)
    """Whether it is in the middle of a packet."""
    at_rest: trio.Event = attrs.field(factory=_set_event, init=False)
    """Set while no thread sends."""
    _sender: ThreadSender | None = attrs.field(default=None, init=False)
    sent: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when all packets have gone."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"channel {self.id}"

    def result(self) -> ChannelResult:
        """Return what has gone so far."""
        return ChannelResult(self.id, self.sent_bytes, self.packets, self.packets)

    def begin(self) -> None:
        """Say that it is open; the destination knows."""
        self.trace("multifd_new_send_channel_async", self.id)
        self.trace("multifd_send_thread_start", self.id)

    async def send(self, line: Line) -> None:
        """Send what is handed over by *line*, until no more comes.

        If cancelled, part of a packet may have gone.

        Raises:
          ConnectionLost: if the connection breaks.
        """
        self.ready.set()
        sender = ThreadSender.of(self.stream)
        if sender is None:
            await self._send_in_task(line)
        else:
            await self._run_thread(line, sender)
        if line.stopped:
            # Not all has gone, and the cancel is about to come.
            await trio.sleep_forever()
        self.trace("multifd_send_thread_end", self.id, self.packets)
        self.sent.set()

    def interrupt(self) -> None:
        """Let the thread end, if there is one: the migration has. Does not wait."""
        if self._sender is not None:
            self._sender.interrupt()

    async def _run_thread(self, line: Line, sender: ThreadSender) -> None:
        # Not in the thread, which starts when it likes: who is ready first is served
        # first, here as where tasks send.
        asked = line.ask()
        self.at_rest = trio.Event()
        broke: trio.BrokenResourceError | None = None
        try:
            with sender, suppress(Interrupted):
                self._sender = sender
                send = partial(self._send_in_thread, line, sender, asked)
                await trio.to_thread.run_sync(send, limiter=trio.CapacityLimiter(1))
        except trio.BrokenResourceError as error:
            broke = error
        finally:
            self._sender = None
            self.at_rest.set()
        if broke is not None:
            await self._lost(_broke(broke), broke)

    def _send_in_thread(
        self,
        line: Line,
        sender: ThreadSender,
        asked: SimpleQueue[Packet | None],
    ) -> None:
        while (packet := asked.get()) is not None:
            left = self._begin(packet)
            while left:
                before = left
                left = sender.send_some(left)
                self._count(before, left)
            self._end(packet, line)
            asked = line.ask()

    async def _send_in_task(self, line: Line) -> None:
        while (packet := await line.take()) is not None:
            left = self._begin(packet)
            while left:
                before = left
                try:
                    left = await send_some(self.stream, left)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    await self._lost(_broke(error), error)
                    return
                self._count(before, left)
            self._end(packet, line)

    def _begin(self, packet: Packet) -> list[memoryview]:
        self.sending = True
        return [memoryview(packet.header.encode()), packet.data]

    def _count(self, before: Sequence[memoryview], left: Sequence[memoryview]) -> None:
        self.sent_bytes += sum(map(len, before)) - sum(map(len, left))
        self.activity.touch()

    def _end(self, packet: Packet, line: Line) -> None:
        self.sending = False
        self.packets += 1
        line.sent(packet)

    async def watch(self) -> None:
        """Notice if the destination closes the channel before all packets have gone.

        Raises:
          ConnectionLost: if it does.
          PeerProtocolError: if it says something, which no destination does.
        """
        try:
            data = await hear(self.stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            await self._lost(_broke(error), error)
            return
        if data:
            reason = "the destination sends on a channel that is not its own"
            raise PeerProtocolError(reason, channel=self.name)
        await self._lost("the destination closed it before all was sent")

    async def _lost(self, reason: str, cause: Exception | None = None) -> None:
        # What has just been sent is known to be only a step later.
        await trio.lowlevel.checkpoint()
        if self.sent.is_set():
            # Its business is done, and so is the destination's with it.
            return
        # Whatever the system still takes from now on, nobody will read.
        await self.answers.last_words()
        self.trace("multifd_send_error", self.id)
        raise ConnectionLost(reason, channel=self.name) from cause


def _broke(error: trio.BrokenResourceError | trio.ClosedResourceError) -> str:
    return f"broke: {why_broken(error, 'the destination')}"
