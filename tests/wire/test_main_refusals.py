"""Pure tests: main streams that are refused, with what the error says, and where."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import attrs
import pytest

from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire import _main_decoder
from trio_vfio._wire._limits import KIB, MAX_CONFIG, MIB
from trio_vfio._wire._main_encode import (
    END_PAYLOAD,
    SETUP_PAYLOAD,
    encode_data,
    encode_end,
)
from trio_vfio._wire._main_events import SectionType
from trio_vfio._wire._vfio_section import Mark, encode_config

from ..streams import (
    DEVICE,
    EOF,
    HEADER,
    IDSTR,
    OTHER,
    RAM,
    RAM_END,
    SECOND_DEVICE,
    SWITCHOVER,
    TIMER,
    Handler,
    describe,
    minimal_stream,
)
from .feeding import cut, main_events


@attrs.frozen
class Refusal:
    """A stream, where in it the error is, and what the message has to tell."""

    name: str
    before: bytes
    """All that is right, and makes the error's offset."""
    wrong: bytes
    words: tuple[str, ...]
    ahead: int = 0
    """How far behind `before` the offending piece begins."""

    @property
    def stream(self) -> bytes:
        return self.before + self.wrong


def check(refusal: Refusal, pieces: Iterable[bytes]) -> None:
    with pytest.raises(PeerProtocolError) as caught:
        main_events(pieces)
    for word in refusal.words:
        assert word in caught.value.reason
    assert caught.value.offset == len(refusal.before) + refusal.ahead
    assert f"(at byte {caught.value.offset})" in str(caught.value)


def be32(number: int) -> bytes:
    return struct.pack("!I", number)


def be64(number: int) -> bytes:
    return struct.pack("!Q", number)


def subsection(name: str, version: int = 1) -> bytes:
    return bytes([5, len(name)]) + name.encode() + be32(version)


def command(number: int, payload: bytes) -> bytes:
    return struct.pack("!BHH", 8, number, len(payload)) + payload


def header_of(handler: Handler, type_: SectionType) -> bytes:
    return handler.encode(type_, b"")[:-5]


_BEFORE_CONFIGURATION = b"QEVM\0\0\0\3"
_CAPABILITIES = subsection("configuration/capabilities")
_PAGE_BITS = subsection("configuration/target-page-bits")

HEADERS = [
    Refusal("magic", b"", b"QEVX\0\0\0\3", ("magic 0x51455658",)),
    Refusal("version 2", b"QEVM", be32(2), ("version 2",)),
    Refusal(
        "endless machine type",
        _BEFORE_CONFIGURATION + b"\7",
        be32(256),
        ("machine type of 256 bytes",),
    ),
    Refusal(
        "no machine type",
        _BEFORE_CONFIGURATION + b"\7",
        be32(0) + b"\0",
        ("machine type b''",),
    ),
    Refusal(
        "machine type with a line feed",
        _BEFORE_CONFIGURATION + b"\7" + be32(3),
        b"pc\n",
        (r"machine type b'pc\n'",),
    ),
    Refusal(
        "subsection of another version",
        HEADER + _PAGE_BITS[:-4],
        be32(2) + be32(12),
        ("configuration/target-page-bits", "version 2"),
    ),
    Refusal("tiny pages", HEADER + _PAGE_BITS, be32(9), ("2**9",)),
    Refusal("huge pages", HEADER + _PAGE_BITS, be32(17), ("2**17",)),
    Refusal("absurd pages", HEADER + _PAGE_BITS, be32(0xFFFFFFFF), ("2**4294967295",)),
    Refusal(
        "too many capabilities",
        HEADER + _CAPABILITIES,
        be32(65),
        ("65 capabilities",),
    ),
    Refusal(
        "mapped-ram",
        HEADER + _CAPABILITIES + be32(1) + b"\x0a",
        b"mapped-ram",
        ("mapped-ram",),
    ),
    Refusal(
        "unknown subsection",
        HEADER + subsection("configuration/new")[:-4],
        be32(1),
        ("'configuration/new'",),
    ),
    Refusal(
        "subsection without a name", HEADER + b"\5", b"\0", ("printable idstr: b''",)
    ),
]

