"""A source that does what a test tells it to, however odd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import attrs
import trio

from .._wire._main_encode import (
    END_PAYLOAD,
    SETUP_PAYLOAD,
    encode_command,
    encode_data,
    encode_end,
    encode_header,
    encode_section,
)
from .._wire._main_events import CommandType, Section, SectionType
from .._wire._multifd import InitialPacket, StateFlag, StateHeader
from .._wire._return_path import ReturnPathDecoder, ReturnPathType
from .._wire._vfio_section import VFIO_VERSION, Mark, encode_config
from ._links import Connect

_FIRST_SECTION_ID = 40


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
    nothing is checked, so that any mistake a source can make can be made.
    """

    main: trio.abc.Stream
    channels: Sequence[trio.abc.Stream]
    _sections: dict[tuple[str, int], Section] = attrs.field(
        factory=dict[tuple[str, int], Section], init=False
    )
    _return_path: ReturnPathDecoder = attrs.field(factory=ReturnPathDecoder, init=False)

    @classmethod
    async def connect(
        cls, connect: Connect, *, channels: int = 2, uuid: bytes = bytes(16)
    ) -> ScriptedSource:
        """Open the main connection and then *channels* multifd channels."""
        main = await connect()
        opened = [await connect() for _ in range(channels)]
        for channel_id, stream in enumerate(opened):
            await stream.send_all(InitialPacket(uuid, channel_id).encode())
        return cls(main, opened)

    async def begin(
        self,
        *idstrs: str,
        machine: str = "pc-q35-10.0",
        return_path: bool = False,
    ) -> None:
        """Send the header, open the return path if wanted, announce devices."""
        await self.main.send_all(encode_header(machine))
        if return_path:
            await self.command(CommandType.OPEN_RETURN_PATH)
            await self.command(CommandType.PING, bytes([0, 0, 0, 1]))
        for idstr in idstrs:
            await self.announce(idstr)

    async def command(self, command: CommandType, payload: bytes = b"") -> None:
        """Send a command."""
        await self.main.send_all(encode_command(command, payload))

    async def announce(self, idstr: str, *, instance_id: int = 0) -> None:
        """Send the START section of a device."""
        self._sections[idstr, instance_id] = Section(
            SectionType.START,
            _FIRST_SECTION_ID + len(self._sections),
            idstr,
            instance_id,
            VFIO_VERSION,
            offset=0,
        )
        await self._section(SectionType.START, idstr, instance_id, SETUP_PAYLOAD)

    async def precopy(
        self,
        idstr: str,
        data: bytes | None = None,
        *,
        init_data_sent: bool = False,
        instance_id: int = 0,
    ) -> None:
        """Send a PART section with pre-copy *data*, if any."""
        mark = Mark.DEV_INIT_DATA_SENT if init_data_sent else Mark.END_OF_STATE
        payload = b"" if data is None else encode_data(data)
        payload += mark.encode()
        await self._section(SectionType.PART, idstr, instance_id, payload)

    async def switch_over(self) -> None:
        """Send SWITCHOVER_START."""
        await self.command(CommandType.SWITCHOVER_START)

    async def end_device(
        self,
        idstr: str,
        data: Iterable[bytes] = (),
        config: bytes | None = None,
        *,
        instance_id: int = 0,
    ) -> None:
        """Send the END and FULL sections, with state if that goes over main."""
        blocks = b"".join(map(encode_data, data))
        payload = blocks + END_PAYLOAD
        await self._section(SectionType.END, idstr, instance_id, payload)
        payload = END_PAYLOAD if config is None else encode_config(config)
        await self._section(SectionType.FULL, idstr, instance_id, payload)

    async def end(self) -> None:
        """Send the end of all devices and of the stream."""
        for idstr, instance_id in self._sections:
            await self.end_device(idstr, instance_id=instance_id)
        await self.main.send_all(encode_end())

    async def packets(self, channel: int, *packets: bytes) -> None:
        """Send *packets* on a channel."""
        for packet in packets:
            await self.channels[channel].send_all(packet)

    async def close(self) -> None:
        """Close all connections."""
        for stream in (self.main, *self.channels):
            await stream.aclose()

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

    async def _section(
        self, type_: SectionType, idstr: str, instance_id: int, payload: bytes
    ) -> None:
        section = attrs.evolve(self._sections[idstr, instance_id], type=type_)
        await self.main.send_all(encode_section(section, payload))
