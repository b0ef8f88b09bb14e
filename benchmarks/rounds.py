"""Rounds: in each, every case with every contender, the reference first and last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast, final

import attrs
import trio

from . import headline
from .cases import MIB, Case
from .contenders import REFERENCE, Contender
from .devices import memory
from .headline import Downtimes
from .stream import StreamFiles
from .trial import Outcome, Trial


@attrs.frozen
class Measured:
    """One trial, and what came of it."""

    round: int
    case: Case
    contender: str
    outcome: Outcome | None
    """None if it failed."""
    fault: str | None = None


@attrs.frozen(kw_only=True)
class Plan:
    """What is to be measured, and how."""

    cases: Sequence[Case]
    others: Sequence[Contender]
    """Who is measured besides the reference."""
    rounds: int
    total_mib: int
    """State in one trial, in MiB."""
    headline_mib: int | None
    """State of each of the headline's devices, in MiB; None: without the headline."""
    verify: bool
    """Whether all that arrives is checked."""
    deadline: float
    """Seconds for one trial."""

    def order(self, case: Case, number: int) -> list[Contender]:
        """Who comes when in round *number*: each takes its turn at each place."""
        others = [each for each in self.others if case.task in each.tasks]
        turned = number % max(1, len(others))
        return [REFERENCE, *others[turned:], *others[:turned], REFERENCE]


@final
@attrs.define(eq=False)
class Rounds:
    """Measures what a plan says.

    What fails or takes too long is reported as that, with all that it had started
    ended, and the next one begins. If cancelled, whatever runs is ended.
    """

    plan: Plan
    report: Callable[[str], None]
    """Told of each trial, in a line for people."""
    measured: list[Measured] = attrs.field(factory=list[Measured], init=False)
    headline: list[Downtimes] = attrs.field(factory=list[Downtimes], init=False)
    faults: list[str] = attrs.field(factory=list[str], init=False)

    async def run(self, folder: Path) -> None:
        """Measure everything.

        Args:
          folder: where files for the programs may be.
        """
        for number in range(self.plan.rounds):
            for case in self.plan.cases:
                await self._measure_case(case, number, folder)
            if self.plan.headline_mib is not None:
                await self._measure_headline(number, self.plan.headline_mib)

    async def _measure_case(self, case: Case, number: int, folder: Path) -> None:
        plan = self.plan
        with memory(case, plan.total_mib * MIB, keep=plan.verify) as files:
            stream = StreamFiles.write(folder, case.devices)
            trial = Trial(case, files, stream, plan.verify)
            for contender in plan.order(case, number):
                await self._measure(trial, contender, number)

    async def _measure(self, trial: Trial, contender: Contender, number: int) -> None:
        outcome: Outcome | None = None
        fault: str | None = f"not done within {self.plan.deadline:g} s"
        try:
            with trio.move_on_after(self.plan.deadline):
                outcome = await trial.run(contender)
                fault = None
        # Whatever it is, the others are to be measured.
        except Exception as error:  # noqa: BLE001
            fault = "; ".join(_texts(error))
        case, name = trial.case, contender.name
        self.measured.append(Measured(number, case, name, outcome, fault))
        took = f"{outcome.seconds:.3f} s" if outcome else ""
        self._say(number, f"{case.name} {name}", took, fault)

    async def _measure_headline(self, number: int, size: int) -> None:
        took, fault = "", None
        try:
            found = await headline.measure(size)
            self.headline.append(found)
            took = f"(a) {found.main:.3f} s, (b) {found.multifd:.3f} s"
        except Exception as error:  # noqa: BLE001, as above
            fault = "; ".join(_texts(error))
        self._say(number, "headline", took, fault)

    def _say(self, number: int, what: str, took: str, fault: str | None) -> None:
        of = f"round {number + 1} of {self.plan.rounds}"
        if fault is not None:
            self.faults.append(f"{of}: {what}: {fault}")
        self.report(f"{of}: {what}: {fault or took}")


def _texts(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        for each in group.exceptions:
            yield from _texts(each)
    else:
        yield f"{type(error).__name__}: {error}"