PIECES = [
    *(
        Refusal(f"piece {byte:#04x}", HEADER, bytes([byte]), (f"{byte:#04x}",))
        for byte in (0x06, 0x07, 0x09, 0x7E, 0xFF)
    ),
    Refusal("subsection later", HEADER + SWITCHOVER, b"\5", ("0x05",)),
    Refusal("second header", HEADER + DEVICE.start(), HEADER, ("0x51",)),
    *(
        Refusal(
            f"command {number} with {length} bytes",
            HEADER,
            command(number, bytes(length)),
            (f"command {name}", f"{length} bytes"),
        )
        for number, length, name in [
            (0, 0, "0"),
            (1, 1, "OPEN_RETURN_PATH"),
            (2, 0, "PING"),
            (2, 3, "PING"),
            (2, 0xFFFF, "PING"),
            (3, 8, "POSTCOPY_ADVISE"),
            (4, 1, "POSTCOPY_LISTEN"),
            (5, 1, "POSTCOPY_RUN"),
            (7, 0, "PACKAGED"),
            (7, 5, "PACKAGED"),
            (8, 1, "ENABLE_COLO"),
            (9, 4, "POSTCOPY_RESUME"),
            (11, 1, "SWITCHOVER_START"),
        ]
    ),
    Refusal(
        "second switchover",
        HEADER + SWITCHOVER,
        SWITCHOVER,
        ("second SWITCHOVER_START",),
    ),
    Refusal(
        "switchover behind an END",
        HEADER + DEVICE.start() + DEVICE.end(),
        SWITCHOVER,
        ("SWITCHOVER_START", "end of a section"),
    ),
]

_STARTED = HEADER + DEVICE.start()
_SWITCHED = _STARTED + SWITCHOVER
_ENDED = _SWITCHED + DEVICE.end()

