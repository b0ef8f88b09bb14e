"""The machine that the VM is built on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

# What builds a kernel and runs the VM, on a bare Debian 12.
PACKAGES: Final = (
    "bc",
    "bison",
    "debian-archive-keyring",
    "flex",
    "gcc",
    "libc6-dev",
    "lz4",
    "make",
    "qemu-system-x86",
    "xz-utils",
)

_TAIL: Final = 25


class RigError(Exception):
    """The VM cannot be had, for a reason that is told in full."""


def say(text: str) -> None:
    """Print a line on how far we are."""
    print(f"[vm] {text}", file=sys.stderr, flush=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say how long the block took."""
    start = time.monotonic()
    try:
        yield
    finally:
        say(f"{name}: {time.monotonic() - start:.0f} s")


class Commands:
    """The commands that are running, so that all can be ended when one fails."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: IO[bytes] | None = None,
        failure: str,
    ) -> None:
        """Run *command* with its output in *log*.

        Raises:
          RigError: if it fails: *failure* and the end of its output.
        """
        with log.open("ab") as output:
            with self._lock:
                if self._stopped:
                    raise RigError("stopped")
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=env,
                    stdin=stdin or subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.remove(process)
        if status:
            raise RigError(f"{failure} (exit status {status}):\n{tail(log)}")

    def stop(self) -> None:
        """End what is running, and let nothing start any more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


commands: Final = Commands()


def tail(log: Path) -> str:
    """Return the last lines of *log*."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-_TAIL:]) or "(no output)"


def check() -> None:
    """Look whether a VM can be built and run here.

    Raises:
      RigError: if not, and why.
    """
    for need in _needs():
        raise RigError(f"no VM can be had here: this needs {need}")


def _needs() -> Iterator[str]:
    if platform.system() != "Linux":
        yield "Linux"
    if platform.machine() != "x86_64":
        yield "a processor of the kind x86_64"
    for command in ("apt-get", "dpkg-deb"):
        if shutil.which(command) is None:
            yield f"Debian's {command}"
    if os.geteuid() != 0:
        yield "root"


def install_packages(log: Path) -> None:
    """Install what is missing of `PACKAGES`.

    Raises:
      RigError: if apt cannot.
    """
    installed = _installed(PACKAGES)
    missing = [name for name in PACKAGES if name not in installed]
    if not missing:
        return
    say(f"installing on this machine: {' '.join(missing)}")
    with step("packages of this machine"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        try:
            commands.run(("apt-get", "update"), log, failure="apt-get update failed")
        except RigError as exc:
            # One unreachable source of many need not matter.
            say(str(exc).splitlines()[0])
        commands.run(
            ("apt-get", "install", "--yes", "--no-install-recommends", *missing),
            log,
            env=environment,
            failure="apt-get could not install what the VM needs",
        )


def _installed(packages: Sequence[str]) -> set[str]:
    query = ("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n")
    said = subprocess.run(
        (*query, *packages), check=False, capture_output=True, text=True
    )
    lines = (line.split() for line in said.stdout.splitlines())
    return {name for name, status in lines if status == "installed"}
