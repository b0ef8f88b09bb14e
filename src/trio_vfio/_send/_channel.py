"""One task per multifd channel: packets to a stream, one whole one after another."""

from __future__ import annotations

from typing import final

import attrs
import trio

from .._errors import ConnectionLost, PeerProtocolError
from .._link._stream import send_some
from .._link._tls import why_broken
from .._migration._activity import Activity
from .._result import ChannelResult
from .._trace import Trace
from .._wire._multifd import INITIAL_SIZE
from ._answers import Answers
from ._device import Packet


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

    async def send(self, packets: trio.MemoryReceiveChannel[Packet]) -> None:
        """Send what comes out of *packets*, until no more comes.

        If cancelled, part of a packet may have gone.

        Raises:
          ConnectionLost: if the connection breaks.
        """
        self.ready.set()
        async for packet in packets:
            self.sending = True
            await self._send([memoryview(packet.header.encode()), packet.data])
            self.sending = False
            self.packets += 1
            device = packet.device
            if packet.buffer is not None:
                await device.pool.give_back(device.share, [packet.buffer])
        self.trace("multifd_send_thread_end", self.id, self.packets)
        self.sent.set()

    async def watch(self) -> None:
        """Notice if the destination closes the channel before all packets have gone.

        Raises:
          ConnectionLost: if it does.
          PeerProtocolError: if it says something, which no destination does.
        """
        try:
            data = await self.stream.receive_some(1)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            await self._lost(_broke(error), error)
            return
        if data:
            reason = "the destination sends on a channel that is not its own"
            raise PeerProtocolError(reason, channel=self.name)
        await self._lost("the destination closed it before all was sent")

    async def _send(self, buffers: list[memoryview]) -> None:
        left = buffers
        while left:
            before = sum(map(len, left))
            try:
                left = await send_some(self.stream, left)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                await self._lost(_broke(error), error)
                return
            self.sent_bytes += before - sum(map(len, left))
            self.activity.touch()

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