SECTIONS = [
    Refusal(
        "iterable section of unknown layout",
        HEADER,
        header_of(Handler(2, "block"), SectionType.START),
        ("iterable", "'block'"),
    ),
    Refusal(
        "name that only ends like a device's",
        HEADER,
        header_of(Handler(2, "xvfio"), SectionType.START),
        ("'xvfio'",),
    ),
    Refusal(
        "VFIO of another version",
        HEADER,
        header_of(Handler(42, IDSTR, 0, 2), SectionType.START),
        (IDSTR, "version 2"),
    ),
    Refusal(
        "FULL of another version",
        _ENDED,
        header_of(Handler(42, IDSTR, 0, 2), SectionType.FULL),
        (IDSTR, "version 2"),
    ),
    Refusal(
        "RAM of another version",
        HEADER,
        header_of(Handler(1, "ram", 0, 3), SectionType.START),
        ("ram", "version 3"),
    ),
    Refusal(
        "section id in use",
        _STARTED,
        header_of(Handler(42, OTHER), SectionType.START),
        ("section id 42", OTHER, "twice"),
    ),
    Refusal(
        "device in use",
        _STARTED,
        header_of(Handler(43, IDSTR), SectionType.START),
        (IDSTR, "twice"),
    ),
    Refusal(
        "257 devices",
        HEADER + b"".join(Handler(n, f"{n}/vfio").start() for n in range(256)),
        header_of(Handler(256, IDSTR), SectionType.START),
        (IDSTR, "256 devices"),
    ),
    Refusal(
        "257 devices beside RAM",
        HEADER
        + RAM.encode(SectionType.START, RAM_END)
        + b"".join(Handler(n + 2, IDSTR, n).start() for n in range(256)),
        header_of(Handler(258, OTHER), SectionType.START),
        (OTHER, "256 devices"),
    ),
    Refusal(
        "RAM again and again",
        HEADER
        + b"".join(
            Handler(n, "ram", n, 4).encode(SectionType.START, RAM_END)
            for n in range(256)
        ),
        header_of(Handler(256, "ram", 256, 4), SectionType.START),
        ("ram", "256"),
    ),
    Refusal(
        "START after the switchover",
        _SWITCHED,
        header_of(SECOND_DEVICE, SectionType.START),
        ("START", OTHER, "after the switchover"),
    ),
    Refusal(
        "START after an END",
        _STARTED + DEVICE.end(),
        header_of(SECOND_DEVICE, SectionType.START),
        ("START", OTHER, "after the switchover"),
    ),
    Refusal(
        "PART of nobody",
        _STARTED,
        SECOND_DEVICE.part(),
        ("PART", "section 43", "never started"),
    ),
    Refusal(
        "END of nobody",
        _STARTED,
        SECOND_DEVICE.end(),
        ("END", "section 43", "never started"),
    ),
    Refusal("PART after END", _ENDED, DEVICE.part(), ("PART", IDSTR, "after its END")),
    Refusal("second END", _ENDED, DEVICE.end(), ("END", IDSTR, "after its END")),
    Refusal(
        "FULL of nobody",
        _ENDED,
        SECOND_DEVICE.full(),
        ("FULL", OTHER, "never started"),
    ),
    Refusal(
        "FULL of a device under the section id of another",
        _ENDED,
        Handler(42, OTHER).full(),
        ("FULL", OTHER, "never started"),
    ),
    Refusal(
        "FULL of another instance",
        _ENDED,
        Handler(42, IDSTR, 1).full(),
        ("FULL", IDSTR, "never started"),
    ),
    Refusal("FULL before END", _SWITCHED, DEVICE.full(), ("FULL", IDSTR, "its END")),
    Refusal(
        "second FULL", _ENDED + DEVICE.full(), DEVICE.full(), ("second FULL", IDSTR)
    ),
    Refusal(
        "early FULL that has no length",
        _STARTED,
        Handler(9, "0000:00:07.0/virtio-net").full(bytes(44)),
        ("early", "'0000:00:07.0/virtio-net'"),
    ),
    Refusal(
        "footer of another section",
        _STARTED,
        DEVICE.part()[:-1] + b"\x2b",
        (IDSTR, "7e 00 00 00 2b", "PART", "7e 00 00 00 2a"),
        ahead=5 + 8,
    ),
    Refusal(
        "no footer",
        _STARTED,
        DEVICE.part()[:-5] + SWITCHOVER,
        (IDSTR, "08 00 0b 00 00"),
        ahead=5 + 8,
    ),
    Refusal(
        "section without a name",
        HEADER,
        b"\1\0\0\0\1\0",
        ("printable idstr: b''",),
        ahead=5,
    ),
    Refusal(
        "section with an odd name",
        HEADER,
        b"\1\0\0\0\1\5a\nb\x7fc",
        (r"b'a\nb\x7fc'",),
        ahead=6,
    ),
]


def part(payload: bytes) -> bytes:
    return DEVICE.part(payload)


