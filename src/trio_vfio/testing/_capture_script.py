"""A capture as a script for `ScriptedPeer`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, final

import attrs

from .._capture._parts import (
    Awaits,
    Part,
    answers_before_switchover,
    count_answers,
    parts_of_channel,
    parts_of_main,
)
from .._capture._report import CaptureScan, scan_capture
from .._errors import PeerProtocolError
from .._wire._return_path import ReturnPathDecoder, ReturnPathFrame, ReturnPathType
from ._faults import ConnectionName
from ._script import Close, Piece, ScriptStep, Wait

if TYPE_CHECKING:
    from ._peer import ScriptedPeer

Reads: TypeAlias = list[tuple[float, int]]
"""When how many bytes came, read by read."""


def capture_script(path: Path, speed: float) -> list[ScriptStep]:
    """Return what the source of a capture sent, as `ScriptedPeer.from_capture` says.

    Raises:
      ValueError: if there is no capture at *path*, or *speed* makes no sense.
      OSError: if it cannot be read.
    """
    if not speed > 0:
        raise ValueError(f"a capture cannot be played at a speed of {speed!r}")
    scan = scan_capture(path)
    recorded = _recorded(path / "meta.json")
    main = scan.capture.main
    parts: dict[ConnectionName, Iterable[Part]] = {"main": parts_of_main(scan)}
    files: dict[ConnectionName, bytes] = {
        "main": main.read_bytes() if main.exists() else b""
    }
    reads: dict[ConnectionName, Reads] = {"main": recorded.get("main", [])}
    for number, channel in enumerate(scan.channels):
        file = scan.capture.channel(channel.result.id)
        parts[number] = parts_of_channel(scan, channel)
        files[number] = file.read_bytes()
        reads[number] = recorded.get(file.stem, [])
    source = _Source(scan, {name: len(data) for name, data in files.items()})
    script: list[ScriptStep] = []
    for name, data in files.items():
        times = [(seconds / speed, count) for seconds, count in reads[name]]
        script += source.pieces(name, data, parts[name], times)
        script += source.farewell(name)
    return script


def _recorded(meta: Path) -> dict[str, Reads]:
    """Return the reads of each connection, by the name of its file."""
    if not meta.exists():
        return {}
    # Whoever scanned the capture has seen that this is an object.
    content: dict[str, Any] = json.loads(meta.read_bytes())
    connections = cast("list[dict[str, Any]]", content.get("connections", []))
    return {each["channel"]: each["reads"] for each in connections}


@final
@attrs.define(eq=False)
class _Source:
    """What the source of a capture does besides sending its bytes."""

    scan: CaptureScan
    sizes: dict[ConnectionName, int]
    _answers: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._answers = answers_before_switchover(self.scan)

    def pieces(
        self, name: ConnectionName, data: bytes, parts: Iterable[Part], reads: Reads
    ) -> Iterator[ScriptStep]:
        """Return *data* as it came, with a stop before each part that has to wait."""
        begin, rest = 0, list(reads)
        for part in parts:
            if part.awaits is Awaits.ANSWERS:
                yield Wait(0.0, name, self._is_answered)
            elif part.awaits is Awaits.SWITCHOVER:
                yield Wait(0.0, name, self._has_switched_over)
            end = begin + part.size
            time = 0.0
            while begin < end:
                time, count = rest.pop(0) if rest else (time, end - begin)
                stop = min(begin + count, end)
                if begin + count > end:
                    rest.insert(0, (time, begin + count - end))
                yield Piece(time, name, data[begin:stop])
                begin = stop

    def farewell(self, name: ConnectionName) -> Iterator[ScriptStep]:
        """Return how a connection ends."""
        channels = self.scan.channels
        fault = None if name == "main" else channels[name].fault
        if fault is not None and fault.cut:
            yield Close(0.0, name, "eof")
        yield Wait(0.0, name, self._is_over)
        yield Close(0.0, name)

    def _is_answered(self, peer: ScriptedPeer) -> bool:
        return count_answers(_frames(peer)) >= self._answers

    def _has_switched_over(self, peer: ScriptedPeer) -> bool:
        return peer.sent["main"] > (self.scan.main.switchover_start or 0)

    def _is_over(self, peer: ScriptedPeer) -> bool:
        if "main" in peer.ended:
            return True
        # A source whose stream is not whole has left, too.
        if self.scan.main.return_path and self.scan.main.fault is None:
            return any(frame.type is ReturnPathType.SHUT for frame in _frames(peer))
        return peer.sent == self.sizes


def _frames(peer: ScriptedPeer) -> list[ReturnPathFrame]:
    try:
        return list(ReturnPathDecoder().received(bytes(peer.heard["main"])))
    except PeerProtocolError:
        # Then there is nothing to wait for but the end.
        return []
