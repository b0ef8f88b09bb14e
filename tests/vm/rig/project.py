"""The project's own code, as it is now."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .archive import make_archive
from .cache import Cache
from .system import System

_PARTS: Final = ("pyproject.toml", "examples", "src", "tests")
_SEEN_AT: Final = "project"


def project(cache: Cache, suite: str, system: System, root: Path) -> Path:
    """Return the archive with the code of the project at *root*, for *system*.

    Raises:
      RigError: if it cannot be made.
    """
    inputs = [Path(__file__).read_text(), system.python.name]
    for path in _files(root):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        inputs.append(f"{path.relative_to(root)} {digest}")

    def make(place: Path) -> None:
        copy = place / "files"
        for path in _files(root):
            to = copy / path.relative_to(root)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
        # That is a matter of seconds here, and of many where processors are emulated.
        system.compile(copy, f"/{_SEEN_AT}", place / "compile.log", checked=True)
        make_archive(place / "archive", {_SEEN_AT: copy})
        shutil.rmtree(copy)

    return cache.product(f"{suite}-project", inputs, make) / "archive"


def _files(root: Path) -> Iterator[Path]:
    for part in _PARTS:
        paths = [root / part, *sorted((root / part).rglob("*"))]
        for path in paths:
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