VFIO = [
    Refusal(
        "unknown mark",
        _STARTED,
        part(be64(0xFFFFFFFF_EF100007)),
        (IDSTR, "0xffffffffef100007"),
        ahead=5,
    ),
    Refusal(
        "unknown mark behind data",
        _STARTED,
        part(encode_data(b"abc") + be64(1)),
        (IDSTR, "0x0000000000000001"),
        ahead=5 + 19,
    ),
    Refusal(
        "setup without its end",
        HEADER,
        DEVICE.encode(SectionType.START, SETUP_PAYLOAD[:8] * 2),
        (IDSTR, "setup", "end mark"),
        ahead=1 + 4 + 1 + len(IDSTR) + 8 + 8,
    ),
    *(
        Refusal(
            f"{mark.name} in {type_.name}",
            before,
            DEVICE.encode(type_, mark.encode() + END_PAYLOAD),
            (IDSTR, mark.name, type_.name),
            ahead=5 if type_ in (SectionType.PART, SectionType.END) else 31,
        )
        for type_, before, marks in [
            (SectionType.START, HEADER, (2, 4, 5, 6)),
            (SectionType.PART, _STARTED, (2, 3, 6)),
            (SectionType.END, _SWITCHED, (2, 3, 5, 6)),
            (SectionType.FULL, _ENDED, (3, 4, 5)),
        ]
        for mark in Mark
        if mark & 0xF in marks
    ),
    Refusal(
        "endless config",
        _ENDED,
        DEVICE.encode(SectionType.FULL, encode_config(bytes(MAX_CONFIG + 1))),
        ("FULL section", IDSTR, "over 1048576 bytes"),
        ahead=31,
    ),
]


def ram(records: bytes) -> bytes:
    return RAM.encode(SectionType.START, records)


_RAM_HEADER = len(header_of(RAM, SectionType.START))

RAM_RECORDS = [
    *(
        Refusal(
            f"RAM record {flags:#x}",
            HEADER,
            ram(be64(0x1000 | flags) + RAM_END),
            (f"flags {flags:#x}",),
            ahead=_RAM_HEADER,
        )
        for flags in (0x0, 0x1, 0x20, 0x24, 0x30, 0x80, 0x100, 0x220, 0x0A, 0x18, 0x210)
    ),
    Refusal(
        "block beyond the total",
        HEADER,
        ram(be64(0x10004) + b"\6pc.ram" + be64(0x10001)),
        ("pc.ram", str(0x10001), str(0x10000)),
        ahead=_RAM_HEADER + 8 + 7,
    ),
    Refusal(
        "empty block",
        HEADER,
        ram(be64(0x10004) + b"\6pc.ram" + be64(0)),
        ("pc.ram", "0 bytes", str(0x10000)),
        ahead=_RAM_HEADER + 8 + 7,
    ),
    Refusal(
        "page of a block without a name",
        HEADER,
        ram(be64(0x1008) + b"\0"),
        ("printable idstr: b''",),
        ahead=_RAM_HEADER + 8,
    ),
]

_FULL = _ENDED + DEVICE.full()

ENDS = [
    Refusal("end without the FULL", _ENDED, EOF, ("no FULL section", IDSTR)),
    Refusal("something behind the EOF", _FULL + EOF, b"\7", ("0x07",)),
    Refusal(
        "endless description",
        _FULL + EOF + b"\6",
        be32(1 << 24),
        ("description of 16777216 bytes",),
    ),
    Refusal("more behind the end", minimal_stream(DEVICE), b"\0", ("behind the end",)),
    Refusal(
        "more behind the description",
        _FULL + encode_end(b"{}"),
        b"QEVM",
        ("behind the end",),
    ),
]

_TIMER_FULL = TIMER.full(bytes(20))
_DESCRIBED = describe((TIMER, 20), (DEVICE, 8))


def tail(*sections: bytes, text: bytes) -> bytes:
    return b"".join([_TIMER_FULL, *sections, encode_end(text)])


