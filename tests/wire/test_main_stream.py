"""Pure tests: all that a main stream may hold, and how little of it is kept."""

from __future__ import annotations

import json
import struct
from typing import Any, TypeVar

import attrs
import pytest

from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire._description import Entry, entries_untrusted
from trio_vfio._wire._limits import DATA_PIECE, KIB, MAX_CONFIG, MAX_TAIL, MIB
from trio_vfio._wire._main_decoder import MainDecoder
from trio_vfio._wire._main_encode import (
    END_PAYLOAD,
    encode_command,
    encode_data,
    encode_end,
    encode_header,
)
from trio_vfio._wire._main_events import (
    Command,
    CommandType,
    Configuration,
    Description,
    DeviceConfig,
    DeviceData,
    EndOfSections,
    InitDataSent,
    MainEvent,
    Section,
    SectionEnd,
    SectionType,
)
from trio_vfio._wire._section import Sections
from trio_vfio._wire._tail import TailBytes, tail_events_untrusted
from trio_vfio._wire._vfio_section import Mark, config_blob_untrusted, encode_config

from ..streams import (
    DEVICE,
    EOF,
    HEADER,
    IDSTR,
    MACHINE,
    RAM,
    RAM_END,
    READY_PAYLOAD,
    SECOND_DEVICE,
    SWITCHOVER,
    TIMER,
    Handler,
    describe,
    minimal_stream,
)
from .feeding import cut, drain, main_events

_STARTED = HEADER + DEVICE.start()
_ENDED = _STARTED + SWITCHOVER + DEVICE.end()
T = TypeVar("T")
SPLITS = ([1 << 30], [1], [5, 2])


def be32(number: int) -> bytes:
    return struct.pack("!I", number)


def be64(number: int) -> bytes:
    return struct.pack("!Q", number)


def same_events(stream: bytes, *, end: bool = False) -> list[MainEvent]:
    """Decode *stream* in several splits, which must not matter."""
    whole, *others = (main_events(cut(stream, sizes), end=end) for sizes in SPLITS)
    for other in others:
        assert other == whole
    return whole


def only(events: list[MainEvent], kind: type[T]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]


# Configuration


def subsection(name: str, body: bytes) -> bytes:
    return bytes([5, len(name)]) + name.encode() + be32(1) + body


_BITS = subsection("configuration/target-page-bits", be32(16))
_CAPABILITIES = subsection(
    "configuration/capabilities", be32(1) + b"\x0fx-ignore-shared"
)
_UUID = subsection("configuration/uuid", bytes(range(16)))


@pytest.mark.parametrize(
    ("configuration", "expected", "page_size"),
    [
        (HEADER, Configuration(MACHINE), 4096),
        (HEADER[:8], Configuration(), 4096),
        (HEADER + _BITS, Configuration(MACHINE, 16), 65536),
        (
            HEADER + _CAPABILITIES,
            Configuration(MACHINE, None, ("x-ignore-shared",)),
            4096,
        ),
        (
            HEADER + subsection("configuration/capabilities", be32(0)),
            Configuration(MACHINE),
            4096,
        ),
        (HEADER + _UUID, Configuration(MACHINE, uuid=bytes(range(16))), 4096),
        (
            HEADER + _BITS + _CAPABILITIES + _UUID,
            Configuration(MACHINE, 16, ("x-ignore-shared",), bytes(range(16))),
            65536,
        ),
        (
            encode_header("virt-10.0", page_bits=10),
            Configuration("virt-10.0", 10),
            1024,
        ),
        (
            encode_header("m", page_bits=12, capabilities=["a", "bc"], uuid=bytes(16)),
            Configuration("m", 12, ("a", "bc"), bytes(16)),
            4096,
        ),
    ],
    ids=[
        "plain",
        "none",
        "bits",
        "shared",
        "no capability",
        "uuid",
        "all",
        "encoded",
        "all encoded",
    ],
)
def test_configuration(
    configuration: bytes, expected: Configuration, page_size: int
) -> None:
    for sizes in SPLITS:
        decoder = MainDecoder()
        events: list[MainEvent] = []
        for piece in cut(configuration + SWITCHOVER, sizes):
            decoder.received(piece)
            events += drain(decoder)
        offset = len(configuration)
        switchover = Command(CommandType.SWITCHOVER_START, b"", offset)
        assert events == [expected, switchover]
        assert decoder.page_size_in_use == page_size
        assert not decoder.inside_piece


