"""One trial: one contender does one case once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import final

import attrs

from .cases import Case, Task
from .contenders import REFERENCE, Command, Contender, made_up
from .devices import Ends, Memory, nowhere, sinks, sources
from .program import Program, ProgramError, Usage, program
from .stream import StreamFiles


@attrs.frozen
class Outcome:
    """What one trial came to."""

    seconds: float
    """By the clock of the other side, which is the same whoever is measured."""
    bytes: int
    cpu: float
    """Seconds of processor time, of both ends where both are measured."""
    rss_start_kib: int
    rss_peak_kib: int
    """Of the end that takes more."""

    @property
    def own_mib(self) -> float:
        """Memory that came on top of the interpreter and what it had imported."""
        return (self.rss_peak_kib - self.rss_start_kib) / 1024


@final
@attrs.define(eq=False)
class Trial:
    """What is needed to let any contender do a case."""

    case: Case
    memory: Memory
    files: StreamFiles
    verify: bool
    """Whether what arrives is checked."""

    async def run(self, contender: Contender) -> Outcome:
        """Let *contender* do it.

        Raises:
          ProgramError, DamageError: in a group.
        """
        if self.verify:
            self.memory.clear()
        match self.case.task:
            case Task.LOAD:
                sent, received = await self._load(contender)
                outcome = _outcome(sent.seconds, received)
            case Task.SAVE:
                sent, received = await self._save(contender)
                outcome = _outcome(received.seconds, sent)
            case Task.WHOLE:
                sent, received = await self._whole(contender)
                outcome = _outcome(sent.seconds, sent, received)
        if not sent.bytes == received.bytes == self.memory.total:
            raise ProgramError(
                f"{contender.name}: {sent.bytes} bytes were sent and {received.bytes}"
                f" received, of {self.memory.total}"
            )
        if self.verify:
            self.memory.check()
        return outcome

    async def _load(self, contender: Contender) -> tuple[Usage, Usage]:
        async with self._destination(contender, self._sinks()) as destination:
            port = await destination.port()
            command = made_up(self.case, self.files, port, self.memory.total)
            async with program(command) as source:
                return await source.usage(), await destination.usage()

    async def _save(self, contender: Contender) -> tuple[Usage, Usage]:
        drop = self._sinks() if self.verify else nowhere(self.memory)
        async with self._destination(REFERENCE, drop) as destination:
            return await self._send(contender, destination)

    async def _whole(self, contender: Contender) -> tuple[Usage, Usage]:
        async with self._destination(contender, self._sinks()) as destination:
            return await self._send(contender, destination)

    async def _send(
        self, contender: Contender, destination: Program
    ) -> tuple[Usage, Usage]:
        port = await destination.port()
        async with sources(self.memory) as ends:
            command = contender.send(self.case, self.files, port, ends.fds)
            async with _handed_over(command, ends) as source:
                return await source.usage(), await destination.usage()

    def _sinks(self) -> AbstractAsyncContextManager[Ends]:
        return sinks(self.memory, keep=self.verify)

    @asynccontextmanager
    async def _destination(
        self, contender: Contender, opening: AbstractAsyncContextManager[Ends]
    ) -> AsyncGenerator[Program]:
        async with opening as ends:
            command = contender.receive(self.case, self.files, ends.fds)
            async with _handed_over(command, ends) as running:
                yield running


@asynccontextmanager
async def _handed_over(command: Command, ends: Ends) -> AsyncGenerator[Program]:
    async with program(command, ends.fds) as running:
        ends.close()
        yield running


def _outcome(seconds: float, *usages: Usage) -> Outcome:
    largest = max(usages, key=lambda usage: usage.rss_peak_kib)
    return Outcome(
        seconds=seconds,
        bytes=usages[0].bytes,
        cpu=sum(usage.cpu for usage in usages),
        rss_start_kib=largest.rss_start_kib,
        rss_peak_kib=largest.rss_peak_kib,
    )
