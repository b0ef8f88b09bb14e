"""The Python packages that tests need in the VM, in an archive of their own.

They come from PyPI: Debian's are older than what we ask for. Of the project itself
only its metadata is there: its code is in another archive.
"""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

from .archive import make_archive
from .cache import Cache
from .host import commands, say
from .system import System

_GROUP: Final = "vm"
_EXTRA: Final = "cli"
_SEEN_AT: Final = "site"
# Built for glibc up to that of Debian 13, 2.41.
_PLATFORMS: Final = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(41, 16, -1)),
    "manylinux2014_x86_64",
)


def site(cache: Cache, suite: str, system: System, project: Path) -> Path:
    """Return the archive with the packages that *project* asks for, for *system*.

    Raises:
      RigError: if they cannot be had.
    """
    pyproject = tomllib.loads((project / "pyproject.toml").read_text())
    wanted = [
        *pyproject["project"]["dependencies"],
        *pyproject["project"]["optional-dependencies"][_EXTRA],
        *_group(pyproject, _GROUP),
    ]
    name, version = (pyproject["project"][key] for key in ("name", "version"))
    python = system.python.name
    inputs = [Path(__file__).read_text(), json.dumps([python, wanted, name, version])]

    def make(place: Path) -> None:
        log = place / "site.log"
        target = place / "site"
        say(f"{suite}: packages from PyPI for {python}")
        _install(target, python, wanted, log)
        _describe(target, name, version)
        system.compile(target, f"/{_SEEN_AT}", log)
        make_archive(place / "archive", {_SEEN_AT: target})
        shutil.rmtree(target)

    return cache.product(f"{suite}-site", inputs, make) / "archive"


def _group(pyproject: dict[str, Any], name: str) -> list[str]:
    """Return what the dependency group *name* asks for, with groups it includes."""
    wanted: list[str] = []
    for entry in pyproject["dependency-groups"][name]:
        if isinstance(entry, str):
            wanted.append(entry)
        else:
            wanted += _group(pyproject, entry["include-group"])
    return wanted


def _install(target: Path, python: str, wanted: list[str], log: Path) -> None:
    platforms = (f"--platform={platform}" for platform in _PLATFORMS)
    commands.run(
        (
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"),
            *(
                f"--target={target}",
                f"--python-version={python.removeprefix('python')}",
            ),
            *("--implementation=cp", "--only-binary=:all:", *platforms, *wanted),
        ),
        log,
        failure=f"pip cannot get the packages that tests need, for {python}",
    )


def _describe(target: Path, name: str, version: str) -> None:
    """Write the metadata that says that *version* of the project is installed."""
    info = target / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata)