def test_page_size_that_the_caller_gives() -> None:
    """It counts until the stream says another one."""
    decoder = MainDecoder(16384)
    assert decoder.page_size_in_use == 16384
    decoder.received(HEADER + SWITCHOVER)
    list(drain(decoder))
    assert decoder.page_size_in_use == 16384
    decoder = MainDecoder(16384)
    decoder.received(HEADER + _BITS + SWITCHOVER)
    list(drain(decoder))
    assert decoder.page_size_in_use == 65536


# Commands


@pytest.mark.parametrize(
    ("number", "payload", "name"),
    [
        (1, b"", "OPEN_RETURN_PATH"),
        (2, be32(7), "PING"),
        (3, b"", "POSTCOPY_ADVISE"),
        (3, bytes(16), "POSTCOPY_ADVISE"),
        (4, b"", "POSTCOPY_LISTEN"),
        (5, b"", "POSTCOPY_RUN"),
        (6, b"\0\6pc.ram\0" + bytes(32), "POSTCOPY_RAM_DISCARD"),
        (8, b"", "ENABLE_COLO"),
        (9, b"", "POSTCOPY_RESUME"),
        (10, b"\6pc.ram", "RECV_BITMAP"),
        (11, b"", "SWITCHOVER_START"),
        (12, b"", "12"),
        (0xFFFF, bytes(0xFFFF), "65535"),
    ],
)
def test_command(number: int, payload: bytes, name: str) -> None:
    """Those that we do not know are passed on, and the stream goes on behind them."""
    raw = struct.pack("!BHH", 8, number, len(payload)) + payload
    command = Command(number, payload, len(HEADER))
    ping = Command(CommandType.PING, be32(1), len(HEADER + raw))
    stream = HEADER + raw + encode_command(CommandType.PING, be32(1))
    assert same_events(stream) == [Configuration(MACHINE), command, ping]
    assert command.name == name
    if number <= max(CommandType):
        assert encode_command(CommandType(number), payload) == raw


@pytest.mark.parametrize("length", [0, 1, 64 * KIB, 150 * KIB + 1])
def test_packaged_command(length: int) -> None:
    """The stream within it is passed over, however much it looks like ours."""
    nested = (SWITCHOVER * length)[:length]
    packaged = encode_command(CommandType.PACKAGED, be32(length)) + nested
    stream = HEADER + packaged + SWITCHOVER
    events = main_events(cut(stream, [4096]), end=False)
    assert events == main_events([stream], end=False)
    assert events[1:] == [
        Command(CommandType.PACKAGED, be32(length), len(HEADER)),
        Command(CommandType.SWITCHOVER_START, b"", len(HEADER + packaged)),
    ]


# RAM


def ram_stream(records: bytes, configuration: bytes = HEADER) -> bytes:
    """Return a stream with *records* in each kind of section of RAM."""
    return b"".join(
        [
            configuration,
            RAM.encode(SectionType.START, records + RAM_END),
            RAM.encode(SectionType.PART, records + RAM_END),
            RAM.encode(SectionType.END, records + RAM_END),
        ]
    )


_BLOCK = b"\6pc.ram"


@pytest.mark.parametrize(
    "records",
    [
        b"",
        be64(0x12002) + _BLOCK + b"\0",
        be64(0x12022) + b"\0",
        be64(0x12008) + _BLOCK + b"\x7e" * 4096,
        be64(0x12028) + bytes(4096),
        be64(0x12040) + _BLOCK + b"\1\0\5hello",
        be64(0x12060) + b"\1\0\0",
        be64(0x12060) + b"\1\xff\xff" + bytes(0xFFFF),
        be64(0x200),
        be64(0x200) * 3 + be64(0x12022) + b"\0" + be64(0x12028) + b"\x10" * 4096,
        be64(4),
        be64(0x3004) + _BLOCK + be64(0x1000) + b"\3rom" + be64(0x2000),
    ],
    ids=[
        "nothing",
        "zero",
        "zero, same block",
        "page",
        "page, same block",
        "xbzrle",
        "xbzrle of nothing",
        "xbzrle, long",
        "flush",
        "many",
        "no blocks",
        "blocks",
    ],
)
def test_ram_records(records: bytes) -> None:
    """Their content is dropped; what counts is that the end is found."""
    stream = ram_stream(records)
    whole = main_events([stream], end=False)
    assert [type(event) for event in whole[1:]] == [Section, SectionEnd] * 3
    assert main_events(cut(stream, [3, 1]), end=False) == whole


