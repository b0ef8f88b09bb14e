"""Pure tests: sections of what is no VFIO device, passed over to their very end."""

from __future__ import annotations

import pytest

from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire._limits import KIB, MIB
from trio_vfio._wire._main_decoder import MainDecoder
from trio_vfio._wire._main_encode import encode_command
from trio_vfio._wire._main_events import (
    Command,
    CommandType,
    Configuration,
    MainEvent,
    SectionEnd,
    SectionType,
)

from ..streams import (
    ATTRIBUTES,
    DIRTY_BITMAP,
    HEADER,
    HTAB,
    MACHINE,
    VIRTIO_MEM,
    Handler,
    attributes,
    bitmap_name,
    htab_chunk,
    virtio_mem_payload,
)
from .feeding import cut, drain, main_events
from .other_sections import (
    BITMAP,
    BITS,
    BUFFER,
    DONE,
    END,
    EOS,
    FULL,
    ITERATED,
    NODE,
    PART,
    SETUP,
    START,
    Case,
    be32,
    be64,
    cases,
    virtio_mem_sizes,
)

GOOD = [
    *cases(
        DIRTY_BITMAP,
        ITERATED,
        {
            "nothing": b"\1",
            "start": b"\x1c" + NODE + BITMAP + SETUP + b"\1",
            "start of the same node": b"\x14" + BITMAP + SETUP + b"\1",
            "start, node only": b"\x18" + NODE + SETUP + b"\1",
            "start without a name": b"\x10" + SETUP + b"\1",
            "least granularity": b"\x10" + be32(512) + b"\0\1",
            "greatest granularity": b"\x10" + be32(1 << 31) + b"\7\1",
            "complete": b"\x2c" + NODE + BITMAP + b"\1",
            "complete, same names": b"\x20\1",
            "bits": b"\x4c" + NODE + BITMAP + BITS + BUFFER + b"\1",
            "bits, same names": b"\x40" + BITS + BUFFER + b"\1",
            "bits of nothing": b"\x40" + BITS + be64(0) + b"\1",
            "many bits": b"\x40" + BITS + be64(100_000) + bytes(100_000) + b"\1",
            "zeroes": b"\x4e" + NODE + BITMAP + BITS + b"\1",
            "zeroes, same names": b"\x42" + BITS + b"\1",
            "last chunk with bits": b"\x41" + BITS + BUFFER,
            "last chunk with zeroes": b"\x43" + BITS,
            "last chunk completes": b"\x2d" + NODE + BITMAP,
            "last chunk starts": b"\x11" + SETUP,
            "many chunks": b"\x14" + BITMAP + SETUP + b"\x42" + BITS + b"\x20\1",
            "name in UTF-8": b"\x24"
            + bitmap_name("Sicherung für später".encode())
            + b"\1",
            "names of 0 and 255 bytes": b"\x2c\0" + bitmap_name(b"\x7e" * 255) + b"\1",
            "flags in two bytes": b"\x80\x42" + BITS + b"\x80\1",
            "flags in four bytes": b"\x80\x80\0\x42" + BITS + b"\x80\x80\0\1",
        },
    ),
    *cases(
        HTAB,
        [START],
        {
            "least table": be32(18),
            "greatest table": be32(46),
        },
    ),
    *cases(HTAB, ITERATED, {"no table": b"\xff" * 4}),
    *cases(
        HTAB,
        [PART, END],
        {
            "nothing": bytes(4 + 8),
            "valid": bytes(4) + htab_chunk(0, 1, 0) + bytes(8),
            "invalid": bytes(4) + htab_chunk(0, 0, 0xFFFF) + bytes(8),
            "neither": bytes(4) + htab_chunk(9, 0, 0) + bytes(8),
            "both": bytes(4) + htab_chunk(0xFFFFFFFF, 2, 3) + bytes(8),
            "many": bytes(4) + htab_chunk(1, 0xFFFF, 0) * 2 + bytes(8),
        },
    ),
    *cases(
        ATTRIBUTES,
        ITERATED,
        {
            "nothing": EOS,
            "done": DONE + EOS,
            "some": attributes(0, b"a") + EOS,
            "of no pages": attributes(0x5000, b"") + EOS,
            "many": attributes((1 << 64) - 0x1000, bytes(100_000)) * 2 + EOS,
            "all": attributes(0x1000, b"\x7e\0\0\0\5" * 9) + DONE + EOS,
            "more when done": DONE + attributes(0, b"a") + EOS,
        },
    ),
    *cases(
        VIRTIO_MEM,
        [FULL],
        {
            "128 MiB": virtio_mem_payload(128 * MIB, 2 * MIB),
            "a block less": virtio_mem_payload(126 * MIB, 2 * MIB),
            "a block more": virtio_mem_payload(130 * MIB, 2 * MIB),
            "one block": virtio_mem_payload(1 * MIB, 1 * MIB),
            "no block": virtio_mem_payload(0, 1 * MIB),
            "1 TiB": virtio_mem_payload(1 << 40, 1 * MIB),
        },
    ),
    Case(
        "no path",
        Handler(8, "virtio-mem-device-early"),
        FULL,
        virtio_mem_payload(128 * MIB, 2 * MIB),
    ),
]


