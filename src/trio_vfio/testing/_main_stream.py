"""The main channel's bytes, piece by piece, of a source that may be as odd as told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, final

import attrs

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
from .._wire._vfio_section import VFIO_VERSION, Mark, encode_config

_FIRST_SECTION_ID: Final = 40


@final
@attrs.define(eq=False)
class MainStream:
    """Makes the main channel's bytes, a piece with each call.

    A source sends, in this order, what `begin` returns, pre-copy data in rounds,
    `switch_over`, and `end`. Nothing is checked, so that any mistake a source can
    make can be made; only has a device to be announced before its other pieces.

    The pieces are bytes, and nothing is sent: join them, cut them, damage them.
    """

    _sections: dict[tuple[str, int], Section] = attrs.field(
        factory=dict[tuple[str, int], Section], init=False
    )

    def begin(
        self, *idstrs: str, machine: str = "pc-q35-10.0", return_path: bool = False
    ) -> bytes:
        """Return the header, a return path and a PING if wanted, and all devices."""
        header = encode_header(machine)
        if return_path:
            header += encode_command(CommandType.OPEN_RETURN_PATH)
            header += encode_command(CommandType.PING, bytes([0, 0, 0, 1]))
        return header + b"".join(map(self.announce, idstrs))

    def announce(self, idstr: str, *, instance_id: int = 0) -> bytes:
        """Return the START section of a device."""
        self._sections[idstr, instance_id] = Section(
            SectionType.START,
            _FIRST_SECTION_ID + len(self._sections),
            idstr,
            instance_id,
            VFIO_VERSION,
            offset=0,
        )
        return self._section(SectionType.START, idstr, instance_id, SETUP_PAYLOAD)

    def precopy(
        self,
        idstr: str,
        data: bytes | None = None,
        *,
        init_data_sent: bool = False,
        instance_id: int = 0,
    ) -> bytes:
        """Return a PART section with pre-copy *data*, if any."""
        mark = Mark.DEV_INIT_DATA_SENT if init_data_sent else Mark.END_OF_STATE
        payload = b"" if data is None else encode_data(data)
        payload += mark.encode()
        return self._section(SectionType.PART, idstr, instance_id, payload)

    def switch_over(self) -> bytes:
        """Return SWITCHOVER_START."""
        return encode_command(CommandType.SWITCHOVER_START)

    def end_device(
        self,
        idstr: str,
        data: Iterable[bytes] = (),
        config: bytes | None = None,
        *,
        instance_id: int = 0,
    ) -> bytes:
        """Return the END and FULL sections, with state if that goes over main."""
        blocks = b"".join(map(encode_data, data))
        end = self._section(SectionType.END, idstr, instance_id, blocks + END_PAYLOAD)
        payload = END_PAYLOAD if config is None else encode_config(config)
        return end + self._section(SectionType.FULL, idstr, instance_id, payload)

    def end_stream(self) -> bytes:
        """Return what ends the stream, behind all devices."""
        return encode_end()

    def end(self) -> bytes:
        """Return the end of all devices, whose state goes by multifd, and of all."""
        devices = (
            self.end_device(idstr, instance_id=instance_id)
            for idstr, instance_id in self._sections
        )
        return b"".join(devices) + self.end_stream()

    def _section(
        self, type_: SectionType, idstr: str, instance_id: int, payload: bytes
    ) -> bytes:
        section = attrs.evolve(self._sections[idstr, instance_id], type=type_)
        return encode_section(section, payload)
