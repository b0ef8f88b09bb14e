"""What must be shown: how fast it has to be at least, and how fast it is meant to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs
from rich.table import Table

from .cases import KIB, Case, Medium, Task
from .contenders import COPY, OURS, REFERENCE, THREADS
from .headline import Downtimes
from .results import Results, Spread

_LOAD: Final = Case(task=Task.LOAD)
_SAVE: Final = Case(task=Task.SAVE)
_OURS: Final = OURS.name


@attrs.frozen
class Wanted:
    """One figure, with the least that will do and what is aimed at."""

    what: str
    floor: float | None
    """None: nothing depends on it."""
    aim: float | None
    of: Callable[[Results, Sequence[Downtimes]], Spread | None]
    less_is_better: bool = False

    def verdict(self, found: Spread | None) -> str:
        """Say whether its median will do."""
        if found is None:
            return "not measured"
        if self.floor is None or self.aim is None:
            return ""
        if self._reaches(found.median, self.aim):
            return "ok, as aimed at"
        return "ok" if self._reaches(found.median, self.floor) else "BELOW"

    def _reaches(self, value: float, mark: float) -> bool:
        return value < mark if self.less_is_better else value >= mark


def _against(case: Case, other: str, floor: float | None, aim: float | None) -> Wanted:
    what = f"{case.name}, against {other}"
    return Wanted(what, floor, aim, lambda found, _: found.speed(case, _OURS, other))


def _wanted() -> Iterator[Wanted]:
    c = REFERENCE.name
    pipe = attrs.evolve(_LOAD, medium=Medium.PIPE)
    yield _against(_LOAD, c, 0.65, 0.90)
    yield _against(pipe, c, 0.75, 0.95)
    yield _against(attrs.evolve(pipe, us_per_mib=1000), c, 0.80, 0.98)
    yield _against(attrs.evolve(_LOAD, packet=64 * KIB), c, 0.45, 0.70)
    yield _against(_SAVE, c, 0.90, 1.00)
    yield _against(attrs.evolve(_SAVE, medium=Medium.PIPE), c, 0.90, 1.00)
    yield Wanted(
        f"{_LOAD.name}, CPU of C's",
        1.5,
        1.2,
        lambda found, _: found.cpu(_LOAD, _OURS, c),
        less_is_better=True,
    )
    yield Wanted(
        "headline, downtime (b)/(a)",
        0.40,
        0.28,
        lambda _, headline: Spread.over([each.ratio for each in headline]),
        less_is_better=True,
    )
    many = attrs.evolve(_LOAD, devices=32)
    yield Wanted(
        f"{many.name}, against 4dev",
        0.85,
        0.95,
        lambda found, _: found.across(many, _LOAD, _OURS),
    )
    yield _against(_LOAD, THREADS.name, 0.90, 1.10)
    yield Wanted(
        "memory, of what is allowed, in all cases",
        1.0,
        1.0,
        lambda found, _: _memory(found),
        less_is_better=True,
    )
    yield _against(Case(task=Task.WHOLE), COPY.name, None, None)


def _memory(results: Results) -> Spread | None:
    """What a process takes besides its interpreter, of 16 MiB a device and 16 more."""
    cases = (case for case in results.cases() if case.task != Task.WHOLE)
    found = (
        (case, results.spread(case, _OURS, lambda outcome: outcome.own_mib))
        for case in cases
    )
    most = [own.most / (16 * case.devices + 16) for case, own in found if own]
    return Spread.over(most)


WANTED: Final = tuple(_wanted())


def must_show(results: Results, headline: Sequence[Downtimes]) -> Table:
    """Return the table of what must be shown, and whether it was."""
    made = Table(title="what must be shown")
    made.add_column("what", no_wrap=True)
    for name in ("floor", "aim", "min", "median", "max"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("", no_wrap=True)
    for each in WANTED:
        found = each.of(results, headline)
        below = "below " if each.less_is_better else ""
        marks = [
            f"{below}{mark:.2f}" if mark else "" for mark in (each.floor, each.aim)
        ]
        figures = [found.least, found.median, found.most] if found else []
        cells = [f"{figure:.2f}" for figure in figures] or ["-"] * 3
        made.add_row(each.what, *marks, *cells, each.verdict(found))
    return made
