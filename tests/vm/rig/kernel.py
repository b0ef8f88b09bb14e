"""The kernel: Linux as Debian ships its source, in our configuration."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from . import mtty
from .cache import Cache
from .debian import Suite, unpack
from .host import RigError, commands, say

_SUITE: Final = "trixie"
_PACKAGE: Final = "linux-source-6.12"
_CONFIG: Final = Path(__file__).with_name("kernel.config")
_IMAGE: Final = "bzImage"
_EVERY: Final = 60.0
# Half of the source, which is not compiled: other processors, devices that the VM does
# not have. What describes it to make stays.
_WITHOUT: Final = (
    "Documentation/*/*",
    "arch/[!x]*/*.[chS]",
    "arch/[!x]*/*.dts*",
    "drivers/gpu/*.[ch]",
    "drivers/infiniband/*.[ch]",
    "drivers/media/*.[ch]",
    "drivers/net/*/*.[ch]",
    "drivers/scsi/*.[ch]",
    "drivers/staging/*.[ch]",
    "sound/*.[ch]",
    "tools/perf/*",
    "tools/testing/*",
)


def kernel(cache: Cache) -> Path:
    """Return the image of the kernel, which is built if it is not in *cache*.

    Raises:
      RigError: if it cannot be built.
    """
    recipe = [Path(__file__), Path(mtty.__file__), mtty.HEADER, _CONFIG]
    inputs = [path.read_text() for path in recipe]

    def make(place: Path) -> None:
        # Kept until the build has worked: another try need not download it again.
        source = cache.product(_PACKAGE, [], _download)
        _build(source, place)
        shutil.rmtree(source)

    return cache.product("kernel", inputs, make) / _IMAGE


def _download(place: Path) -> None:
    Suite(_SUITE, place).download_alone(_PACKAGE)


def _build(source: Path, place: Path) -> None:
    tree = place / "linux"
    tree.mkdir()
    say("kernel: unpacking its source")
    log = place / "kernel.log"
    (deb,) = source.glob("*.deb")
    unpack(deb, tree, log)
    (tar,) = (tree / "usr/src").glob("*.tar.xz")
    commands.run(
        (
            *("tar", "--extract", f"--file={tar}", "--strip-components=1"),
            *(f"--exclude={_PACKAGE}/{pattern}" for pattern in _WITHOUT),
        ),
        log,
        cwd=tree,
        env={**os.environ, "XZ_DEFAULTS": "--threads=0"},
        failure="cannot unpack the kernel's source",
    )
    mtty.extend(tree)
    _configure(tree, log)
    # One more than there are processors: a job also waits for files.
    jobs = 1 + (os.cpu_count() or 1)
    say(f"kernel: compiling, {jobs} at a time: some minutes")
    with _progress(log):
        # objtool would check each file and note where static calls are. Without its
        # notes they take one jump more.
        _make(tree, log, f"--jobs={jobs}", "CONFIG_OBJTOOL=", _IMAGE)
    (tree / "arch/x86/boot" / _IMAGE).rename(place / _IMAGE)
    (tree / ".config").rename(place / "config")
    shutil.rmtree(tree)


def _configure(tree: Path, log: Path) -> None:
    _make(tree, log, f"KCONFIG_ALLCONFIG={_CONFIG}", "allnoconfig")
    # What depends on an option that is off is left out without a word.
    wanted = {line for line in _CONFIG.read_text().splitlines() if line[:1] == "C"}
    missing = wanted.difference((tree / ".config").read_text().splitlines())
    if missing:
        raise RigError(f"the kernel has no {', '.join(sorted(missing))}")


def _make(tree: Path, log: Path, *arguments: str) -> None:
    failure = "the kernel could not be built"
    commands.run(("make", f"--directory={tree}", *arguments), log, failure=failure)


@contextmanager
def _progress(log: Path) -> Iterator[None]:
    """Say how far the compilation is, while the block runs."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(_EVERY):
            with log.open("rb") as lines:
                files = sum(line.startswith(b"  CC ") for line in lines)
            say(f"kernel: {files} files compiled")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
