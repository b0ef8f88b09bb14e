"""The command as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from trio_vfio._capture._player import play
from trio_vfio._link._address import connect, parse_address

_PATIENCE: Final = 150
"""Seconds after which a command is taken to hang.

Busy and emulated machines take their time. The slowest command needs 5 s alone.
"""

HOUR: Final = [
    "--first-connection=3600",
    "--handshake=3600",
    "--silence=3600",
    "--device-grace=3600",
]
"""Deadlines that do not pass here, unless a test gives shorter ones after them.

A side that waits for one of these to notice something is still there when the test
gives up.
"""


@attrs.define(eq=False)
class Running:
    """The command, while it runs and after."""

    process: trio.Process
    stdout: bytes = b""
    stderr: bytes = b""
    said_something: trio.Event = attrs.field(factory=trio.Event)

    @property
    def lines(self) -> list[str]:
        """What it said on stderr."""
        return self.stderr.decode().splitlines()

    @property
    def errors(self) -> list[str]:
        """What it said went wrong."""
        prefix = "trio-vfio: error: "
        return [
            line.removeprefix(prefix) for line in self.lines if line.startswith(prefix)
        ]

    @property
    def result(self) -> dict[str, Any]:
        """Its one JSON object."""
        assert self.stdout.count(b"\n") == 1
        return dict(json.loads(self.stdout))

    async def address(self) -> str:
        """Wait until it listens."""
        await self.said_something.wait()
        # On a busy machine there may be progress behind it.
        line = self.lines[0]
        assert line.startswith("listening on ")
        return line.removeprefix("listening on ")

    async def play(self, files: Path, **options: Any) -> bytes:
        """Play a capture to it."""
        to = parse_address(await self.address())
        return await play(files, lambda: connect(to), **options)


@asynccontextmanager
async def running(
    *arguments: str, pass_fds: tuple[int, ...] = (), **env: str
) -> AsyncGenerator[Running, None]:
    """Run the command; it has to end by itself.

    What it said on stderr is in the report of a test that fails.
    """

    async def read(running: Running) -> None:
        async def read_stderr() -> None:
            assert running.process.stderr is not None
            async for data in running.process.stderr:
                running.stderr += data
                if data.endswith(b"\n"):
                    running.said_something.set()

        assert running.process.stdout is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_stderr)
                async for data in running.process.stdout:
                    running.stdout += data
        finally:
            # Pytest shows it if the test fails.
            sys.stderr.write(
                f"{arguments}: {running.stderr.decode(errors='replace')}\n"
            )

    command = [sys.executable, "-W", "error", "-m", "trio_vfio", *arguments]
    start = partial(
        trio.run_process,
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
        pass_fds=pass_fds,
        env={**os.environ, **env},
    )
    with trio.fail_after(_PATIENCE):
        async with trio.open_nursery() as nursery:
            running = Running(await nursery.start(start))
            nursery.start_soon(read, running)
            yield running


def names(directory: Path) -> list[str]:
    """Return what is in *directory*."""
    return sorted(path.name for path in directory.iterdir())
