"""Collaboration: many seeds, wherever they run, come to the same report."""

from __future__ import annotations

import signal
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from types import FrameType
from typing import Any

import attrs
import pytest

from tests.mutants.mutants import Patch
from trio_vfio._receive._reorder import ReorderQueue
from trio_vfio._receive._return_path import ReturnPath
from trio_vfio._receive._session import Session
from trio_vfio.testing import (
    CallbackFault,
    DeviceFault,
    DevicePlan,
    Draws,
    FaultPlan,
    SimulatedMigration,
    SinkFault,
    SourceFault,
    run_campaign,
    shrink,
    simulate,
)
from trio_vfio.testing._runs import _campaign

CAP_OFF_BY_ONE = Patch(
    ReorderQueue.admits, "<= self.max_bytes", "<= self.max_bytes + 1"
)
SHUT_0_ON_FAILURE = Patch(ReturnPath.run, "self._send_shut(1)", "self._send_shut(0)")


def test_a_report_counts_what_has_come_of_each_seed() -> None:
    done: list[int] = []
    report = run_campaign(range(120), progress=done.append)
    assert done == [50, 100, 120]
    assert report.seeds == sum(report.outcomes.values()) == 120
    assert report.outcomes["completed, completed"] >= report.without_faults > 30
    assert report.violations == ()
    assert report.virtual_seconds > 100
    assert report.peak_rss > 1 << 20
    assert report.seeds_per_second == 120 / report.seconds


def test_it_does_not_matter_where_seeds_are_run() -> None:
    here = run_campaign(range(110), Draws(devices=2, channels=3))
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        there = run_campaign(range(110), Draws(devices=2, channels=3), executor=pool)
    assert here == there
    assert here.digest != run_campaign(range(109), Draws(devices=2, channels=3)).digest


def test_draws_limit_all_plans() -> None:
    plan = Draws(devices=3, channels=4, size=77, faults=False).plan(5)
    assert plan == FaultPlan.from_seed(5, devices=3, channels=4, size=77, faults=False)


def test_a_violation_has_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    CAP_OFF_BY_ONE.apply(monkeypatch)
    report = run_campaign(range(90, 120))
    assert report.violations
    for each in report.violations:
        assert each.violation.invariant == "memory"
        assert each.violation in simulate(Draws().plan(each.seed)).violations


def test_an_interrupt_ends_it_and_what_is_done_is_reported() -> None:
    def interrupt(done: int) -> None:
        if done == 100:
            raise KeyboardInterrupt

    report = run_campaign(range(1000), progress=interrupt)
    assert (report.seeds, report.interrupted) == (100, True)


def test_a_run_without_end_is_ended_and_has_its_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hang(plan: FaultPlan) -> SimulatedMigration:
        if plan.seed == 1:
            signal.pause()
        return simulate(plan)

    @contextmanager
    def soon() -> Generator[None]:
        def end(number: int, frame: FrameType | None) -> None:
            raise _campaign._TooLongError

        before = signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    monkeypatch.setattr(_campaign, "simulate", hang)
    monkeypatch.setattr(_campaign, "_time_limit", soon)
    report = run_campaign(range(3))
    assert [each.seed for each in report.violations] == [1]
    assert "still runs" in str(report.violations[0].violation)


def test_what_is_kept_alive_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def keep(plan: FaultPlan) -> SimulatedMigration:
        kept.append(Session.__new__(Session))
        return simulate(plan)

    monkeypatch.setattr(_campaign, "simulate", keep)
    (found,) = run_campaign(range(3)).violations
    assert found.violation.invariant == "leftovers"
    assert "3 sessions are alive" in found.violation.what


def test_a_plan_shrinks_to_the_fault_that_does_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    SHUT_0_ON_FAILURE.apply(monkeypatch)
    guilty = SinkFault(0, DeviceFault("finish"))
    plan = FaultPlan(
        seed=3,
        devices=(DevicePlan(size=2000, config=b"c", read_seconds=0.1),) * 2,
        delay={"main": 0.3},
        jitter={0: 0.2},
        faults=(
            SourceFault(1, DeviceFault("finish")),
            guilty,
            SourceFault(0, DeviceFault("pending", at_call=99)),
        ),
    )
    assert simulate(plan).violations

    small = shrink(plan)

    assert simulate(small).violations
    assert small.faults == (guilty,)
    assert small == FaultPlan(
        seed=3, devices=(DevicePlan(size=2000),) * 2, faults=(guilty,)
    )
    assert small == shrink(plan)


def test_a_plan_that_violates_nothing_is_as_small_as_it_is() -> None:
    plan = FaultPlan(
        devices=(DevicePlan(size=1),), faults=(CallbackFault("before_shut"),)
    )
    assert shrink(plan) is plan


def test_shrinking_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    SHUT_0_ON_FAILURE.apply(monkeypatch)
    device = DevicePlan(size=2000, config=b"c", read_seconds=0.1, write_seconds=0.1)
    fault = SinkFault(0, DeviceFault("finish"))
    plan = FaultPlan(devices=(device,) * 4, faults=(fault,), delay={0: 1.0})
    ran: list[FaultPlan] = []

    def run(plan: FaultPlan) -> SimulatedMigration:
        ran.append(plan)
        return simulate(plan)

    small = shrink(plan, run=run, most=5)
    assert len(ran) == 5
    assert simulate(small).violations
    assert small == attrs.evolve(plan, delay={}, devices=small.devices)
