"""Who is measured, and how each is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import attrs

from .cases import Case, Task
from .stream import StreamFiles

ROOT: Final = Path(__file__).parents[1]
_C: Final = Path(__file__).parent / "c"
_BUILD: Final = _C / "build"

Command = tuple[str, ...]


def build() -> None:
    """Compile the programs in C, where that is not done.

    Raises:
      subprocess.CalledProcessError: if it fails.
    """
    command = ("make", "--silent", f"--directory={_C}")
    subprocess.run(command, check=True)


def c_program(name: str) -> Command:
    """Return what starts one of the programs in C."""
    return (str(_BUILD / name),)


@attrs.frozen
class Contender:
    """A pair of programs, ``receive`` and ``send``."""

    name: str
    _command: Command = attrs.field(alias="command")
    _is_python: bool = attrs.field(alias="is_python", default=True)
    tasks: frozenset[Task] = frozenset(Task)

    def receive(self, case: Case, files: StreamFiles, fds: tuple[int, ...]) -> Command:
        """Return what starts it as the destination."""
        return (
            *self._start("receive"),
            f"--channels={case.channels}",
            f"--packet={case.packet}",
            f"--switchover-at={files.switchover_at}",
            f"--config={files.config}",
            f"--fds={_joined(fds)}",
        )

    def send(
        self, case: Case, files: StreamFiles, port: int, fds: tuple[int, ...]
    ) -> Command:
        """Return what starts it as the source."""
        return (
            *self._start("send"),
            f"--port={port}",
            f"--channels={case.channels}",
            f"--packet={case.packet}",
            f"--before={files.before}",
            f"--after={files.after}",
            f"--config={files.config}",
            f"--fds={_joined(fds)}",
        )

    def _start(self, what: str) -> Command:
        return (*self._command, what) if self._is_python else c_program(what)


def made_up(case: Case, files: StreamFiles, port: int, total: int) -> Command:
    """Return what starts the source in C that makes up *total* bytes of data."""
    return (
        *c_program("send"),
        f"--port={port}",
        f"--channels={case.channels}",
        f"--packet={case.packet}",
        f"--before={files.before}",
        f"--after={files.after}",
        f"--config={files.config}",
        f"--devices={case.devices}",
        f"--bytes={total}",
    )


def _python(name: str) -> Command:
    return (sys.executable, "-m", f"benchmarks.programs.{name}")


def _joined(fds: tuple[int, ...]) -> str:
    return ",".join(map(str, fds))


REFERENCE: Final = Contender("c", (), is_python=False)
OTHERS: Final = (
    Contender("threads", _python("threads")),
    Contender("ours", _python("ours")),
)