def test_ram_pages_of_64_kib() -> None:
    page = be64(0x10008) + _BLOCK + bytes(65536)
    stream = ram_stream(page, HEADER + _BITS)
    for sizes in ([1 << 30], [977]):
        assert len(only(main_events(cut(stream, sizes), end=False), SectionEnd)) == 3


def test_ram_blocks_with_addresses() -> None:
    """With x-ignore-shared, 8 bytes more come with each block."""
    blocks = be64(0x3004) + _BLOCK + be64(0x1000) + be64(1 << 40)
    blocks += b"\3rom" + be64(0x2000) + be64(0)
    stream = ram_stream(blocks, HEADER + _CAPABILITIES)
    assert len(only(same_events(stream), SectionEnd)) == 3
    with pytest.raises(PeerProtocolError):
        main_events([ram_stream(blocks)], end=False)


# VFIO


def vfio_events(type_: SectionType, payload: bytes) -> list[MainEvent]:
    """Decode one section of a device, from its header to its footer."""
    before = {
        SectionType.START: HEADER,
        SectionType.PART: _STARTED,
        SectionType.END: _STARTED,
        SectionType.FULL: _ENDED,
    }[type_]
    stream = before + DEVICE.encode(type_, payload)
    section = DEVICE.section(type_, len(before))
    events = same_events(stream)
    at = events.index(section)
    assert events[-1] == SectionEnd(section)
    return events[at + 1 : -1]


def test_empty_sections() -> None:
    for type_ in (SectionType.START, SectionType.PART, SectionType.END):
        assert vfio_events(type_, END_PAYLOAD) == []
    for payload in (END_PAYLOAD, READY_PAYLOAD):
        assert vfio_events(SectionType.FULL, payload) == []


@pytest.mark.parametrize("type_", [SectionType.PART, SectionType.END])
def test_data(type_: SectionType) -> None:
    """Any number of blocks, of which each may be empty."""
    payload = encode_data(b"abc") + encode_data(b"") + encode_data(END_PAYLOAD)
    events = vfio_events(type_, payload + END_PAYLOAD)
    data = only(events, DeviceData)
    assert [(event.data, event.begins_block) for event in data] == [
        (b"abc", True),
        (b"", True),
        (END_PAYLOAD, True),
    ]
    assert len(events) == 3
    assert repr(data[0]).count("<3 bytes>") == 1


@pytest.mark.parametrize("data", [b"", b"abc"])
def test_initial_data_sent(data: bytes) -> None:
    """This mark takes the place of the end mark, with and without data before it."""
    payload = encode_data(data) if data else b""
    payload += Mark.DEV_INIT_DATA_SENT.encode()
    events = vfio_events(SectionType.PART, payload)
    assert [type(event) for event in events] == [DeviceData] * bool(data) + [
        InitDataSent
    ]


