"""Sections of what is no VFIO device, each behind what has to come before it."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import attrs

from trio_vfio._wire._main_events import SectionType

from ..streams import HEADER, Handler, bitmap_name, state_of

START, PART, END, FULL = (
    SectionType.START,
    SectionType.PART,
    SectionType.END,
    SectionType.FULL,
)
ITERATED = (START, PART, END)


def be32(number: int) -> bytes:
    return struct.pack("!I", number)


def be64(number: int) -> bytes:
    return struct.pack("!Q", number)


@attrs.frozen
class Case:
    """One section of a handler, behind all that has to come before it."""

    name: str
    handler: Handler
    type_: SectionType
    payload: bytes

    def __str__(self) -> str:
        return f"{self.handler.idstr}, {self.type_.name}: {self.name}"

    @property
    def before(self) -> bytes:
        if self.type_ in (PART, END):
            return HEADER + state_of(self.handler, START)
        return HEADER

    @property
    def header(self) -> bytes:
        return self.handler.encode(self.type_, b"")[:-5]

    @property
    def stream(self) -> bytes:
        return self.before + self.handler.encode(self.type_, self.payload)


def cases(
    handler: Handler, types: Iterable[SectionType], payloads: dict[str, bytes]
) -> list[Case]:
    return [
        Case(name, handler, type_, payload)
        for name, payload in payloads.items()
        for type_ in types
    ]


NODE, BITMAP = bitmap_name(b"drive0"), bitmap_name(b"backup")
SETUP = be32(65536) + b"\1"
BITS = be64(1 << 40) + be32(0xFFFFFFFF)
BUFFER = be64(32) + b"\x7e\0\0\0\2\1" * 5 + b"\1\1"
EOS, DONE = be64(1), be64(8)


def virtio_mem_sizes(region: int, block: int) -> bytes:
    return be64(0) + be64(region) + be64(block)
