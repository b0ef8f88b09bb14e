"""The captures that tests read; see captures/README.md for what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

PADDED: Final = "p-1dev-4ch-pad4M-rp-proxy"
"""The one with the most state, in several buffers."""

_HERE: Final = Path(__file__).parent / "captures"


@attrs.frozen
class CaptureFiles:
    """One capture, and what an independent reader found in it."""

    directory: Path

    @property
    def name(self) -> str:
        """For test ids."""
        return self.directory.name

    @property
    def main(self) -> bytes:
        """The main connection, source to destination."""
        return (self.directory / "main.bin").read_bytes()

    @property
    def return_path(self) -> bytes | None:
        """The main connection, the other way."""
        path = self.directory / "return.bin"
        return path.read_bytes() if path.exists() else None

    @property
    def channels(self) -> dict[int, bytes]:
        """Each multifd channel from its first packet on, by its id."""
        found = self.directory.glob("multifd*.bin")
        by_id = {int(path.stem.removeprefix("multifd")): path for path in found}
        return {id_: by_id[id_].read_bytes() for id_ in sorted(by_id)}

    @property
    def expected(self) -> dict[str, Any]:
        """What ``expected.json`` says; nothing if there is none."""
        path = self.directory / "expected.json"
        return dict(json.loads(path.read_bytes())) if path.exists() else {}


def _directories() -> Iterator[Path]:
    yield from sorted(path.parent for path in _HERE.glob("*/main.bin"))
    if more := os.environ.get("TRIO_VFIO_CAPTURES"):
        yield from sorted(path.parent for path in Path(more).rglob("main.bin"))


CAPTURES: Final = [CaptureFiles(directory) for directory in _directories()]
COMPLETE: Final = [
    capture for capture in CAPTURES if capture.expected.get("status") == "complete"
]


def capture(name: str) -> CaptureFiles:
    """Return the capture with that name."""
    return next(each for each in CAPTURES if each.name == name)
