"""Simulated migrations find what is wrong with the core, if anything is."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Final

import pytest

from tests.forms import form
from tests.mutants.mutants import MUTANTS, Mutant
from trio_vfio.testing import FaultPlan, Violation, simulate

_SEEDS: Final = range(2000)
"""One of them has to catch a mutant, and none may catch the core as it is."""

_SOME_SEEDS: Final = sorted(
    {*range(40), *(parameters.values[0].seed for parameters in MUTANTS)}
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    # A migration logs its faults, and here are thousands.
    logger = logging.getLogger("trio_vfio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.mark.timeout(form(short=180, long=300))
@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_mutant_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form begins with the seed that is known to catch it."""
    for patch in mutant.patches:
        patch.apply(monkeypatch)

    known = form(short=[mutant.seed], long=[])
    seed, violations = _first_caught(itertools.chain(known, _SEEDS))

    # For the table of mutants; shown with -s.
    print(f"| {mutant.name} | {seed} | {violations[0].invariant} |")  # noqa: T201
    assert {each.invariant for each in violations} & set(mutant.falls.split())


@pytest.mark.timeout(form(short=180, long=300))
def test_nobody_is_caught_in_vain() -> None:
    for seed in form(short=_SOME_SEEDS, long=_SEEDS):
        found = simulate(FaultPlan.from_seed(seed)).violations
        assert not found, f"seed {seed}: {found}"


def _first_caught(seeds: Iterable[int]) -> tuple[int, tuple[Violation, ...]]:
    for seed in seeds:
        if found := simulate(FaultPlan.from_seed(seed)).violations:
            return seed, found
    raise AssertionError("nobody has caught it")
