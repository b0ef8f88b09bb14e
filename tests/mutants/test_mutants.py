"""Simulated migrations find what is wrong with the core, if anything is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import pytest

from tests.mutants.mutants import MUTANTS, Mutant
from trio_vfio.testing import FaultPlan, Violation, simulate

_SEEDS: Final = range(2000)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    # A migration logs its faults, and here are thousands.
    logger = logging.getLogger("trio_vfio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_mutant_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    for patch in mutant.patches:
        patch.apply(monkeypatch)

    seed, violations = _first_caught()

    # For whoever runs this with -s.
    print(f"| {mutant.name} | {seed} | {violations[0].invariant} |")  # noqa: T201
    assert {each.invariant for each in violations} & set(mutant.falls.split())


@pytest.mark.timeout(300)
def test_nobody_is_caught_in_vain() -> None:
    for seed in _SEEDS:
        found = simulate(FaultPlan.from_seed(seed)).violations
        assert not found, f"seed {seed}: {found}"


def _first_caught() -> tuple[int, tuple[Violation, ...]]:
    for seed in _SEEDS:
        if found := simulate(FaultPlan.from_seed(seed)).violations:
            return seed, found
    raise AssertionError("nobody has caught it")
