"""The devices: descriptors that are handed to the programs, and what is behind them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from io import FileIO
from typing import Final, final

import attrs

from .cases import MIB, Case, Medium, Task
from .contenders import c_program
from .content import check_state, write_state, write_zeros
from .program import program

_PIPE_SIZE: Final = MIB


@final
@attrs.define(eq=False)
class Memory:
    """Files in memory: state to be saved, and room for state that is loaded."""

    case: Case
    size: int
    """Bytes of each device."""
    states: tuple[FileIO, ...]
    """None where the source makes the state up."""
    rooms: tuple[FileIO, ...]
    """None where the destination drops it."""

    @property
    def total(self) -> int:
        """Bytes of all devices."""
        return self.size * self.case.devices

    def clear(self) -> None:
        """Overwrite what was loaded, which also makes the pages."""
        for room in self.rooms:
            room.seek(0)
            write_zeros(room.fileno(), self.size)

    def check(self) -> None:
        """Check what was loaded.

        Raises:
          DamageError: if it is not what was sent.
        """
        for device, room in enumerate(self.rooms):
            check_state(room.fileno(), device, self.size, self.case.packet)


@contextmanager
def memory(case: Case, total: int, *, keep: bool) -> Generator[Memory]:
    """Make the files that *case* needs, with *total* bytes or a little less in all.

    Args:
      keep: whether all that arrives is kept.
    """
    size = case.device_bytes(total)
    with ExitStack() as stack:
        reads = case.task is not Task.LOAD
        writes = case.task is not Task.SAVE or keep
        states = tuple(_memfd(stack) for _ in range(case.devices * reads))
        rooms = tuple(_memfd(stack) for _ in range(case.devices * writes))
        for device, state in enumerate(states):
            write_state(state.fileno(), device, size, case.packet)
        made = Memory(case, size, states, rooms)
        made.clear()
        yield made


@final
@attrs.define(eq=False)
class Ends:
    """What a program is handed. Ours are to be closed as soon as it has them."""

    _files: tuple[FileIO, ...] = attrs.field(alias="files")
    _opened: ExitStack = attrs.field(alias="opened")
    fds: tuple[int, ...] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.fds = tuple(file.fileno() for file in self._files)

    def close(self) -> None:
        """Close ours: a pipe ends only when nobody has its other end any more."""
        self._opened.close()


@asynccontextmanager
async def sinks(memory: Memory, *, keep: bool) -> AsyncGenerator[Ends]:
    """Open what the state is written to. Devices have taken it when the block ends.

    Args:
      keep: whether what goes into a pipe is kept, so that it can be checked.
    """
    case = memory.case
    async with AsyncExitStack() as running:
        with ExitStack() as opened:
            files: list[FileIO] = []
            for room in memory.rooms:
                kept = _open_again(room, opened)
                if case.medium is Medium.MEMFD:
                    files.append(kept)
                    continue
                out, into = _pipe(opened)
                command = c_program("drain", f"--us-per-mib={case.us_per_mib}")
                fds = (kept.fileno(),) if keep else ()
                check = tuple(f"--check={fd}" for fd in fds)
                drain = program((*command, *check), fds, stdin=out)
                await running.enter_async_context(drain)
                files.append(into)
            yield Ends(tuple(files), opened)


@asynccontextmanager
async def sources(memory: Memory) -> AsyncGenerator[Ends]:
    """Open what the state is read from."""
    async with AsyncExitStack() as running:
        with ExitStack() as opened:
            files: list[FileIO] = []
            for state in memory.states:
                kept = _open_again(state, opened)
                if memory.case.medium is Medium.MEMFD:
                    files.append(kept)
                    continue
                out, into = _pipe(opened)
                feed = program(c_program("feed"), stdin=kept, stdout=into)
                await running.enter_async_context(feed)
                files.append(out)
            yield Ends(tuple(files), opened)


@asynccontextmanager
async def nowhere(memory: Memory) -> AsyncGenerator[Ends]:
    """Open for each device what drops all that it is given."""
    with ExitStack() as opened:
        names = [os.devnull] * memory.case.devices
        files = tuple(opened.enter_context(FileIO(name, "w")) for name in names)
        yield Ends(files, opened)


def _memfd(stack: ExitStack) -> FileIO:
    return stack.enter_context(FileIO(os.memfd_create("state"), "r+"))


def _open_again(file: FileIO, stack: ExitStack) -> FileIO:
    """Open *file* from its beginning, with a position and flags of its own."""
    return stack.enter_context(FileIO(f"/proc/self/fd/{file.fileno()}", "r+"))


def _pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    out, into = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return stack.enter_context(FileIO(out)), stack.enter_context(FileIO(into, "w"))
