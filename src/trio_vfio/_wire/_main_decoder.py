"""Bytes of the main stream to events.

``received`` takes bytes in any split, ``next_event`` gives what they hold. A
receiver stops at `Description` or, where there is none, at the stream's end.

QEMU: ``qemu_loadvm_state`` in migration/savevm.c.
"""

from __future__ import annotations

from typing import final

import attrs

from .._errors import PeerProtocolError
from ._description import DescriptionSearch, ends_with_empty_description
from ._limits import MAX_DESCRIPTION, MAX_TAIL
from ._main_events import MainEvent
from ._main_stream import DEFAULT_PAGE_SIZE, MainStream
from ._parsing import Parser, Tail, Until, Want
from ._tail import ends_like_a_stream


@final
@attrs.define(eq=False)
class MainDecoder:
    """Decodes the main stream of one migration.

    Holds at most `MAX_TAIL` and a description, and before the tail 1 MiB.
    """

    page_size: int | None = None
    """What the caller says, for a machine whose configuration does not say it."""

    position: int = attrs.field(default=0, init=False)
    """Bytes of the stream that were parsed."""
    stream: MainStream = attrs.field(init=False)
    _parser: Parser[None] = attrs.field(init=False)
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _want: Want | None = attrs.field(default=None, init=False)
    _began: int = attrs.field(default=0, init=False)
    """Where the bytes begin that were parsed last."""
    _searched: int = attrs.field(default=0, init=False)
    """Bytes of the buffer that need not be searched again for a pattern."""
    _description: DescriptionSearch = attrs.field(factory=DescriptionSearch, init=False)
    _ended: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.stream = MainStream(self.page_size)
        self._parser = self.stream.parse(lambda: self._began)

    @property
    def page_size_in_use(self) -> int:
        """Size of a page of RAM: what the stream says, else what the caller does."""
        return self.stream.page_size or DEFAULT_PAGE_SIZE

    @property
    def complete(self) -> bool:
        """Whether the stream has reached its end, description included."""
        return self.stream.complete

    @property
    def may_end(self) -> bool:
        """Whether the stream may end here: at its end, or where a description may be.

        A source that sends no description just stops; with a return path it
        keeps the connection open. Then this is all there is to go by.
        """
        if isinstance(self._want, Tail):
            return ends_like_a_stream(self._buffer) or ends_with_empty_description(
                self._buffer
            )
        return self.complete or (self.stream.may_end and not self._buffer)

    @property
    def inside_piece(self) -> bool:
        """Whether the bytes so far end within a section or a command."""
        return bool(self._buffer) or self.stream.inside_piece

    def received(self, data: bytes | bytearray | memoryview) -> None:
        """Take *data*, of any length.

        Raises:
          PeerProtocolError: if the stream had ended.
        """
        if data and self.complete:
            raise PeerProtocolError(
                "bytes behind the end of the stream", offset=self.position
            )
        self._buffer += data

    def received_eof(self) -> None:
        """Take note that the stream has ended, or will not go on.

        Further events may come.

        Raises:
          PeerProtocolError: if it ended before its time.
        """
        if not self.may_end:
            raise PeerProtocolError(
                f"stream ends in {self.stream.context}",
                offset=self.position + len(self._buffer),
                ended=True,
            )
        self._ended = True
        if not isinstance(self._want, Tail):
            self.stream.finish()

    def next_event(self) -> MainEvent | None:
        """Return what comes next, or None if it has not arrived.

        Raises:
          PeerProtocolError: if it breaks the protocol. The decoder is of no
            use after that.
        """
        try:
            return self._next_event()
        except PeerProtocolError as error:
            if error.offset is None:
                error.offset = self._began
            raise

    def _next_event(self) -> MainEvent | None:
        answer: bytes | None = None
        while True:
            if self._want is not None:
                answer = self._take(self._want)
                if answer is None:
                    return None
            try:
                # No answer is not an empty one: a config may have no bytes.
                step = (
                    next(self._parser) if answer is None else self._parser.send(answer)
                )
            except StopIteration:
                self._want = None
                self._check_nothing_behind()
                return None
            if not isinstance(step, int | Until | Tail):
                self._want = None
                return step
            self._want = step

    def _check_nothing_behind(self) -> None:
        if self._buffer:
            raise PeerProtocolError(
                "bytes behind the end of the stream", offset=self.position
            )

    def _take(self, want: Want) -> bytes | None:
        """Return what is wanted, or None if it has not arrived."""
        if isinstance(want, int):
            return self._consume(want) if len(self._buffer) >= want else None
        if isinstance(want, Until):
            return self._take_until(want)
        return self._take_tail(want)

    def _consume(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._began = self.position
        self.position += count
        return taken

    def _take_until(self, want: Until) -> bytes | None:
        found = self._buffer.find(want.pattern, self._searched)
        before = found if found >= 0 else len(self._buffer) - len(want.pattern)
        if before > want.limit:
            raise PeerProtocolError(f"{self.stream.context} is over {want.limit} bytes")
        self._searched = 0 if found >= 0 else max(0, before)
        return self._consume(found) if found >= 0 else None

    def _take_tail(self, want: Tail) -> bytes | None:
        end = self._description.end_in(self._buffer)
        if end is None and not self._ended:
            limit = MAX_TAIL
            if self._description.start is not None:
                limit += MAX_DESCRIPTION
            if len(self._buffer) > limit:
                raise PeerProtocolError(f"{self.stream.context}: over {limit} bytes")
            return None
        return want.prefix + self._consume(len(self._buffer) if end is None else end)