def test_long_data_comes_in_pieces() -> None:
    length = 2 * DATA_PIECE + 7
    data = bytes(range(256)) * (length // 256) + bytes(length % 256)
    stream = _STARTED + DEVICE.part(encode_data(data) + END_PAYLOAD)
    for sizes in ([1 << 30], [65_521], [256 * KIB, 1]):
        pieces = only(main_events(cut(stream, sizes), end=False), DeviceData)
        assert [len(piece.data) for piece in pieces] == [DATA_PIECE, DATA_PIECE, 7]
        assert [piece.begins_block for piece in pieces] == [True, False, False]
        assert b"".join(piece.data for piece in pieces) == data


def test_data_without_end_takes_no_memory() -> None:
    """However long a block says it is, no more than a piece of it is kept."""
    decoder = MainDecoder()
    decoder.received(_STARTED + DEVICE.part(encode_data(b""))[:13])
    decoder.received(b"\xff" * 8)
    read = bytes(256 * KIB)
    taken = 0
    for _ in range(64):
        decoder.received(read)
        taken += sum(
            len(event.data) for event in only(list(drain(decoder)), DeviceData)
        )
        assert len(decoder._buffer) < DATA_PIECE
    assert taken == 16 * MIB
    assert decoder.inside_piece
    assert not decoder.may_end


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"blob",
        END_PAYLOAD,
        END_PAYLOAD * 3 + b"\x7e\0\0\0\x2b",
        END_PAYLOAD + b"\x7e\0\0\0",
        b"\xff" * 7,
        Mark.DEV_CONFIG_STATE.encode(),
        bytes(5000),
    ],
    ids=["empty", "short", "end", "ends", "most of an end", "ff", "config", "long"],
)
def test_config(blob: bytes) -> None:
    """The end of a config is the end mark together with the footer, not alone."""
    (config,) = vfio_events(SectionType.FULL, encode_config(blob))
    assert isinstance(config, DeviceConfig)
    assert config.blob == blob
    assert repr(config).count(f"<{len(blob)} bytes>") == 1


def test_longest_config() -> None:
    blob = bytes(MAX_CONFIG)
    stream = _ENDED + DEVICE.full(encode_config(blob))
    for sizes in ([1 << 30], [65_521], [MAX_CONFIG + len(_ENDED) + 50, 1]):
        (config,) = only(main_events(cut(stream, sizes), end=False), DeviceConfig)
        assert config.blob == blob


def test_config_between_its_marks() -> None:
    """Multifd packets hold it in the same way; the rest is refused by name."""
    for blob in (b"", b"x", END_PAYLOAD):
        data = encode_config(blob)
        assert config_blob_untrusted(data, IDSTR) == blob
        assert config_blob_untrusted(memoryview(data), IDSTR) == blob
    for data in (b"", END_PAYLOAD, encode_config(b"")[:-1], b"x" + encode_config(b"")):
        with pytest.raises(PeerProtocolError, match=IDSTR):
            config_blob_untrusted(data, IDSTR)


def test_two_devices_mixed() -> None:
    """Sections of devices may come in any order, by section id."""
    stream = b"".join(
        [
            HEADER,
            DEVICE.start(),
            SECOND_DEVICE.start(),
            SECOND_DEVICE.part(encode_data(b"2") + END_PAYLOAD),
            DEVICE.part(encode_data(b"1") + END_PAYLOAD),
            SWITCHOVER,
            SECOND_DEVICE.end(),
            DEVICE.end(encode_data(b"3") + END_PAYLOAD),
            SECOND_DEVICE.full(),
            DEVICE.full(encode_config(b"4")),
            encode_end(),
        ]
    )
    events = same_events(stream, end=True)
    assert [(e.section.section_id, e.data) for e in only(events, DeviceData)] == [
        (43, b"2"),
        (42, b"1"),
        (42, b"3"),
    ]
    assert [e.section.section_id for e in only(events, DeviceConfig)] == [42]


def test_same_name_in_two_instances() -> None:
    one, two = Handler(42, "vfio", 0), Handler(43, "vfio", 1)
    events = same_events(minimal_stream(one, two), end=True)
    sections = [
        (event.section_id, event.instance_id)
        for event in only(events, Section)
        if event.type is SectionType.END
    ]
    assert sections == [(42, 0), (43, 1)]


# The end


def test_end_without_a_description() -> None:
    """A source that sends none may stop; with a return path only silence tells."""
    stream = minimal_stream(DEVICE)[:-5]
    decoder = MainDecoder()
    for piece in cut(stream, [1]):
        assert not decoder.may_end
        decoder.received(piece)
        list(drain(decoder))
    assert (decoder.may_end, decoder.complete) == (True, False)
    assert not decoder.inside_piece
    decoder.received_eof()
    assert list(drain(decoder)) == []
    assert (decoder.may_end, decoder.complete) == (True, True)


