"""A source that does what a test tells it to, however odd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import final

import attrs
import trio

from .._types import Connect
from .._wire._main_encode import encode_command
from .._wire._main_events import CommandType
from .._wire._multifd import InitialPacket, StateFlag, StateHeader
from .._wire._return_path import ReturnPathDecoder, ReturnPathType
from .._wire._vfio_section import encode_config
from ._main_stream import MainStream


def initial_packet(channel: int, *, uuid: bytes = bytes(16)) -> bytes:
    """Return what a multifd channel begins with: its id, and the machine's UUID."""
    return InitialPacket(uuid, channel).encode()


def data_packet(
    idstr: str, idx: int, data: bytes = b"", *, instance_id: int = 0
) -> bytes:
    """Return a device-state packet with *data*."""
    header = StateHeader(idstr, idx, len(data), instance_id=instance_id)
    return header.encode() + data


def config_packet(
    idstr: str, idx: int, blob: bytes = b"", *, instance_id: int = 0
) -> bytes:
    """Return the packet that closes a device's state, with its config *blob*."""
    data = encode_config(blob)
    header = StateHeader(idstr, idx, len(data), StateFlag.CONFIG, instance_id)
    return header.encode() + data


def state_packets(
    idstr: str, buffers: Sequence[bytes], config: bytes = b"", *, instance_id: int = 0
) -> list[bytes]:
    """Return all packets of a device's state: *buffers* in order, then its config."""
    packets = [
        data_packet(idstr, idx, data, instance_id=instance_id)
        for idx, data in enumerate(buffers)
    ]
    last = config_packet(idstr, len(buffers), config, instance_id=instance_id)
    return [*packets, last]


@final
@attrs.define(eq=False)
class ScriptedSource:
    """The source's end of all connections of one migration.

    Each method sends one piece of a migration, in whatever order it is called;
    nothing is checked, so that any mistake a source can make can be made. What is
    known beforehand is shorter as a script, see `ScriptedPeer`.
    """

    main: trio.abc.Stream
    channels: Sequence[trio.abc.Stream]
    _pieces: MainStream = attrs.field(factory=MainStream, init=False)
    _return_path: ReturnPathDecoder = attrs.field(factory=ReturnPathDecoder, init=False)

    @classmethod
    async def connect(
        cls, connect: Connect, *, channels: int = 2, uuid: bytes = bytes(16)
    ) -> ScriptedSource:
        """Open the main connection and then *channels* multifd channels."""
        main = await connect()
        opened = [await connect() for _ in range(channels)]
        for channel_id, stream in enumerate(opened):
            await stream.send_all(initial_packet(channel_id, uuid=uuid))
        return cls(main, opened)

    async def begin(
        self,
        *idstrs: str,
        machine: str = "pc-q35-10.0",
        return_path: bool = False,
    ) -> None:
        """Send the header, open the return path if wanted, announce devices."""
        pieces = self._pieces
        await self.main.send_all(
            pieces.begin(*idstrs, machine=machine, return_path=return_path)
        )

    async def command(self, command: CommandType, payload: bytes = b"") -> None:
        """Send a command."""
        await self.main.send_all(encode_command(command, payload))

    async def announce(self, idstr: str, *, instance_id: int = 0) -> None:
        """Send the START section of a device."""
        piece = self._pieces.announce(idstr, instance_id=instance_id)
        await self.main.send_all(piece)

    async def precopy(
        self,
        idstr: str,
        data: bytes | None = None,
        *,
        init_data_sent: bool = False,
        instance_id: int = 0,
    ) -> None:
        """Send a PART section with pre-copy *data*, if any."""
        piece = self._pieces.precopy(
            idstr, data, init_data_sent=init_data_sent, instance_id=instance_id
        )
        await self.main.send_all(piece)

    async def switch_over(self) -> None:
        """Send SWITCHOVER_START."""
        await self.main.send_all(self._pieces.switch_over())

    async def end_device(
        self,
        idstr: str,
        data: Iterable[bytes] = (),
        config: bytes | None = None,
        *,
        instance_id: int = 0,
    ) -> None:
        """Send the END and FULL sections, with state if that goes over main."""
        piece = self._pieces.end_device(idstr, data, config, instance_id=instance_id)
        await self.main.send_all(piece)

    async def end(self) -> None:
        """Send the end of all devices and of the stream."""
        await self.main.send_all(self._pieces.end())

    async def packets(self, channel: int, *packets: bytes) -> None:
        """Send *packets* on a channel."""
        for packet in packets:
            await self.channels[channel].send_all(packet)

    async def close(self) -> None:
        """Close all connections."""
        for stream in (self.main, *self.channels):
            await stream.aclose()

    async def hang_up(self) -> list[tuple[ReturnPathType, int | None]]:
        """Wait until the destination has ended main, then close all connections.

        That is what a QEMU does when a migration fails. A destination waits up to 5 s
        for it, if there are channels. Returns what `heard` does.
        """
        frames: list[tuple[ReturnPathType, int | None]] = []
        # To close main here hangs up, too.
        with suppress(trio.ClosedResourceError):
            frames += await self.heard()
        for stream in (self.main, *self.channels):
            await trio.aclose_forcefully(stream)
        return frames

    async def heard(self) -> list[tuple[ReturnPathType, int | None]]:
        """Wait for the end of the return path; return what came, with its values."""
        frames: list[tuple[ReturnPathType, int | None]] = []
        while True:
            try:
                data = await self.main.receive_some()
            except trio.BrokenResourceError:
                return frames
            if not data:
                return frames
            for frame in self._return_path.received(bytes(data)):
                frames.append((frame.type, frame.value if frame.payload else None))
