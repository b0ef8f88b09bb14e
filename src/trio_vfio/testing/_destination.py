"""A destination that does what a test tells it to, however odd."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import final

import attrs
import trio

from .._errors import PeerProtocolError
from .._link._stream import fill, receive_exactly
from .._wire._channel_decoder import ChannelDecoder
from .._wire._main_decoder import MainDecoder
from .._wire._main_events import Command, CommandType, MainEvent, Section
from .._wire._multifd import INITIAL_SIZE, InitialPacket, StateHeader, StatePacket
from .._wire._return_path import ReturnPathFrame, pong, shut


@final
@attrs.define(eq=False)
class ScriptedDestination:
    """The destination's end of all connections of one migration.

    `run` takes whatever comes and keeps it. It answers a PING, and says its last
    word when the main stream and the config of every device is there, unless it
    is told otherwise; everything else a test says with `say`.
    """

    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]
    channels: int = attrs.field(default=2, kw_only=True)
    """How many multifd channels to wait for."""
    answers: bool = attrs.field(default=True, kw_only=True)
    """Whether to answer a PING."""
    last_word: int | None = attrs.field(default=0, kw_only=True)
    """What it says at last: 0 for success; None: nothing."""
    on: Callable[[str], Awaitable[None]] | None = attrs.field(
        default=None, kw_only=True
    )
    """Awaited for each piece of main before anything is done about it, with its
    name: ``PING``, ``SWITCHOVER_START``, ``START 0000:00:04.0/vfio``, ``complete``."""

    main: bytearray = attrs.field(factory=bytearray, init=False)
    """All that came on the main channel."""
    received: dict[int, bytearray] = attrs.field(
        factory=dict[int, bytearray], init=False
    )
    """All that came on each channel, by its id."""
    packets: list[StateHeader] = attrs.field(factory=list[StateHeader], init=False)
    """The header of each device-state packet, in order of their arrival."""
    said: bytearray = attrs.field(factory=bytearray, init=False)
    """All that went back on the main channel."""
    closed_at: float | None = attrs.field(default=None, init=False)
    """When the source's main connection ended or broke, in Trio's time."""
    seen: list[str] = attrs.field(factory=list[str], init=False)
    """The name of each piece of main so far; see `on`."""
    streams: dict[int | str, trio.abc.Stream] = attrs.field(
        factory=dict[int | str, trio.abc.Stream], init=False
    )
    """The connections: ``main``, and from 0 on in the order in which they came."""
    _devices: set[str] = attrs.field(factory=set[str], init=False)
    _configs: set[str] = attrs.field(factory=set[str], init=False)
    _decoder: MainDecoder = attrs.field(factory=MainDecoder, init=False)
    _answered: bool = attrs.field(default=False, init=False)

    async def run(self) -> None:
        """Take connections and all that comes on them, until the source closes them.

        Raises:
          PeerProtocolError: if the source breaks the protocol.
        """
        async with trio.open_nursery() as nursery:
            self.streams["main"] = await self.listeners[0].accept()
            for number in range(self.channels):
                self.streams[number] = await self.listeners[0].accept()
            for name, stream in self.streams.items():
                task = self._run_main if name == "main" else self._run_channel
                nursery.start_soon(task, stream)

    async def say(self, *frames: ReturnPathFrame) -> None:
        """Say something on the return path."""
        for frame in frames:
            self.said += frame.encode()
            await self.streams["main"].send_all(frame.encode())

    async def close(self, which: int | str = "main") -> None:
        """Close one of `streams`."""
        await trio.aclose_forcefully(self.streams[which])

    async def _run_main(self, stream: trio.abc.Stream) -> None:
        try:
            while data := bytes(await stream.receive_some()):
                self.main += data
                self._decoder.received(data)
                while (event := self._decoder.next_event()) is not None:
                    await self._handle(event)
                await self._conclude()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.closed_at = trio.current_time()

    async def _handle(self, event: MainEvent) -> None:
        match event:
            case Command(number=CommandType.PING):
                await self._see("PING")
                if self.answers:
                    await self.say(pong(int.from_bytes(event.payload)))
            case Command():
                await self._see(event.name)
            case Section():
                self._devices.add(event.idstr)
                await self._see(f"{event.type.name} {event.idstr}")
            case _:
                pass

    async def _see(self, name: str) -> None:
        self.seen.append(name)
        if self.on is not None:
            await self.on(name)

    async def _run_channel(self, stream: trio.abc.Stream) -> None:
        first = await receive_exactly(stream, INITIAL_SIZE)
        try:
            id_ = InitialPacket.decode_untrusted(first).channel_id
        except PeerProtocolError:
            # It left before it said anything.
            return
        self.received[id_] = bytearray(first)
        try:
            await self._take_packets(stream, self.received[id_])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _take_packets(self, stream: trio.abc.Stream, kept: bytearray) -> None:
        decoder = ChannelDecoder(4096)
        while True:
            buffers = decoder.buffers()
            if not (got := await fill(stream, buffers)):
                return
            count = got
            for buffer in buffers:
                kept += buffer[:count]
                count -= min(count, len(buffer))
            for event in decoder.received(got):
                if isinstance(event, StateHeader):
                    self.packets.append(event)
                    if (whole := decoder.accept(bytearray(event.size))) is not None:
                        await self._take(whole)
                elif isinstance(event, StatePacket):
                    await self._take(event)

    async def _take(self, packet: StatePacket) -> None:
        if packet.header.is_config:
            self._configs.add(packet.header.idstr)
            await self._conclude()

    async def _conclude(self) -> None:
        if self._answered or not (
            self._decoder.complete and self._devices <= self._configs
        ):
            return
        self._answered = True
        await self._see("complete")
        if self.last_word is not None and "OPEN_RETURN_PATH" in self.seen:
            await self.say(shut(self.last_word))
        elif self.last_word is not None:
            await self.streams["main"].aclose()
