"""The manifest of a snapshot: which devices there are, and in which files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, cast

import attrs

from ._file_source import MAX_CONFIG
from ._files import read_at_most

MANIFEST: Final = "manifest.json"

_FORMAT: Final = 1

# A migration has at most 256 devices (_receive), and each takes some 600 bytes,
# or 1 KiB with the longest of names.
_MAX_MANIFEST: Final = 1024 * 1024
_MAX_DEVICES: Final = 256
_MAX_IDSTR: Final = 255
_MAX_NAME: Final = 255 - len(".config.part")
_MAX_DATA: Final = 2**63 - 1

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@attrs.frozen
class Entry:
    """One device of a snapshot. The names of the fields are those of the format."""

    idstr: str
    instance_id: int
    data: str
    """Name of the file with its data."""
    config: str | None
    """Name of the file with its config blob: that of the data, and ``.config``."""
    data_bytes: int
    sha256: str | None
    config_bytes: int | None
    config_sha256: str | None


def encode_manifest(entries: Sequence[Entry]) -> bytes:
    """Return the manifest of a snapshot with these devices."""
    devices = [attrs.asdict(entry) for entry in entries]
    text = json.dumps({"format": _FORMAT, "devices": devices}, indent=2)
    return f"{text}\n".encode("ascii")


def read_manifest(directory: Path) -> list[Entry]:
    """Read the manifest of the snapshot in *directory*, whoever wrote it.

    No file that it names is outside of *directory*, unless by a link.

    Raises:
      OSError: if there is none, or it cannot be read.
      ValueError: if it is none; says why.
    """
    path = directory / MANIFEST
    # It says by itself where a file is too large.
    text = read_at_most(path, _MAX_MANIFEST, follow_links=False)
    try:
        return _parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error


def _parse(text: bytes) -> list[Entry]:
    manifest = _Object(
        "manifest",
        json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
        ),
    )
    manifest.number("format", _FORMAT, _FORMAT)
    devices = manifest.get("devices")
    if not isinstance(devices, list):
        raise ValueError(f"devices is {_short(devices)}, not a list")
    devices = cast("list[object]", devices)
    if len(devices) > _MAX_DEVICES:
        raise ValueError(f"{len(devices)} devices; there may be {_MAX_DEVICES}")
    entries = [_entry(_Object(f"device {n}", each)) for n, each in enumerate(devices)]
    _check_distinct(entries)
    return entries


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in the same object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_distinct(entries: Sequence[Entry]) -> None:
    devices: set[tuple[str, int]] = set()
    files: set[str] = set()
    for entry in entries:
        device = (entry.idstr, entry.instance_id)
        if device in devices:
            raise ValueError(f"{entry.idstr!r}, instance {entry.instance_id}: twice")
        devices.add(device)
        for name in filter(None, (entry.data, entry.config)):
            if name in files:
                raise ValueError(f"file {name!r}: used twice")
            files.add(name)


def _entry(device: _Object) -> Entry:
    data = device.file_name("data")
    config = device.get("config")
    size = digest = None
    if config is None:
        device.check_null("config_bytes")
        device.check_null("config_sha256")
    elif config == f"{data}.config":
        size = device.number("config_bytes", 0, MAX_CONFIG)
        digest = device.digest("config_sha256")
    else:
        raise device.wrong("config", f"{data + '.config'!r} or null")
    return Entry(
        idstr=device.text("idstr", _MAX_IDSTR),
        instance_id=device.number("instance_id", 0, 2**32 - 1),
        data=data,
        config=None if config is None else f"{data}.config",
        data_bytes=device.number("data_bytes", 0, _MAX_DATA),
        sha256=device.digest("sha256"),
        config_bytes=size,
        config_sha256=digest,
    )


class _Object:
    """A JSON object of which each value is asked for by its kind."""

    def __init__(self, what: str, value: object) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{what} is {_short(value)}, not an object")
        self._what = what
        self._values = cast("Mapping[str, object]", value)

    def get(self, key: str) -> object:
        """Return the value of *key*, which must be there."""
        try:
            return self._values[key]
        except KeyError:
            raise ValueError(f"{self._what} has no {key!r}") from None

    def wrong(self, key: str, expected: str) -> ValueError:
        value = _short(self._values[key])
        return ValueError(f"{self._what}: {key} is {value}, not {expected}")

    def number(self, key: str, low: int, high: int) -> int:
        value = self.get(key)
        # True is an int, too.
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "an integer")
        if not low <= value <= high:
            span = f"{low}" if low == high else f"within {low} to {high}"
            raise self.wrong(key, span)
        return value

    def text(self, key: str, limit: int) -> str:
        """Printable ASCII, for it ends up in messages; an idstr is so on the wire."""
        value = self.get(key)
        if (
            not isinstance(value, str)
            or not 0 < len(value) <= limit
            or not (value.isascii() and value.isprintable())
        ):
            raise self.wrong(key, f"1 to {limit} printable ASCII characters")
        return value

    def file_name(self, key: str) -> str:
        """A name that stays in its directory, and is no other file of a snapshot."""
        name = self.text(key, _MAX_NAME)
        if name != os.path.basename(name) or name in (".", "..", MANIFEST):
            raise self.wrong(key, "the name of a file in the snapshot")
        return name

    def digest(self, key: str) -> str | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
            raise self.wrong(key, "a SHA-256 in hex, or null")
        return value

    def check_null(self, key: str) -> None:
        if self.get(key) is not None:
            raise self.wrong(key, "null, where there is no config")


def _short(value: object) -> str:
    """Describe what somebody else wrote, in one line that is not long."""
    text = ascii(value) if isinstance(value, (str, int, float)) else ""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, list):
        text = "a list"
    elif isinstance(value, dict):
        text = "an object"
    return text if len(text) <= 80 else f"{text[:77]}..."
