"""The files of a capture.

A capture is a directory:

- ``main.bin``: the main connection, source to destination
- ``return.bin``: the same connection, the other way; if the source asked for it
- ``multifd<ID>.bin``: one multifd channel each
- ``meta.json``: an object with at least ``{"format": 1}``
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import attrs

from .._wire._limits import MAX_CHANNELS

_FORMAT: Final = 1
_FORMAT_FIELD: Final[dict[Any, Any]] = {"format": _FORMAT}
_CHANNEL = re.compile(r"multifd(0|[1-9][0-9]{0,2})\.bin")

# Arrival times are two numbers for each read, so a long recording has many.
_MAX_META: Final = 64 * 1024 * 1024


@attrs.frozen
class Capture:
    """Which files a capture has. None of them was read."""

    directory: Path
    channels: tuple[int, ...]
    """Ids of the multifd channels, in order."""

    @property
    def main(self) -> Path:
        """The main connection, source to destination. It may be missing."""
        return self.directory / "main.bin"

    @property
    def return_path(self) -> Path:
        """The main connection the other way. It is missing where nothing came."""
        return self.directory / "return.bin"

    def channel(self, id_: int) -> Path:
        """The file of one multifd channel."""
        return self.directory / channel_file(id_)


def channel_file(id_: int) -> str:
    """Return the name of the file of one multifd channel."""
    return f"multifd{id_}.bin"


def find_capture(directory: Path) -> Capture:
    """See which files of a capture are in *directory*.

    Raises:
      ValueError: if it holds none, or is of a format that is not known here.
      OSError: if it is no directory, or cannot be read.
    """
    found = [_CHANNEL.fullmatch(entry.name) for entry in directory.iterdir()]
    channels = sorted(int(match[1]) for match in found if match)
    capture = Capture(directory, tuple(channels))
    if not (channels or capture.main.exists()):
        raise ValueError(f"no capture: {directory} holds neither main.bin nor channels")
    if channels and channels[-1] >= MAX_CHANNELS:
        raise ValueError(f"{directory}: channel {channels[-1]} of at most 255 channels")
    _check_format(directory / "meta.json")
    return capture


def _check_format(meta: Path) -> None:
    if not meta.exists():
        return
    if meta.stat().st_size > _MAX_META:
        raise ValueError(f"{meta} is over {_MAX_META} bytes")
    try:
        content: Any = json.loads(meta.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{meta} is not JSON") from exc
    if not (isinstance(content, dict) and _FORMAT_FIELD.items() <= content.items()):
        raise ValueError(f"{meta} is not of format {_FORMAT}")
