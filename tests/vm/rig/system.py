"""The system that runs in the VM: a root directory with Python and QEMU."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from .archive import make_archive
from .cache import Cache
from .debian import Suite, unpack
from .host import commands, say

_PACKAGES: Final = (
    "base-files",
    "bash",
    "coreutils",
    "grep",
    "hostname",
    "iproute2",
    "libc-bin",
    "mount",
    "netbase",
    "procps",
    "python3",
    "qemu-system-x86",
    "sed",
    "util-linux",
)
_WITHOUT: Final = ("usr/share/doc", "usr/share/locale", "usr/share/man")

# Maintainers' scripts would have made these.
_FILES: Final = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost vm\n",
    "etc/hostname": "vm\n",
}


@dataclass(frozen=True)
class System:
    """What was unpacked, and the archive that was made of it."""

    root: Path
    archive: Path
    packages: Path
    """A list of what it is made of."""

    @property
    def versions(self) -> str:
        """What is worth knowing of it when a test fails."""
        lines = self.packages.read_text().splitlines()
        version = dict(line.split() for line in lines)
        return f"Python {version[self.python.name]}, QEMU {version['qemu-system-x86']}"

    @property
    def python(self) -> Path:
        """Its Python, as a file of this machine: .../python3.13."""
        return (self.root / "usr/bin/python3").resolve()

    def run_python(self, log: Path, *arguments: str | Path, failure: str) -> None:
        """Run its Python on this machine, by its own loader and libraries.

        Raises:
          RigError: if that fails: *failure*.
        """
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        loader = (libraries / "ld-linux-x86-64.so.2", "--library-path", libraries)
        commands.run(
            (*loader, self.python, "-S", *arguments),
            log,
            env={"PYTHONHOME": str(self.root / "usr")},
            failure=failure,
        )

    def compile(
        self, folder: Path, seen_at: str, log: Path, *, checked: bool = False
    ) -> None:
        """Compile the Python modules in *folder*, which the VM sees at *seen_at*.

        As a rule the VM takes the result as it is: looking at the source would cost
        time whenever a module is imported. Where somebody may change a source in the
        VM, it is to be *checked*.

        Raises:
          RigError: if the compiler does not run.
        """
        mode = "checked" if checked else "unchecked"
        self.run_python(
            log,
            *("-m", "compileall", "-qq", f"--invalidation-mode={mode}-hash"),
            *(f"-s{folder}", f"-p{seen_at}", folder),
            failure="its Python modules do not compile",
        )


def system(cache: Cache, suite: str) -> System:
    """Return the system of *suite*, which is made if it is not in *cache*.

    Raises:
      RigError: if it cannot be made.
    """
    inputs = [Path(__file__).read_text(), suite]
    return _in(cache.product(suite, inputs, lambda place: _make(place, suite)))


def _in(place: Path) -> System:
    return System(place / "root", place / "archive", place / "packages.txt")


def _make(place: Path, suite: str) -> None:
    log = place / "system.log"
    packages = place / "packages"
    packages.mkdir()
    debs = Suite(suite, packages).download(_PACKAGES)
    made = _in(place)
    _prepare(made.root)
    made.packages.write_text("".join(f"{' '.join(_named(deb))}\n" for deb in debs))
    say(f"{suite}: unpacking {len(debs)} packages")
    for deb in debs:
        unpack(deb, made.root, log, without=_WITHOUT)
    shutil.rmtree(packages)
    _complete(made.root)
    library = Path("usr/lib", made.python.name)
    made.compile(made.root / library, f"/{library}", log)
    commands.run(("ldconfig", "-r", made.root), log, failure="cannot write ld.so.cache")
    make_archive(made.archive, {"": made.root})


def _named(deb: Path) -> tuple[str, str]:
    """Return a package's name and its version, without the epoch."""
    name, version, _ = unquote(deb.stem).split("_")
    return name, version.partition(":")[2] or version


def _prepare(root: Path) -> None:
    """Make what the packages expect to find: one /usr for all."""
    for folder in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / folder).mkdir(parents=True)
        (root / folder).symlink_to(f"usr/{folder}")


def _complete(root: Path) -> None:
    """Make what the packages' scripts would have made."""
    for name, text in _FILES.items():
        (root / name).write_text(text)