def test_description_behind_vfio_sections_only() -> None:
    """It is not read, so it may be anything."""
    for text in (b"", b"{}", b"no JSON\0", bytes(100_000)):
        stream = minimal_stream(DEVICE)[:-6] + encode_end(text)
        eof = len(minimal_stream(DEVICE)) - 6
        for sizes in ([1 << 30], [977]):
            events = main_events(cut(stream, sizes))
            assert events[-2:] == [EndOfSections(eof), Description(text, eof + 1)]


def machine_stream(
    *sections: bytes, text: bytes | None, before: bytes = _ENDED
) -> bytes:
    """Return a stream that ends like that of a whole machine."""
    end = EOF if text is None else encode_end(text)
    return b"".join([before, TIMER.full(b"\x7e" + bytes(19)), *sections, end])


_FITS = describe((TIMER, 20), (DEVICE, 8), (TIMER, 0))


def test_tail_that_is_described() -> None:
    """Every section of it is told apart."""
    stream = machine_stream(DEVICE.full(), TIMER.full(b""), text=_FITS)
    events = same_events(stream, end=True)
    sections = only(events, Section)[2:]
    assert [section.idstr for section in sections] == ["timer", IDSTR, "timer"]
    for section in sections:
        header = b"\4" + be32(section.section_id) + bytes([len(section.idstr)])
        assert stream[section.offset :].startswith(header + section.idstr.encode())
    eof = len(stream) - len(_FITS) - 6
    assert events[-2:] == [EndOfSections(eof), Description(_FITS, eof + 1)]


def test_tail_behind_vfio_sections() -> None:
    """The description also lists the FULL sections that came before the tail."""
    stream = machine_stream(
        SECOND_DEVICE.full(encode_config(b"c")),
        text=describe((DEVICE, 8), (TIMER, 20), (SECOND_DEVICE, 17)),
        before=b"".join(
            [
                _STARTED,
                SECOND_DEVICE.start(),
                SWITCHOVER,
                DEVICE.end(),
                SECOND_DEVICE.end(),
                DEVICE.full(),
            ]
        ),
    )
    events = same_events(stream, end=True)
    assert [section.idstr for section in only(events, Section)[4:]] == [
        IDSTR,
        "timer",
        SECOND_DEVICE.idstr,
    ]
    assert [config.blob for config in only(events, DeviceConfig)] == [b"c"]


_DEVICE_ENTRY = {"name": IDSTR, "instance_id": 0, "size": 8, "fields": []}


def _text(timer: dict[str, Any]) -> bytes:
    return json.dumps({"devices": [timer, _DEVICE_ENTRY]}).encode()


MISFITS = {
    "none": None,
    "empty": b"",
    "an empty object": b"{}",
    "no list": b'{"devices": 3}',
    "null": b'{"devices": null}',
    "an object": b'{"devices": {"a": 1}}',
    "too short": describe((TIMER, 20)),
    "too long": describe((TIMER, 20), (DEVICE, 8), (TIMER, 0), (TIMER, 0)),
    "another size": describe((TIMER, 19), (DEVICE, 8), (TIMER, 0)),
    "another order": describe((DEVICE, 8), (TIMER, 20), (TIMER, 0)),
    "another name": describe((Handler(3, "rtc", 0, 2), 20), (DEVICE, 8), (TIMER, 0)),
    "another instance": describe((attrs.evolve(TIMER, instance_id=1), 20), (DEVICE, 8)),
    "huge size": describe((TIMER, MAX_TAIL + 1), (DEVICE, 8), (TIMER, 0)),
    "sizes up to the end of a section": describe((TIMER, 20), (DEVICE, 8)),
    "size true": _text({"name": "timer", "instance_id": 0, "size": True}),
    "size -1": _text({"name": "timer", "instance_id": 0, "size": -1}),
    "size 20.0": _text({"name": "timer", "instance_id": 0, "size": 20.0}),
    "size 1e999": b'{"devices": [{"name": "timer", "instance_id": 0, "size": 1e999}]}',
    "size text": _text({"name": "timer", "instance_id": 0, "size": "20"}),
    "no size": _text({"name": "timer", "instance_id": 0}),
    "no name": _text({"instance_id": 0, "size": 20}),
    "no fields": _text({"name": "timer", "instance_id": 0, "vmsd_name": "t"}),
    "odd fields": _text(
        {"name": "timer", "instance_id": 0, "vmsd_name": "t", "fields": [3, "x"]}
    ),
    "text as fields": _text(
        {"name": "timer", "instance_id": 0, "vmsd_name": "t", "fields": "abc"}
    ),
    "fields like the sky": _text(
        {
            "name": "timer",
            "instance_id": 0,
            "vmsd_name": "t",
            "fields": [{"size": MAX_TAIL, "array_len": MAX_TAIL}] * 100,
        }
    ),
    "odd subsections": _text(
        {
            "name": "timer",
            "instance_id": 0,
            "vmsd_name": "t",
            "fields": [],
            "subsections": None,
        }
    ),
    "too long to be parsed": _FITS + b" " * (4 * MIB),
}


