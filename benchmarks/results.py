"""What was measured, as ratios to the reference within each round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import final

import attrs

from .cases import Case
from .contenders import REFERENCE
from .rounds import Measured
from .trial import Outcome

Figure = Callable[[Outcome], float]


@attrs.frozen
class Spread:
    """A figure over all rounds."""

    least: float
    median: float
    most: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of *values*, None if there are none."""
        if not values:
            return None
        return cls(min(values), median(values), max(values))


@final
@attrs.define(eq=False)
class Results:
    """All trials of a run."""

    measured: Sequence[Measured]

    def cases(self) -> list[Case]:
        """Return the cases, in the order in which they were measured."""
        return list(dict.fromkeys(each.case for each in self.measured))

    def contenders(self, case: Case) -> list[str]:
        """Return who did *case*, by name, the reference first."""
        names = {each.contender for each in self.measured if each.case == case}
        return sorted(names, key=lambda name: (name != REFERENCE.name, name))

    def spread(self, case: Case, contender: str, figure: Figure) -> Spread | None:
        """Return a figure of a contender over the rounds in which it had one."""
        return Spread.over(list(self._by_round(case, contender, figure).values()))

    def speed(self, case: Case, contender: str, other: str) -> Spread | None:
        """Return how fast it is, as a multiple of how fast *other* is."""
        return self._ratio(case, other, contender, lambda outcome: outcome.seconds)

    def cpu(self, case: Case, contender: str, other: str) -> Spread | None:
        """Return its processor time, as a multiple of that of *other*."""
        return self._ratio(case, contender, other, lambda outcome: outcome.cpu)

    def across(self, case: Case, other: Case, contender: str) -> Spread | None:
        """Return how fast *contender* is in *case*, as a multiple of *other*."""
        speeds = self._by_round(case, contender, gigabytes_per_second)
        others = self._by_round(other, contender, gigabytes_per_second)
        both = speeds.keys() & others.keys()
        return Spread.over([speeds[number] / others[number] for number in both])

    def _ratio(self, case: Case, one: str, other: str, figure: Figure) -> Spread | None:
        ones = self._by_round(case, one, figure)
        others = self._by_round(case, other, figure)
        both = ones.keys() & others.keys()
        return Spread.over([ones[number] / others[number] for number in both])

    def _by_round(self, case: Case, contender: str, figure: Figure) -> dict[int, float]:
        """Return a figure for each round: the mean, for who has two trials in it."""
        found: dict[int, list[float]] = {}
        for each in self.measured:
            if each.case == case and each.contender == contender and each.outcome:
                found.setdefault(each.round, []).append(figure(each.outcome))
        return {number: fmean(values) for number, values in found.items()}


def gigabytes_per_second(outcome: Outcome) -> float:
    """Return how fast it was."""
    return outcome.bytes / outcome.seconds / 1e9