def only_sections(case: Case) -> list[MainEvent]:
    """Return the events of all sections of *case*, which hold nothing."""
    events: list[MainEvent] = []
    if case.before != HEADER:
        start = case.handler.section(START, len(HEADER))
        events += [start, SectionEnd(start)]
    section = case.handler.section(case.type_, len(case.before))
    return [Configuration(MACHINE), *events, section, SectionEnd(section)]


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_sections_are_passed_over(case: Case) -> None:
    """Whole and byte by byte: what comes behind stands where it should."""
    ping = Command(CommandType.PING, be32(7), len(case.stream))
    stream = case.stream + encode_command(CommandType.PING, be32(7))
    for sizes in ([1 << 30], [1], [5, 2]):
        if sizes == [1 << 30] or len(stream) < 5000:
            events = main_events(cut(stream, sizes), end=False)
            assert events == [*only_sections(case), ping]


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_bytes_behind_a_section(case: Case) -> None:
    decoder = MainDecoder()
    decoder.received(case.stream + b"\xff")
    expected = only_sections(case)
    assert [decoder.next_event() for _ in expected] == expected
    with pytest.raises(PeerProtocolError, match="unknown type 0xff") as caught:
        decoder.next_event()
    assert caught.value.offset == len(case.stream)


@pytest.mark.parametrize(
    "case", [case for case in GOOD if len(case.stream) < 700], ids=str
)
def test_sections_that_are_cut(case: Case) -> None:
    """Wherever the stream stops within a section, it was cut there."""
    begin = len(case.before) + len(case.header)
    for length in range(begin, len(case.stream)):
        events: list[MainEvent] = []
        decoder = MainDecoder()
        decoder.received(case.stream[:length])
        events += drain(decoder)
        assert events == only_sections(case)[:-1]
        assert decoder.inside_piece
        with pytest.raises(PeerProtocolError) as caught:
            decoder.received_eof()
        context = f"the {case.type_.name} section of {case.handler.idstr}"
        assert caught.value.reason == f"stream ends in {context}"
        assert caught.value.offset == length


@pytest.mark.parametrize(
    ("handler", "type_", "payload"),
    [
        (DIRTY_BITMAP, PART, b"\x40" + BITS + b"\xff" * 8),
        (ATTRIBUTES, PART, be64(2) + b"\xff" * 8),
        (VIRTIO_MEM, FULL, virtio_mem_sizes(1 << 50, 1 << 20) + bytes(12)),
    ],
    ids=["dirty-bitmap", "attributes", "virtio-mem"],
)
def test_lengths_take_no_memory(
    handler: Handler, type_: SectionType, payload: bytes
) -> None:
    """However long something says it is, it is dropped as it comes."""
    case = Case("", handler, type_, payload)
    decoder = MainDecoder()
    decoder.received(case.stream[:-5])
    for _ in range(64):
        decoder.received(bytes(256 * KIB))
        assert not any(
            isinstance(event, SectionEnd) for event in list(drain(decoder))[3:]
        )
        assert len(decoder._buffer) < 64 * KIB
    assert decoder.inside_piece
