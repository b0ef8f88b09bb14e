"""The main channel: the order of the migration, and pre-copy data.

QEMU: ``migration_thread`` in migration/migration.c, ``qemu_savevm_state_*`` in
migration/savevm.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs
import trio

from .._errors import ConnectionLost
from .._link._stream import send_some
from .._link._tls import why_broken
from .._migration._activity import Activity
from .._trace import Trace
from .._wire._main_encode import (
    END_PAYLOAD,
    SETUP_PAYLOAD,
    data_mark,
    encode_command,
    encode_description,
    encode_end,
    encode_header,
)
from .._wire._main_events import CommandType, Section, SectionType
from .._wire._section import encode_section_header
from .._wire._vfio_section import Mark, footer
from ._answers import PING_VALUE, Answers


@final
@attrs.define(eq=False)
class MainChannel:
    """Writes one main stream, piece by piece.

    Each method has handed its piece to the system when it returns. If one is
    cancelled, part of the piece may have gone.

    Each raises `ConnectionLost` if the connection breaks.
    """

    stream: trio.abc.Stream
    machine: str
    answers: Answers
    activity: Activity
    trace: Trace

    sent_bytes: int = attrs.field(default=0, init=False)
    """How many have gone."""

    async def begin(self) -> None:
        """Send the header and the configuration; ask for an answer, if there can be."""
        self.trace("savevm_state_header")
        await self._send(encode_header(self.machine))
        if self.answers.return_path:
            self.trace("savevm_send_open_return_path")
            await self._command(CommandType.OPEN_RETURN_PATH)
            self.trace("savevm_send_ping", PING_VALUE)
            await self._command(CommandType.PING, PING_VALUE.to_bytes(4))

    async def announce(self, section: Section) -> None:
        """Send the START section of a device."""
        await self._section(section, SectionType.START, SETUP_PAYLOAD)

    async def precopy(
        self, section: Section, data: memoryview, *, init_data_sent: bool
    ) -> None:
        """Send a PART section.

        Args:
          data: what goes into it; may be empty.
          init_data_sent: whether to say that all initial data has gone.
        """
        mark = Mark.DEV_INIT_DATA_SENT if init_data_sent else Mark.END_OF_STATE
        payload: list[bytes | memoryview] = []
        if data:
            payload = [data_mark(len(data)), data]
        await self._section(section, SectionType.PART, *payload, mark.encode())

    async def switch_over(self) -> None:
        """Send SWITCHOVER_START."""
        self.trace("savevm_send_switchover_start")
        await self._command(CommandType.SWITCHOVER_START)

    async def end(self, sections: Sequence[Section]) -> None:
        """Send the END sections, which hold nothing."""
        for section in sections:
            await self._section(section, SectionType.END, END_PAYLOAD)

    async def complete(self, sections: Sequence[Section]) -> None:
        """Send the FULL sections, which hold nothing, and the end of the stream."""
        for section in sections:
            await self._section(section, SectionType.FULL, END_PAYLOAD)
        # The answer may come before we know that the last byte has gone.
        self.answers.may_succeed = True
        await self._send(encode_end(encode_description(self.machine, sections)))

    async def _command(self, command: CommandType, payload: bytes = b"") -> None:
        self.trace("savevm_command_send", command, len(payload))
        await self._send(encode_command(command, payload))

    async def _section(
        self, section: Section, type_: SectionType, *payload: bytes | memoryview
    ) -> None:
        self.trace("savevm_section_start", section.idstr, section.section_id)
        head = encode_section_header(attrs.evolve(section, type=type_))
        await self._send(head, *payload, footer(section.section_id))
        self.trace("savevm_section_end", section.idstr, section.section_id, 0)

    async def _send(self, *pieces: bytes | memoryview) -> None:
        left = [memoryview(piece) for piece in pieces]
        while left:
            before = sum(map(len, left))
            try:
                left = await send_some(self.stream, left)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                why = why_broken(error, "the destination")
                reason = f"broke behind byte {self.sent_bytes}: {why}"
                # If cancelled in there, then for a better reason.
                await self.answers.last_words()  # noqa: ASYNC120
                raise ConnectionLost(reason, channel="main") from error
            self.sent_bytes += before - sum(map(len, left))
            self.activity.touch()
