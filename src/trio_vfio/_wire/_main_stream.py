"""The layout of the main stream, as a parser.

::

    QEVM 3 | configuration | (START | PART | END | FULL | COMMAND)* | EOF | JSON
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, final

import attrs

from ._description import split_description
from ._idstr import is_vfio
from ._limits import MAX_DESCRIPTION, MAX_MACHINE_TYPE
from ._main_events import (
    Command,
    CommandType,
    Configuration,
    Description,
    EndOfSections,
    Section,
    SectionEnd,
    SectionType,
)
from ._parsing import Parser, Tail, be16, be32, cstr8, refuse, skip, u8
from ._payload import payload
from ._ram import RamLayout
from ._section import (
    Sections,
    encode_section_header,
    section_footer,
    section_header,
)
from ._tail import TailBytes, tail_events_untrusted

STREAM_MAGIC: Final = 0x5145564D
STREAM_VERSION: Final = 3
DEFAULT_PAGE_SIZE: Final = 4096

PAGE_BITS: Final = range(10, 17)
_MAX_CAPABILITIES: Final = 64

# Lengths that QEMU checks (``mig_cmd_args``); the others vary.
_COMMAND_LENGTHS: Final[dict[int, tuple[int, ...]]] = {
    CommandType.OPEN_RETURN_PATH: (0,),
    CommandType.PING: (4,),
    CommandType.POSTCOPY_ADVISE: (0, 16),
    CommandType.POSTCOPY_LISTEN: (0,),
    CommandType.POSTCOPY_RUN: (0,),
    CommandType.PACKAGED: (4,),
    CommandType.ENABLE_COLO: (0,),
    CommandType.POSTCOPY_RESUME: (0,),
    CommandType.SWITCHOVER_START: (0,),
}


@final
@attrs.define(eq=False)
class MainStream:
    """Parses a main stream and knows where in it the parser is."""

    page_size: int | None
    """What the caller says, until the configuration says it."""

    context: str = attrs.field(default="its header", init=False)
    """What is being parsed, for messages."""
    complete: bool = attrs.field(default=False, init=False)
    may_end: bool = attrs.field(default=False, init=False)
    """Whether all is there but a description, which not every source sends."""
    inside_piece: bool = attrs.field(default=True, init=False)
    switchover_started: bool = attrs.field(default=False, init=False)
    sections: Sections = attrs.field(factory=Sections, init=False)
    _ignore_shared: bool = attrs.field(default=False, init=False)
    _full_sections: int = attrs.field(default=0, init=False)

    def parse(self, offset: Callable[[], int]) -> Parser[None]:
        """Parse the stream from its first byte to its last.

        Args:
          offset: returns where the bytes begin that were parsed last.
        """
        type_ = yield from self._header()
        while True:
            self.inside_piece = True
            at = offset()
            match type_:
                case SectionType.EOF:
                    yield from self._end(at)
                    return
                case SectionType.COMMAND:
                    yield from self._command(at)
                case SectionType.START | SectionType.FULL:
                    section = yield from section_header(SectionType(type_), at)
                    if self._begins_tail(section):
                        yield from self._tail(section)
                        return
                    yield from self._section(section)
                case SectionType.PART | SectionType.END:
                    section_id = yield from be32()
                    kind = SectionType(type_)
                    section = self.sections.resume(kind, section_id, at)
                    yield from self._section(section)
                case _:
                    raise refuse(f"section of unknown type {type_:#04x}")
            self.inside_piece = False
            self.context = "the middle of its sections"
            type_ = yield from u8()

    def _header(self) -> Parser[int]:
        """Parse the header and the configuration, and the byte behind them."""
        if (magic := (yield from be32())) != STREAM_MAGIC:
            raise refuse(f"stream with magic {magic:#010x}")
        if (version := (yield from be32())) != STREAM_VERSION:
            raise refuse(f"stream of unknown version {version}")
        configuration = Configuration()
        self.context = "its configuration"
        type_ = yield from u8()
        if type_ == SectionType.CONFIGURATION:
            length = yield from be32()
            if length > MAX_MACHINE_TYPE:
                raise refuse(f"machine type of {length} bytes")
            machine = (yield length) if length else b""
            if not re.fullmatch(rb"[!-~]+", machine):
                raise refuse(f"machine type {machine!r}")
            configuration = attrs.evolve(configuration, machine=machine.decode())
            while (type_ := (yield from u8())) == SectionType.SUBSECTION:
                configuration = yield from self._subsection(configuration)
        if configuration.page_bits is not None:
            self.page_size = 1 << configuration.page_bits
        self._ignore_shared = "x-ignore-shared" in configuration.capabilities
        yield configuration
        return type_

    def _subsection(self, so_far: Configuration) -> Parser[Configuration]:
        name = yield from cstr8()
        version = yield from be32()
        if version != 1:
            raise refuse(f"{name} of unknown version {version}")
        match name:
            case "configuration/target-page-bits":
                if (bits := (yield from be32())) not in PAGE_BITS:
                    raise refuse(f"pages of 2**{bits} bytes")
                return attrs.evolve(so_far, page_bits=bits)
            case "configuration/capabilities":
                return attrs.evolve(
                    so_far, capabilities=(yield from self._capabilities())
                )
            case "configuration/uuid":
                return attrs.evolve(so_far, uuid=(yield 16))
            case _:
                raise refuse(f"cannot parse the subsection {name!r}")

    def _capabilities(self) -> Parser[tuple[str, ...]]:
        if (count := (yield from be32())) > _MAX_CAPABILITIES:
            raise refuse(f"{count} capabilities")
        names: list[str] = []
        for _ in range(count):
            names.append((yield from cstr8()))
        if "mapped-ram" in names:
            raise refuse("cannot parse the stream of a machine with mapped-ram")
        return tuple(names)

    def _command(self, offset: int) -> Parser[None]:
        self.context = "a command"
        number = yield from be16()
        length = yield from be16()
        command = Command(number, (yield length) if length else b"", offset)
        if number == 0 or length not in _COMMAND_LENGTHS.get(number, (length,)):
            raise refuse(f"command {command.name} with {length} bytes", offset)
        if number == CommandType.SWITCHOVER_START:
            self._switch_over(offset)
        yield command
        if number == CommandType.PACKAGED:
            # A stream of its own, which postcopy starts with; not counted above.
            yield from skip(int.from_bytes(command.payload))

    def _switch_over(self, offset: int) -> None:
        if self.switchover_started:
            raise refuse("second SWITCHOVER_START", offset)
        if self.sections.ended:
            raise refuse("SWITCHOVER_START behind the end of a section", offset)
        self.switchover_started = True

    def _section(self, section: Section) -> Parser[None]:
        """Parse what follows the header of a section."""
        self.context = f"the {section.type.name} section of {section.idstr}"
        page_size = self.page_size or DEFAULT_PAGE_SIZE
        parser = payload(section, RamLayout(page_size, self._ignore_shared))
        if section.type is SectionType.START:
            if self._past_setup:
                reason = f"START of {section.idstr} after the switchover"
                raise refuse(reason, section.offset)
            self.sections.start(section)
        elif section.type is SectionType.FULL:
            if is_vfio(section.idstr):
                self.sections.complete(section)
            else:
                self.sections.start_early(section)
            self._full_sections += 1
        yield section
        yield from parser
        yield from section_footer(section)
        yield SectionEnd(section)

    @property
    def _past_setup(self) -> bool:
        """Whether it is too late for new handlers."""
        return self.switchover_started or bool(self.sections.ended)

    def _begins_tail(self, section: Section) -> bool:
        """Whether *section* can be parsed with all that follow it only.

        Not so before the END sections: then more sections with a length follow,
        so waiting for the stream's end is no way.
        """
        is_full = section.type is SectionType.FULL
        return is_full and self._past_setup and not is_vfio(section.idstr)

    def _tail(self, section: Section) -> Parser[None]:
        self.context = "the FULL sections at its end"
        raw = yield Tail(encode_section_header(section))
        body, text = split_description(raw)
        tail = TailBytes(body, text, section.offset)
        yield from tail_events_untrusted(tail, self.sections, self._full_sections)
        self.finish()

    def _end(self, offset: int) -> Parser[None]:
        missing = self.sections.vfio_without_full()
        if missing:
            raise refuse(f"no FULL section of {missing[0].idstr}", offset)
        yield EndOfSections(offset)
        self.may_end = True
        self.inside_piece = False
        self.context = "its description"
        type_ = yield from u8()
        self.may_end = False
        self.inside_piece = True
        if type_ != SectionType.DESCRIPTION:
            raise refuse(f"byte {type_:#04x} behind the end of sections")
        if (length := (yield from be32())) > MAX_DESCRIPTION:
            raise refuse(f"description of {length} bytes")
        yield Description((yield length) if length else b"", offset + 1)
        self.finish()

    def finish(self) -> None:
        """Take note that nothing more is to come."""
        self.complete = True
        self.inside_piece = False
