"""Packages of another suite of Debian than this machine's: fetched and unpacked.

Nothing of them is installed here, and apt's own lists stay as they are. Scripts of
packages do not run: what the VM needs of what they do, `system` does.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .host import RigError, commands

_MIRROR: Final = "http://deb.debian.org/debian"
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


@functools.cache
def mirror() -> str:
    """Return the mirror of Debian that apt uses here, or the one that always is."""
    found = _mirrors()
    if not found:
        # Those of which it has no lists are not among them.
        subprocess.run(("apt-get", "update"), check=False, capture_output=True)
        found = _mirrors()
    return found[0] if found else _MIRROR


def _mirrors() -> list[str]:
    command = (
        *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
        *("Created-By: Packages", "Origin: Debian", "Label: Debian"),
    )
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    return said.stdout.split()


class Suite:
    """A suite of Debian, as an apt that knows nothing else sees it."""

    def __init__(self, name: str, place: Path) -> None:
        self.name = name
        self._place = place
        self._log = place / "apt.log"

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Download *packages* and all that they depend on.

        Raises:
          RigError: if the suite does not have them, now or at all.
        """
        self._update()
        # To an apt on whose system nothing is installed.
        self._apt("install", "--download-only", "--yes", *packages)
        return sorted((self._place / "archives").glob("*.deb"))

    def download_alone(self, package: str) -> Path:
        """Download *package* without what it depends on.

        Raises:
          RigError: if the suite does not have it.
        """
        self._update()
        self._apt("download", package)
        (deb,) = self._place.glob("*.deb")
        return deb

    def _update(self) -> None:
        for folder in ("lists/partial", "archives/partial"):
            (self._place / folder).mkdir(parents=True)
        (self._place / "status").touch()
        source = f"deb [signed-by={_KEYRING}] {mirror()} {self.name} main\n"
        (self._place / "sources.list").write_text(source)
        self._apt("update", "--error-on=any")

    def _apt(self, *arguments: str) -> None:
        place = self._place
        settings = {
            "Dir::Etc::SourceList": place / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": place,
            "Dir::State::Lists": place / "lists",
            "Dir::State::Status": place / "status",
            "Dir::Cache": place,
            "Dir::Cache::Archives": place / "archives",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        options = [f"--option={name}={value}" for name, value in settings.items()]
        commands.run(
            ("apt-get", "--quiet", *options, *arguments),
            self._log,
            cwd=place,
            failure=f"apt cannot get packages of {self.name} from {mirror()}",
        )


def unpack(deb: Path, root: Path, log: Path, *, without: Sequence[str] = ()) -> None:
    """Unpack the files of the package *deb* to *root*.

    Raises:
      RigError: if that fails.
    """
    options = ("--extract", "--keep-directory-symlink", f"--directory={root}")
    excluded = (f"--exclude=./{path}" for path in without)
    with subprocess.Popen(
        ("dpkg-deb", "--fsys-tarfile", deb), stdout=subprocess.PIPE
    ) as files:
        commands.run(
            ("tar", *options, *excluded),
            log,
            stdin=files.stdout,
            failure=f"cannot unpack {deb.name}",
        )
    if files.returncode:
        raise RigError(f"cannot read {deb.name}")
