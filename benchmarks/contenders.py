"""Who is measured, and how each is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final, Protocol

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
      OSError: if there is no make.
      subprocess.CalledProcessError: if it fails; it has said why.
    """
    command = ("make", "--silent", f"--directory={_C}")
    subprocess.run(command, check=True)


def c_program(name: str, *arguments: str) -> Command:
    """Return what starts one of the programs in C."""
    return (str(_BUILD / name), *arguments)


class Contender(Protocol):
    """Who can take state from here to there, or one end of that."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def tasks(self) -> frozenset[Task]:
        """What it can do."""
        ...

    def receive(self, case: Case, files: StreamFiles, fds: tuple[int, ...]) -> Command:
        """Return what starts the destination, which says where it listens."""
        ...

    def send(
        self, case: Case, files: StreamFiles, port: int, fds: tuple[int, ...]
    ) -> Command:
        """Return what starts the source."""
        ...


@attrs.frozen
class Migrating:
    """A pair of programs ``receive`` and ``send`` that speak QEMU's protocol."""

    name: str
    module: str | None
    """Of the package `programs`; None: it is in C."""
    tasks: frozenset[Task] = frozenset(Task)

    def receive(self, case: Case, files: StreamFiles, fds: tuple[int, ...]) -> Command:
        """Return what starts the destination."""
        return self._start(
            "receive",
            *_common(case, files),
            f"--switchover-at={files.switchover_at}",
            f"--fds={_joined(fds)}",
        )

    def send(
        self, case: Case, files: StreamFiles, port: int, fds: tuple[int, ...]
    ) -> Command:
        """Return what starts the source."""
        return self._start("send", *_source(case, files, port), f"--fds={_joined(fds)}")

    def _start(self, what: str, *arguments: str) -> Command:
        if self.module is None:
            return c_program(what, *arguments)
        module = f"benchmarks.programs.{self.module}"
        return (sys.executable, "-m", module, what, *arguments)


@attrs.frozen
class Copying:
    """A copy loop over one socket, in C, that knows no protocol."""

    name: str = "copy"
    tasks: frozenset[Task] = frozenset({Task.WHOLE})

    def receive(self, case: Case, files: StreamFiles, fds: tuple[int, ...]) -> Command:
        """Return what starts the destination."""
        return c_program("copy", "receive", f"--fds={_joined(fds)}")

    def send(
        self, case: Case, files: StreamFiles, port: int, fds: tuple[int, ...]
    ) -> Command:
        """Return what starts the source."""
        return c_program("copy", "send", f"--port={port}", f"--fds={_joined(fds)}")


def made_up(case: Case, files: StreamFiles, port: int, total: int) -> Command:
    """Return what starts the source in C that makes up *total* bytes of state."""
    devices = f"--devices={case.devices}"
    return c_program("send", *_source(case, files, port), devices, f"--bytes={total}")


def _source(case: Case, files: StreamFiles, port: int) -> Command:
    return (
        *_common(case, files),
        f"--port={port}",
        f"--before={files.before}",
        f"--after={files.after}",
    )


def _common(case: Case, files: StreamFiles) -> Command:
    return (
        f"--channels={case.channels}",
        f"--packet={case.packet}",
        f"--config={files.config}",
    )


def _joined(fds: tuple[int, ...]) -> str:
    return ",".join(map(str, fds))


OURS: Final = Migrating("ours", module="ours")
THREADS: Final = Migrating("threads", module="with_threads")
ASYNCIO: Final = Migrating("asyncio", module="with_asyncio")
COPY: Final = Copying()

REFERENCE: Final = Migrating("c", module=None)
OTHERS: Final[tuple[Contender, ...]] = (OURS, THREADS, ASYNCIO, COPY)
