"""Rounds: in each, every case with every contender, the reference first and last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, final

import attrs
import trio

from .cases import Case
from .contenders import REFERENCE, Contender
from .devices import memory
from .stream import StreamFiles
from .trial import Outcome, Trial

_DEADLINE: Final = 60.0


@attrs.frozen
class Measured:
    """One trial, and what came of it."""

    round: int
    case: Case
    contender: str
    outcome: Outcome | None
    """None if it failed."""
    fault: str | None = None


@final
@attrs.define(eq=False, kw_only=True)
class Rounds:
    """All that is to be measured."""

    cases: Sequence[Case]
    others: Sequence[Contender]
    rounds: int
    total: int
    verify: bool
    folder: Path
    """For files that programs are given."""
    deadline: float = _DEADLINE
    """Seconds for one trial."""

    async def run(self, report: Callable[[Measured], None]) -> None:
        """Measure everything, and tell *report* of each trial.

        A trial that fails or takes too long is reported as such, with everything that
        it started ended, and the next one begins.
        """
        for number in range(self.rounds):
            for case in self.cases:
                with memory(case, self.total) as files:
                    stream = StreamFiles.write(self.folder, case.devices)
                    trial = Trial(case, files, stream, self.verify)
                    for contender in self._order(case, number):
                        report(await self._measure(trial, contender, number))

    def _order(self, case: Case, number: int) -> Iterator[Contender]:
        """Who comes when: each has been at each place when there were enough rounds."""
        others = [each for each in self.others if case.task in each.tasks]
        yield REFERENCE
        yield from (others[(number + i) % len(others)] for i in range(len(others)))
        yield REFERENCE

    async def _measure(
        self, trial: Trial, contender: Contender, number: int
    ) -> Measured:
        outcome: Outcome | None = None
        fault: str | None = f"not done within {self.deadline:g} s"
        try:
            with trio.move_on_after(self.deadline):
                outcome = await trial.run(contender)
                fault = None
        except* Exception as group:
            fault = "; ".join(_texts(group))
        return Measured(number, trial.case, contender.name, outcome, fault)


def _texts(group: BaseExceptionGroup[BaseException]) -> Iterator[str]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _texts(each)
        else:
            yield f"{type(each).__name__}: {each}"
