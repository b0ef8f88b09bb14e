"""Which files belong to a snapshot, and which a run has left that was killed."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from ._manifest import MANIFEST, read_manifest

OURS: Final = re.compile(
    r"[A-Za-z0-9_.-]+-[0-9a-f]{16}(?:-[0-9a-f]{8})?\.data(?:\.config)?(?:\.part)?"
)
"""Names of files that a snapshot makes for its devices."""


def snapshot_files(directory: Path) -> list[Path]:
    """Return the files of the snapshot in *directory*, first its manifest.

    Those that the manifest names, if it can be read, and those that have the names
    of files of a snapshot: a run that writes another one removes them.
    """
    names = files_of(directory) or set()
    with suppress(OSError):
        names |= {each for each in os.listdir(directory) if OURS.fullmatch(each)}
    return [directory / MANIFEST, *(directory / name for name in sorted(names))]


def files_of(directory: Path) -> set[str] | None:
    """Return what the manifest names; None if it cannot be read."""
    try:
        entries = read_manifest(directory)
    except FileNotFoundError:
        return set()
    except (OSError, ValueError):
        return None
    return {name for each in entries for name in (each.data, each.config) if name}


def remove_left(directory: Path) -> None:
    """Remove what runs have left that were killed. Nobody else may be writing there."""
    if (named := files_of(directory)) is None:
        return
    for each in directory.iterdir():
        if each.name not in named and OURS.fullmatch(each.name):
            with suppress(OSError):
                each.unlink()
    for suffix in (".old", ".part"):
        with suppress(OSError):
            (directory / f"{MANIFEST}{suffix}").unlink(missing_ok=True)
