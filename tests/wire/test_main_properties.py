"""Pure tests: main streams of all kinds, whole, cut, spoiled and made up."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings, strategies as st

from tests.forms import form
from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire._idstr import idstr_untrusted, is_vfio
from trio_vfio._wire._main_decoder import MainDecoder
from trio_vfio._wire._main_events import MainEvent
from trio_vfio.testing.strategies import changed, changes, garbage, idstrs

from ..captures_data import COMPLETE, CaptureFiles
from ..strategies import main_streams, splits
from ..streams import HEADER, StreamBuilder
from .feeding import cut, drain, main_events


def outcome(raw: bytes, sizes: list[int]) -> tuple[list[MainEvent], str, int | None]:
    """Return the events that come before the refusal, what it says, and where."""
    decoder = MainDecoder()
    events: list[MainEvent] = []
    try:
        for piece in cut(raw, sizes):
            decoder.received(piece)
            for event in drain(decoder):
                events.append(event)
                # Each takes bytes of its own, so a decoder cannot go round in circles.
                assert len(events) <= 2 * len(raw) + 2
        decoder.received_eof()
        events += drain(decoder)
    except PeerProtocolError as error:
        return events, error.reason, error.offset
    assert decoder.complete
    return events, "", None


@settings(max_examples=form(short=20, long=60))
@given(main_streams(), splits)
def test_any_split_gives_the_same_events(
    stream: StreamBuilder, sizes: list[int]
) -> None:
    raw = bytes(stream.data)
    assert main_events([raw]) == stream.events
    assert main_events(cut(raw, sizes)) == stream.events


@settings(max_examples=form(short=20, long=60))
@given(main_streams(), splits, st.binary(min_size=1, max_size=30))
def test_bytes_behind_the_end(
    stream: StreamBuilder, sizes: list[int], more: bytes
) -> None:
    raw = bytes(stream.data)
    reason = "bytes behind the end of the stream"
    for split in ([1 << 30], sizes):
        assert outcome(raw + more, split) == (stream.events, reason, len(raw))


@settings(max_examples=form(short=20, long=60))
@given(main_streams(), st.floats(0, 1, exclude_max=True), splits)
def test_streams_that_end_too_early(
    stream: StreamBuilder, where: float, sizes: list[int]
) -> None:
    """What came before is there; and it is an error, but for behind the EOF byte."""
    length = int(where * len(stream.data))
    raw = bytes(stream.data[:length])
    events, reason, offset = outcome(raw, [1 << 30])
    assert outcome(raw, sizes) == (events, reason, offset)
    if reason:
        assert reason.startswith("stream ends in")
        assert offset == length
    else:
        assert raw.endswith(b"\0")


@settings(max_examples=form(short=30, long=100))
@given(main_streams(), splits, changes())
def test_changed_streams(
    stream: StreamBuilder, sizes: list[int], where: list[tuple[float, int]]
) -> None:
    """Refused or not, the split does not matter."""
    raw = changed(bytes(stream.data), where)
    assert outcome(raw, sizes) == outcome(raw, [1 << 30])


@settings(max_examples=form(short=20, long=50))
@given(st.sampled_from(COMPLETE), changes(), st.sampled_from([1 << 30, 4099]))
def test_changed_captures(
    capture: CaptureFiles, where: list[tuple[float, int]], size: int
) -> None:
    """No change makes anything but a `PeerProtocolError`, or takes for ever."""
    _, reason, offset = outcome(changed(capture.main, where), [size])
    if reason:
        assert offset is not None
        assert 0 <= offset <= len(capture.main)


@settings(max_examples=form(short=20, long=50))
@given(st.sampled_from(COMPLETE), st.integers(0, 1200), st.integers(0, 255))
def test_changed_beginnings_of_captures(
    capture: CaptureFiles, at: int, value: int
) -> None:
    """The same where most of the structure is, and the split does not matter."""
    raw = capture.main
    raw = raw[:at] + bytes([value]) + raw[at + 1 :]
    assert outcome(raw, [4099]) == outcome(raw, [1 << 30])


@given(garbage(), splits, st.booleans())
def test_garbage(raw: bytes, sizes: list[int], header: bool) -> None:
    if header:
        raw = HEADER + raw
    assert outcome(raw, sizes) == outcome(raw, [1 << 30])


@given(idstrs())
def test_idstrs(idstr: str) -> None:
    assert idstr_untrusted(idstr.encode()) == idstr
    assert is_vfio(f"{idstr}/vfio")


@given(st.binary(max_size=20))
def test_idstrs_of_garbage(raw: bytes) -> None:
    try:
        idstr = idstr_untrusted(raw)
    except PeerProtocolError:
        return
    assert idstr.isprintable()
    assert idstr.encode() == raw


@pytest.mark.parametrize(
    ("idstr", "expected"),
    [
        ("vfio", True),
        ("0000:00:1c.0:00.0/vfio", True),
        ("/vfio", True),
        ("ram", False),
        ("xvfio", False),
        ("vfio/", False),
        ("0000:00:04.0/virtio-net", False),
    ],
)
def test_which_idstrs_are_devices(idstr: str, *, expected: bool) -> None:
    assert is_vfio(idstr) is expected


def test_unprintable_bytes() -> None:
    for byte in chain(range(0x20), range(0x7F, 0x100)):
        with pytest.raises(PeerProtocolError):
            idstr_untrusted(b"a" + bytes([byte]))