TAILS = [
    Refusal(
        "more behind the description of a machine",
        _ENDED + tail(DEVICE.full(), text=_DESCRIBED),
        b"\0",
        ("behind the end",),
    ),
    Refusal(
        "machine without the FULL",
        _ENDED,
        tail(text=describe((TIMER, 20))),
        ("no FULL section", IDSTR),
        ahead=len(_TIMER_FULL),
    ),
    Refusal(
        "machine without the FULL, which its description does not fit",
        _ENDED,
        tail(text=b'{"devices": []}'),
        ("no FULL section", IDSTR),
        ahead=len(_TIMER_FULL),
    ),
    Refusal(
        "machine with a second FULL",
        _FULL + _TIMER_FULL,
        DEVICE.full() + encode_end(describe((DEVICE, 8), (TIMER, 20), (DEVICE, 8))),
        ("second FULL", IDSTR),
    ),
    Refusal(
        "machine with the FULL of nobody",
        _ENDED + _TIMER_FULL,
        DEVICE.full()
        + SECOND_DEVICE.full()
        + encode_end(describe((TIMER, 20), (DEVICE, 8), (SECOND_DEVICE, 8))),
        ("FULL", OTHER, "never started"),
        ahead=len(DEVICE.full()),
    ),
    Refusal(
        "machine with FULL before END",
        _STARTED
        + SECOND_DEVICE.start()
        + SWITCHOVER
        + SECOND_DEVICE.end()
        + _TIMER_FULL,
        DEVICE.full()
        + SECOND_DEVICE.full()
        + encode_end(describe((TIMER, 20), (DEVICE, 8), (SECOND_DEVICE, 8))),
        ("FULL", IDSTR, "before its END"),
    ),
    Refusal(
        "FULL that is neither dummy nor config",
        _ENDED + _TIMER_FULL,
        DEVICE.full(bytes(8)) + encode_end(_DESCRIBED),
        ("config", IDSTR, "marks"),
    ),
    Refusal(
        "the same, by search",
        _ENDED + _TIMER_FULL,
        DEVICE.full(bytes(8) + END_PAYLOAD) + encode_end(b"{}"),
        ("config", IDSTR, "marks"),
    ),
    Refusal(
        "end mark of the config only, by search",
        _ENDED + _TIMER_FULL,
        DEVICE.full(Mark.DEV_CONFIG_STATE.encode()) + encode_end(b"{}"),
        ("no end of the FULL section", IDSTR),
    ),
    Refusal(
        "endless config in the tail",
        _ENDED + _TIMER_FULL,
        DEVICE.full(encode_config(bytes(MAX_CONFIG + 1)))
        + encode_end(describe((TIMER, 20), (DEVICE, MAX_CONFIG + 17))),
        ("config", IDSTR, "1048577 bytes"),
    ),
    Refusal(
        "endless config in the tail, by search",
        _ENDED + _TIMER_FULL,
        DEVICE.full(encode_config(bytes(MAX_CONFIG + 1))) + encode_end(b"{}"),
        ("no end of the FULL section", IDSTR),
    ),
    *(
        Refusal(
            f"description {name}",
            _ENDED,
            tail(DEVICE.full(), text=text),
            ("description is not JSON", word),
            ahead=len(_TIMER_FULL) + len(DEVICE.full()) + 1,
        )
        for name, text, word in [
            ("that is no JSON", b"{devices}", "Expecting property name"),
            ("that is cut", b'{"devices": [', "Expecting value"),
            ("with NaN", b'{"devices": [NaN]}', "NaN is not JSON"),
            ("with infinity", b'{"devices": [-Infinity]}', "-Infinity is not JSON"),
            ("that is not UTF-8", b'{"devices\xff', "UnicodeDecodeError"),
            (
                "with an absurd number",
                b'{"devices": ' + b"9" * 10_000 + b"}",
                "ValueError",
            ),
            (
                "nested too deep",
                b'{"devices": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
                "RecursionError",
            ),
        ]
    ),
]

ALL = HEADERS + PIECES + SECTIONS + VFIO + RAM_RECORDS + ENDS + TAILS


@pytest.mark.parametrize("refusal", ALL, ids=[each.name for each in ALL])
def test_refused(refusal: Refusal) -> None:
    """Whole and in reads of 64 KiB: the same words, the same place."""
    check(refusal, [refusal.stream])
    check(refusal, cut(refusal.stream, [64 * KIB]))


@pytest.mark.parametrize(
    "refusal",
    [each for each in ALL if len(each.stream) < 5000],
    ids=[each.name for each in ALL if len(each.stream) < 5000],
)
def test_refused_byte_by_byte(refusal: Refusal) -> None:
    check(refusal, cut(refusal.stream, [1]))


