"""Pure tests: what a destination says, both ways."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st

from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire._return_path import (
    SWITCHOVER_ACK,
    ReturnPathDecoder,
    ReturnPathFrame,
    ReturnPathType,
    pong,
    shut,
)
from trio_vfio.testing.strategies import garbage

from ..strategies import return_path_frames, splits
from .feeding import cut


def frames_of(raw: bytes, sizes: list[int]) -> list[ReturnPathFrame]:
    decoder = ReturnPathDecoder()
    frames = [frame for piece in cut(raw, sizes) for frame in decoder.received(piece)]
    decoder.received_eof()
    return frames


@given(st.lists(return_path_frames, max_size=10), splits)
def test_round_trip(frames: list[ReturnPathFrame], sizes: list[int]) -> None:
    raw = b"".join(frame.encode() for frame in frames)
    assert frames_of(raw, [len(raw) + 1]) == frames
    assert frames_of(raw, sizes) == frames


@pytest.mark.parametrize("value", [0, 1, 0xFFFF_FFFF])
def test_values(value: int) -> None:
    assert frames_of(pong(value).encode(), [1])[0].value == value
    assert shut(value).value == value
    assert shut(value).type is ReturnPathType.SHUT


@pytest.mark.parametrize("type_", ReturnPathType)
def test_every_type(type_: ReturnPathType) -> None:
    """Fixed lengths are those that QEMU checks; the others end at 512."""
    fixed = {1: 4, 2: 4, 4: 12, 6: 4, 7: 0}
    for length in range(516):
        frame = ReturnPathFrame(type_, bytes(length))
        if length <= 512 and length == fixed.get(type_, length):
            assert frames_of(frame.encode(), [3]) == [frame]
            continue
        with pytest.raises(PeerProtocolError) as caught:
            frames_of(SWITCHOVER_ACK.encode() + frame.encode(), [3])
        assert caught.value.reason == (
            f"return path message {type_.name} of {length} bytes"
        )
        assert caught.value.offset == 4


@pytest.mark.parametrize("number", [0, 8, 0x11, 0xFFFF])
def test_unknown_type(number: int) -> None:
    """It is refused with its header; its length is not waited for."""
    raw = pong(1).encode() + struct.pack("!HH", number, 0xFFFF)
    with pytest.raises(PeerProtocolError) as caught:
        frames_of(raw, [1])
    assert caught.value.reason == f"return path message of unknown type {number}"
    assert caught.value.offset == 8


@pytest.mark.parametrize("length", [1, 3, 4, 7])
def test_end_inside_a_frame(length: int) -> None:
    raw = SWITCHOVER_ACK.encode() + pong(1).encode()[:length]
    with pytest.raises(PeerProtocolError, match="ends inside a frame") as caught:
        frames_of(raw, [100])
    assert caught.value.offset == 4


@given(garbage(), splits)
def test_garbage(raw: bytes, sizes: list[int]) -> None:
    """It is refused by no other error, or it was frames after all."""
    try:
        frames = frames_of(raw, sizes)
    except PeerProtocolError:
        return
    assert b"".join(frame.encode() for frame in frames) == raw
