"""A program that runs as long as a block does, and what it says."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import IO, Any, Final, final

import attrs
import trio

from .contenders import ROOT, Command

_TAIL: Final = 2000
"""How many bytes of what a program has said are worth repeating."""
_LAST_WORDS: Final = 0.5
"""Seconds until a program is killed when all are to end."""


class ProgramError(Exception):
    """A program did not do what it should; says which, and its last words."""


@attrs.frozen
class Usage:
    """What a program has seen and what it cost."""

    bytes: int
    """Data that it has moved."""
    seconds: float
    """From SWITCHOVER_START to the end."""
    utime: float
    stime: float
    rss_start_kib: int
    """What it had before it began: the interpreter, what it has imported."""
    rss_peak_kib: int

    @property
    def cpu(self) -> float:
        """Seconds of processor time."""
        return self.utime + self.stime


@final
@attrs.define(eq=False)
class Program:
    """A program that runs, and prints lines of JSON."""

    name: str
    _stdout: trio.abc.ReceiveStream = attrs.field(alias="stdout")
    _ended: trio.Event = attrs.field(alias="ended")
    """Set when it has ended with status 0; with another, the block is cancelled."""
    _heard: bytes = attrs.field(default=b"", init=False)

    async def port(self) -> int:
        """Return where it listens, which is the first that a destination says."""
        return int((await self._next())["port"])

    async def usage(self) -> Usage:
        """Return what it says at its end."""
        return Usage(**await self._next())

    async def _next(self) -> dict[str, Any]:
        while b"\n" not in self._heard:
            more = await self._stdout.receive_some()
            if not more:
                await self._ended.wait()
                raise ProgramError(f"{self.name} ended without a word")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        try:
            return dict(json.loads(line))
        except ValueError:
            raise ProgramError(f"{self.name} said {line!r}") from None


@asynccontextmanager
async def program(
    command: Command,
    fds: Sequence[int] = (),
    *,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> AsyncGenerator[Program]:
    """Run *command* while the block runs, and wait for its end.

    If the block fails or is cancelled, the program is killed and seen to end.

    Args:
      fds: what it inherits besides its standard streams.

    Raises:
      ProgramError: in a group: if it ends with another status than 0.
    """
    with tempfile.TemporaryFile() as stderr:
        start = partial(
            trio.run_process,
            list(command),
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=stderr,
            pass_fds=fds,
            check=False,
            cwd=ROOT,
            deliver_cancel=_kill,
        )
        name = " ".join(command[:4])
        ended = trio.Event()

        # What says that it has started is in there.
        async def run(task_status: trio.TaskStatus[trio.Process]) -> None:  # noqa: ASYNC128
            try:
                status = (await start(task_status=task_status)).returncode
            except BaseException:
                # It was ended. That another one failed may be its doing: it knows why.
                if said := _last_words(stderr):
                    raise ProgramError(f"{name}: {said}") from None  # noqa: ASYNC104
                raise
            if status:
                raise ProgramError(f"{name}: status {status}: {_last_words(stderr)}")
            ended.set()

        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(run)
            yield Program(name, process.stdout or _Nothing(), ended)


def _last_words(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    return stderr.read()[-_TAIL:].decode(errors="backslashreplace").strip()


async def _kill(process: trio.Process) -> None:
    """End *process*; but what is about to end by itself may still say why."""
    with trio.move_on_after(_LAST_WORDS):
        await process.wait()
        return
    process.kill()


@final
class _Nothing(trio.abc.ReceiveStream):
    """What a program says whose output goes elsewhere."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return b""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