@pytest.mark.parametrize("text", MISFITS.values(), ids=MISFITS)
def test_tail_that_is_not_described(text: bytes | None) -> None:
    """Then the sections of VFIO devices are found by their headers."""
    stream = machine_stream(
        DEVICE.full(encode_config(b"config")), TIMER.full(b""), text=text
    )
    for sizes in ([1 << 30], [64 * KIB, 3], [1] if len(stream) < 5000 else [977]):
        events = main_events(cut(stream, sizes))
        (full,) = only(events, Section)[2:]
        assert full == DEVICE.section(
            SectionType.FULL, len(_ENDED + TIMER.full(bytes(20)))
        )
        (config,) = only(events, DeviceConfig)
        assert (config.section, config.blob) == (full, b"config")
        eof = len(stream) - 1 - (0 if text is None else 5 + len(text))
        assert only(events, EndOfSections) == [EndOfSections(eof)]
        descriptions = [] if text is None else [Description(text, eof + 1)]
        assert only(events, Description) == descriptions


@pytest.mark.parametrize("payload", [END_PAYLOAD, READY_PAYLOAD])
def test_dummies_found_by_search(payload: bytes) -> None:
    """Devices that use multifd leave no more than a mark in the tail."""
    stream = machine_stream(DEVICE.full(payload), text=b"{}")
    events = same_events(stream, end=True)
    assert only(events, DeviceConfig) == []
    assert [section.type for section in only(events, Section)] == [
        SectionType.START,
        SectionType.END,
        SectionType.FULL,
    ]


def test_tail_that_only_looks_like_sections() -> None:
    """A description that fits by its lengths must also fit what stands there."""
    odd = [
        # Where a section should begin there is no FULL section,
        b"\1" + TIMER.full(b"")[1:],
        # or its name is not printable,
        attrs.evolve(TIMER, idstr="t\nmer").full(b""),
        # or it is cut.
        TIMER.full(b"")[:5],
        b"\4\0\0\0\3\xff",
    ]
    for section in odd:
        text = describe(
            (TIMER, 20), (DEVICE, 8), (attrs.evolve(TIMER, idstr="t\nmer"), 0)
        )
        stream = machine_stream(DEVICE.full(), section, TIMER.full(b""), text=text)
        events = same_events(stream, end=True)
        assert [event.idstr for event in only(events, Section)] == [IDSTR] * 3
    header = TIMER.full(b"")[:-5]
    for length in range(len(header)):
        events_of_tail = tail_events_untrusted(
            TailBytes(header[:length] + b"\x7e\0\0\0\0\0", _FITS, 0), Sections(), 0
        )
        assert [type(event) for event in events_of_tail] == [EndOfSections, Description]


def lookalike(text: bytes) -> bytes:
    """Return what a footer, an EOF and a description with *text* look like."""
    return b"\x7e\0\0\0\3\0\6" + be32(len(text)) + text