ENDINGS = [
    ("header", b"QEVM\0", "its header"),
    ("configuration", HEADER[:-1], "its configuration"),
    ("header only", HEADER, "its configuration"),
    ("START", _STARTED[:-1], f"the START section of {IDSTR}"),
    ("between sections", _STARTED, "the middle of its sections"),
    ("section header", _STARTED + b"\2\0", "the middle of its sections"),
    (
        "data",
        _STARTED + DEVICE.part(encode_data(bytes(2 * MIB)))[: 3 * MIB // 2],
        f"the PART section of {IDSTR}",
    ),
    ("command", _STARTED + b"\x08\0", "a command"),
    ("packaged", HEADER + command(7, be32(9)) + bytes(8), "a command"),
    (
        "config",
        _ENDED + DEVICE.full(encode_config(bytes(99)))[:-1],
        f"the FULL section of {IDSTR}",
    ),
    ("description", minimal_stream(DEVICE)[:-1], "its description"),
    ("description's type", minimal_stream(DEVICE)[:-4], "its description"),
    ("tail", _ENDED + _TIMER_FULL, "the FULL sections at its end"),
    (
        "tail's description",
        _ENDED + tail(DEVICE.full(), text=_DESCRIBED)[:-1],
        "the FULL sections at its end",
    ),
]


@pytest.mark.parametrize(
    ("stream", "context"),
    [ending[1:] for ending in ENDINGS],
    ids=[ending[0] for ending in ENDINGS],
)
def test_refused_end(stream: bytes, context: str) -> None:
    """A stream that stops too early says in what, and how many bytes there were."""
    for sizes in ([1 << 30], [97]):
        with pytest.raises(PeerProtocolError) as caught:
            main_events(cut(stream, sizes))
        assert caught.value.reason == f"stream ends in {context}"
        assert caught.value.offset == len(stream)


def test_empty_stream() -> None:
    with pytest.raises(PeerProtocolError, match="stream ends in its header") as caught:
        main_events([])
    assert caught.value.offset == 0


@pytest.mark.parametrize("sizes", [[1 << 30], [100]], ids=["whole", "cut"])
def test_endless_tail(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    """The FULL sections of a machine may not take memory without end."""
    monkeypatch.setattr(_main_decoder, "MAX_TAIL", 2000)
    stream = _ENDED + TIMER.full(bytes(2500))
    with pytest.raises(PeerProtocolError) as caught:
        main_events(cut(stream, sizes))
    assert caught.value.reason == "the FULL sections at its end: over 2000 bytes"


@pytest.mark.parametrize("sizes", [[1 << 30], [100]], ids=["whole", "cut"])
def test_endless_description(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    """Nor may what looks like a description, which may be longer than its tail."""
    monkeypatch.setattr(_main_decoder, "MAX_TAIL", 2000)
    monkeypatch.setattr(_main_decoder, "MAX_DESCRIPTION", 1000)
    long = describe((TIMER, 20), (DEVICE, 8)) + b" " * 3500
    stream = _ENDED + tail(DEVICE.full(), text=long)
    with pytest.raises(PeerProtocolError) as caught:
        main_events(cut(stream[:-1], sizes))
    assert caught.value.reason == "the FULL sections at its end: over 3000 bytes"
    assert main_events([stream[:2500]], end=False)


def test_a_refusal_stays() -> None:
    """A decoder that refused something goes on to refuse."""
    decoder = _main_decoder.MainDecoder()
    decoder.received(minimal_stream(DEVICE) + b"x")
    for _ in range(2):
        with pytest.raises(PeerProtocolError, match="behind the end"):
            while decoder.next_event() is not None:
                pass
    with pytest.raises(PeerProtocolError, match="behind the end") as caught:
        decoder.received(b"y")
    assert caught.value.offset == len(minimal_stream(DEVICE))
    decoder.received(b"")
