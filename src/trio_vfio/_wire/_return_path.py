"""The return path: what the destination says on the main connection.

A frame is, in network byte order: 2 bytes type, 2 bytes length, payload.

QEMU: ``enum mig_rp_message_type``, ``migrate_send_rp_message`` and
``source_return_path_thread`` in migration/migration.c.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, final

import attrs

from .._errors import PeerProtocolError

_FRAME = struct.Struct("!HH")
_VALUE = struct.Struct("!I")
_MAX_LENGTH: Final = 512


class ReturnPathType(enum.IntEnum):
    """What a frame of the return path says (``MIG_RP_MSG_*``)."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7


# Those that QEMU checks; the others are for postcopy, which VFIO refuses.
_LENGTHS: Final = {
    ReturnPathType.SHUT: 4,
    ReturnPathType.PONG: 4,
    ReturnPathType.REQ_PAGES: 12,
    ReturnPathType.RESUME_ACK: 4,
    ReturnPathType.SWITCHOVER_ACK: 0,
}


@attrs.frozen
class ReturnPathFrame:
    """One message from the destination to the source."""

    type: ReturnPathType
    payload: bytes = b""

    @property
    def value(self) -> int:
        """The number that SHUT (0: success) and PONG carry."""
        (value,) = _VALUE.unpack(self.payload)
        return int(value)

    def encode(self) -> bytes:
        """Return the frame as it travels."""
        return _FRAME.pack(self.type, len(self.payload)) + self.payload


SWITCHOVER_ACK: Final = ReturnPathFrame(ReturnPathType.SWITCHOVER_ACK)


def pong(value: int) -> ReturnPathFrame:
    """Make the answer to a PING with *value*."""
    return ReturnPathFrame(ReturnPathType.PONG, _VALUE.pack(value))


def shut(value: int) -> ReturnPathFrame:
    """Make the last word on a migration: 0 if it succeeded."""
    return ReturnPathFrame(ReturnPathType.SHUT, _VALUE.pack(value))


@final
@attrs.define(eq=False)
class ReturnPathDecoder:
    """Decodes what a destination sends, as its source has to."""

    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _position: int = attrs.field(default=0, init=False)

    def received(self, data: bytes) -> list[ReturnPathFrame]:
        """Return the frames that *data* completes.

        Raises:
          PeerProtocolError: if it holds something else.
        """
        self._buffer += data
        frames: list[ReturnPathFrame] = []
        while (frame := self._next_frame()) is not None:
            frames.append(frame)
        return frames

    def received_eof(self) -> None:
        """Take note that the return path has ended.

        Raises:
          PeerProtocolError: if it ended inside a frame.
        """
        if self._buffer:
            raise PeerProtocolError(
                "return path ends inside a frame", offset=self._position
            )

    def _next_frame(self) -> ReturnPathFrame | None:
        if len(self._buffer) < _FRAME.size:
            return None
        number, length = _FRAME.unpack_from(self._buffer)
        type_ = self._type_untrusted(number, length)
        end = _FRAME.size + length
        if len(self._buffer) < end:
            return None
        frame = ReturnPathFrame(type_, bytes(self._buffer[_FRAME.size : end]))
        del self._buffer[:end]
        self._position += end
        return frame

    def _type_untrusted(self, number: int, length: int) -> ReturnPathType:
        try:
            type_ = ReturnPathType(number)
        except ValueError:
            reason = f"return path message of unknown type {number}"
            raise PeerProtocolError(reason, offset=self._position) from None
        if length > _MAX_LENGTH or length != _LENGTHS.get(type_, length):
            reason = f"return path message {type_.name} of {length} bytes"
            raise PeerProtocolError(reason, offset=self._position)
        return type_
