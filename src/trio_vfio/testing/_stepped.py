"""What `IncomingMachine` knows of its source, and the receiver that it drives."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, final

import attrs
import trio

from .. import Incoming, MigrationFailed, open_incoming
from ._links import MemoryListener
from ._source import config_packet, data_packet
from ._watched import WatchedSink


@final
@attrs.define(eq=False)
class SentDevice:
    """What the source has of a device, and what became of it."""

    idstr: str
    sink: WatchedSink
    announced: bool = False
    precopy: bytearray = attrs.field(factory=bytearray)
    handed_out: list[bytes] = attrs.field(factory=list[bytes])
    config: bytes | None = None
    arrived: set[int] = attrs.field(factory=set[int])
    """Indexes of the packets that were sent to their last byte."""
    _indexes: dict[bytes, int] = attrs.field(factory=dict[bytes, int], init=False)
    """By packet."""

    def next_packet(self, size: int) -> bytes:
        """Return the device's next packet; no two of some size are alike."""
        idx = len(self.handed_out)
        data = f"{idx} {self.idstr}".encode().ljust(size, b".")[:size]
        self.handed_out.append(data)
        packet = data_packet(self.idstr, idx, data)
        self._indexes[packet] = idx
        return packet

    def last_packet(self) -> bytes:
        """Return the packet with the config: the device's state ends here."""
        idx = len(self.handed_out)
        self.config = f"config of {self.idstr}".encode()
        packet = config_packet(self.idstr, idx, self.config)
        self._indexes[packet] = idx
        return packet

    def packet_was_sent(self, packet: bytes) -> None:
        """Take note that the last byte of *packet* is on its way."""
        self.arrived.add(self._indexes[packet])

    @property
    def all_arrived(self) -> bool:
        """Whether all packets were sent, the config among them."""
        return self.config is not None and len(self.arrived) == len(self._indexes)

    @property
    def most(self) -> bytes:
        """All data that the sink can have taken so far."""
        data = bytes(self.precopy)
        for idx, buffer in enumerate(self.handed_out):
            if idx not in self.arrived:
                break
            data += buffer
        return data

    @property
    def state(self) -> bytes:
        """All data there is so far."""
        return bytes(self.precopy) + b"".join(self.handed_out)


@final
@attrs.define(eq=False)
class SentChannel:
    """A channel, and what is still to go over it."""

    number: int
    stream: trio.abc.Stream
    left: deque[tuple[bytes, SentDevice]] = attrs.field(
        factory=deque[tuple[bytes, SentDevice]]
    )
    part: int = 0
    """How much of the first packet was sent."""
    open: bool = True

    def take(self, size: int) -> bytes:
        """Return the next *size* bytes of the first packet, or all there is of it."""
        packet, device = self.left[0]
        piece = packet[self.part : self.part + size]
        self.part += len(piece)
        if self.part == len(packet):
            self.left.popleft()
            self.part = 0
            device.packet_was_sent(packet)
        return piece


@final
@attrs.define(eq=False)
class SteppedReceiver:
    """A migration that is received, in a task of its own, and how it ends."""

    there: Sequence[MemoryListener]
    sinks: Mapping[str, WatchedSink]
    options: Mapping[str, Any]
    incoming: Incoming = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    ended: str | None = attrs.field(default=None, init=False)
    """completed, failed, cancelled, or what else was raised; None: it goes on."""

    async def run(self) -> None:
        """Receive it. Raises nothing."""
        ended = "cancelled"
        with self.scope:
            try:
                async with open_incoming(
                    self.there, dict(self.sinks), **self.options
                ) as self.incoming:
                    await self.incoming.wait_complete()
                ended = "completed"
            except MigrationFailed:
                ended = "failed"
            except Exception as error:  # noqa: BLE001 - an invariant complains
                ended = repr(error)
        self.ended = ended

    async def cancel(self) -> None:
        """Cancel it."""
        self.scope.cancel(reason="a rule says so")
        await trio.lowlevel.checkpoint()
