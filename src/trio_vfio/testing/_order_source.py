"""A source whose bytes are there at once, for runs of which there are many.

No task of its own and nothing to wait for: whoever drives it says what arrives.
"""

from __future__ import annotations

from functools import cache
from typing import Final, final

import attrs
import trio

from .._wire._main_encode import (
    END_PAYLOAD,
    SETUP_PAYLOAD,
    encode_command,
    encode_end,
    encode_header,
    encode_section,
)
from .._wire._main_events import CommandType, Section, SectionType
from .._wire._multifd import InitialPacket
from .._wire._return_path import ReturnPathDecoder, ReturnPathType
from .._wire._vfio_section import VFIO_VERSION
from ._orders import Arrival
from ._source import config_packet, data_packet

SIZE: Final = 18
"""Of every packet's data, so that each has the same need of room."""

_CONFIG: Final = 2
"""Size of a config blob; what is around it makes up the rest."""


def name(device: int) -> str:
    """Return the idstr of a device."""
    return f"0000:00:{4 + device:02x}.0/vfio"


def data(device: int, idx: int) -> bytes:
    """Return the data of a packet; no two are alike."""
    return bytes((1 + device, 1 + idx)) * (SIZE // 2)


def config(device: int) -> bytes:
    """Return the config blob of a device."""
    return bytes((1 + device,)) * _CONFIG


@cache
def packet(device: int, idx: int, buffers: int) -> bytes:
    """Return a packet as it travels: data, or the config behind *buffers* of it."""
    if idx < buffers:
        return data_packet(name(device), idx, data(device, idx))
    return config_packet(name(device), idx, config(device))


@cache
def main_begin(devices: int) -> bytes:
    """Return what main begins with, up to where devices are announced."""
    sections = (_section(SectionType.START, device) for device in range(devices))
    return b"".join(
        (
            encode_header("pc-q35-10.0"),
            encode_command(CommandType.OPEN_RETURN_PATH),
            *(encode_section(section, SETUP_PAYLOAD) for section in sections),
        )
    )


@cache
def main_switchover() -> bytes:
    """Return SWITCHOVER_START."""
    return encode_command(CommandType.SWITCHOVER_START)


@cache
def main_end(devices: int) -> bytes:
    """Return what main ends with."""
    sections = (
        _section(type_, device)
        for device in range(devices)
        for type_ in (SectionType.END, SectionType.FULL)
    )
    every = (encode_section(section, END_PAYLOAD) for section in sections)
    return b"".join((*every, encode_end()))


def _section(type_: SectionType, device: int) -> Section:
    return Section(type_, 40 + device, name(device), 0, VFIO_VERSION, offset=0)


@final
@attrs.define(eq=False)
class Feed(trio.abc.Stream):
    """The destination's end of a connection, and what is said on it."""

    arrived: bytearray = attrs.field(factory=bytearray, init=False)
    """What there is to be received."""
    said: bytearray = attrs.field(factory=bytearray, init=False)
    """What was sent back."""
    told: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when a last word was."""
    _ended: bool = attrs.field(default=False, init=False)
    _broken: bool = attrs.field(default=False, init=False)
    _changed: trio.lowlevel.ParkingLot = attrs.field(
        factory=trio.lowlevel.ParkingLot, init=False
    )

    def feed(self, data: bytes) -> None:
        """Let *data* arrive."""
        self.arrived += data
        self._changed.unpark_all()

    def end(self, *, broken: bool = False) -> None:
        """Let the connection end, or break, behind what has arrived."""
        self._ended, self._broken = True, broken
        self._changed.unpark_all()

    def last_words(self) -> list[int]:
        """Return the values of all SHUT that were said."""
        frames = ReturnPathDecoder().received(bytes(self.said))
        return [each.value for each in frames if each.type is ReturnPathType.SHUT]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait until something arrives, and return it; at the end, nothing."""
        await trio.lowlevel.checkpoint()
        while not self.arrived and not self._ended:
            await self._changed.park()
        if self._broken and not self.arrived:
            raise trio.BrokenResourceError("cut")
        received = bytes(self.arrived[:max_bytes])
        del self.arrived[: len(received)]
        return received

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data* back, which always works."""
        await trio.lowlevel.checkpoint()
        self.said += data
        if self.last_words():
            self.told.set()

    async def wait_send_all_might_not_block(self) -> None:
        """Do not wait."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Do nothing: whoever looks on is not done."""
        await trio.lowlevel.checkpoint()


@final
@attrs.define(eq=False)
class Source:
    """All connections of a migration, from the source's side."""

    devices: int
    buffers: int
    channels: list[Feed]
    main: Feed = attrs.field(factory=Feed, init=False)

    @classmethod
    def connected(cls, devices: int, buffers: int, channels: int) -> Source:
        """Return a source that has opened all, and has announced its devices."""
        source = cls(devices, buffers, [Feed() for _ in range(channels)])
        source.main.feed(main_begin(devices))
        for number, channel in enumerate(source.channels):
            channel.feed(InitialPacket(bytes(16), number).encode())
        return source

    @property
    def connections(self) -> list[Feed]:
        """Return all: main, then the channels."""
        return [self.main, *self.channels]

    def switch_over(self) -> None:
        """Let SWITCHOVER_START arrive."""
        self.main.feed(main_switchover())

    def step(self, arrival: Arrival | None, *, cut: bool = False) -> None:
        """Let a packet arrive, or without one the end of main.

        Args:
          cut: whether only half of it arrives, and then the connection breaks.
        """
        if arrival is None:
            feed, raw = self.main, main_end(self.devices)
        else:
            feed = self.channels[arrival.channel]
            raw = packet(arrival.device, arrival.idx, self.buffers)
        feed.feed(raw[: len(raw) // 2] if cut else raw)
        if cut:
            feed.end(broken=True)

    def close(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            connection.end()