@pytest.mark.parametrize(
    "state",
    [
        lookalike(b"{}" + bytes(40)),
        lookalike(b'{"devices": []}' + bytes(1)),
        lookalike(b"{" * 300 + b"\0"),
        lookalike(b"{" + b"x" * 70_000)[:5000],
        lookalike(b"{" + b"x" * 70_000)[:200] * 20,
        b"\x7e\0\0\0\3\0\6\0\0\0\0",
        b"\x7e\0\0\0\3\0\6\0\0\0\0" * 30,
        b"\x7e\0\0\0\3\0" * 30,
        b"\x7e\x7e\0\6\0\0\6\0\0\0\7{",
    ],
)
def test_state_that_looks_like_a_description(state: bytes) -> None:
    """FULL sections hold anything, and do not end where they seem to."""
    text = describe((TIMER, 20), (TIMER, len(state)), (DEVICE, 8))
    stream = machine_stream(TIMER.full(state), DEVICE.full(), text=text)
    whole = main_events([stream])
    assert only(whole, Description)[0].text == text
    assert len(only(whole, Section)) == 5
    for sizes in ([1], [7], [977]):
        assert main_events(cut(stream, sizes)) == whole


def test_footer_that_looks_like_half_a_description() -> None:
    """The lookalike overlaps the real beginning, which is found all the same."""
    # A section id and a length that go on behind the 7e of a payload like a footer,
    # an EOF, a type, another length and a brace.
    last = Handler(0x0600, "timer", 0, 2)
    text = describe((TIMER, 20), (DEVICE, 8), (last, 3)).ljust(0x7B0041)
    stream = machine_stream(DEVICE.full(), last.full(b"\x7e\0\0"), text=text)
    at = stream.index(b"\x7e\0\0\x7e")
    assert stream[at + 5 : at + 8] == b"\0\6\0"
    assert stream[at + 11 :].startswith(b"{\0")
    events = main_events(cut(stream, [MIB]))
    assert only(events, Description)[0].text == text


def test_state_that_ends_a_read_like_an_empty_description() -> None:
    """It is only silence or the end of the stream that make it one."""
    state = b"\x7e\0\0\0\3\0\6\0\0\0\0"
    text = describe((TIMER, 20), (TIMER, len(state)), (DEVICE, 8))
    stream = machine_stream(TIMER.full(state), DEVICE.full(), text=text)
    at = stream.index(state) + len(state)
    decoder = MainDecoder()
    decoder.received(stream[:at])
    early = list(drain(decoder))
    assert only(early, EndOfSections) == []
    assert decoder.may_end
    decoder.received(stream[at:])
    assert early + list(drain(decoder)) == main_events([stream])


def test_description_that_comes_slowly_is_searched_once() -> None:
    """A megabyte in reads of 16 bytes takes no longer than it should."""
    text = describe((TIMER, 20), (DEVICE, 8)) + b" " * MIB
    stream = machine_stream(DEVICE.full(), text=text)
    events = main_events(cut(stream, [16]))
    assert only(events, Description)[0].text == text


def test_tail_must_end_like_one() -> None:
    """Were the tail split in the wrong place, that would be noticed."""
    for body in (b"", bytes(20), b"\x7e\0\0\0\3\1"):
        with pytest.raises(PeerProtocolError, match="no end of sections") as caught:
            tail_events_untrusted(TailBytes(body, None, 100), Sections(), 0)
        assert caught.value.offset == 100 + len(body) - 1


def test_lengths_in_a_description() -> None:
    """Fields count as often as their array is long, subsections with their headers."""
    text = b"""{"page_size": 4096, "devices": [
        {"name": "old", "instance_id": 1, "size": 7, "fields": []},
        {"name": "new", "instance_id": 0, "vmsd_name": "new", "version": 1, "fields": [
            {"name": "a", "size": 4},
            {"name": "b", "array_len": 3, "size": 2},
            {"name": "b", "index": 3, "size": 5},
            {"name": "c", "size": 9, "struct": {"fields": [{"size": 9}]}}
        ], "subsections": [
            {"vmsd_name": "new/x", "fields": [{"size": 8}], "subsections": [
                {"vmsd_name": "new/x/y", "fields": []}
            ]}
        ]}
    ]}"""
    assert entries_untrusted(text) == [
        Entry("old", 1, 7),
        Entry("new", 0, 4 + 6 + 5 + 9 + (6 + 5 + 8) + (6 + 7)),
    ]
    assert entries_untrusted(b"[]") is None
    assert entries_untrusted(b'{"devices": []}') == []
