"""Collaboration: many seeds, wherever they run, come to the same report."""

from __future__ import annotations

import gc
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import attrs
import pytest
import trio

from tests.forms import form
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
    LinkFault,
    SimulatedMigration,
    SimulatedSink,
    SinkFault,
    SourceFault,
    run_campaign,
    shrink,
    simulate,
)
from trio_vfio.testing._runs import _campaign
from trio_vfio.testing._runs._in_time import simulate_in_time

CAP_OFF_BY_ONE = Patch(
    ReorderQueue.admits, "<= self.max_bytes", "<= self.max_bytes + 1"
)
CHUNK = form(short=10, long=50)
COUNT = form(short=24, long=120)
"""Of seeds: more than one chunk, and one that is not full."""

SHUT_0_ON_FAILURE = Patch(ReturnPath._run, "self._send_shut(1)", "self._send_shut(0)")


@pytest.fixture(autouse=True)
def chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks of seeds small, so that few seeds are several chunks."""
    monkeypatch.setattr(_campaign, "_CHUNK", CHUNK)


def test_a_report_counts_what_has_come_of_each_seed() -> None:
    done: list[int] = []
    report = run_campaign(range(COUNT), progress=done.append)
    assert done == [*range(CHUNK, COUNT, CHUNK), COUNT]
    assert report.seeds == sum(report.outcomes.values()) == COUNT
    assert report.outcomes["completed, completed"] >= report.without_faults > COUNT / 4
    assert report.violations == ()
    assert report.virtual_seconds > 100
    assert report.peak_rss > 1 << 20
    assert report.seeds_per_second == COUNT / report.seconds


def test_it_does_not_matter_where_seeds_are_run() -> None:
    draws = Draws(devices=2, channels=3)
    here = run_campaign(range(COUNT), draws)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        there = run_campaign(range(COUNT), draws, executor=pool)
    assert here == there


def test_a_digest_depends_on_each_seed() -> None:
    draws = Draws(devices=1, channels=1, size=100)
    counts = (CHUNK, CHUNK + 1)
    digests = {run_campaign(range(count), draws).digest for count in counts}
    assert len(digests) == 2


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
        if done == 2 * CHUNK:
            raise KeyboardInterrupt

    draws = Draws(devices=1, channels=1, size=100)
    report = run_campaign(range(1000), draws, progress=interrupt)
    assert (report.seeds, report.interrupted) == (2 * CHUNK, True)


async def _yield_for_ever() -> None:
    while True:
        await trio.lowlevel.cancel_shielded_checkpoint()


async def _loop_for_ever() -> None:
    while True:
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("hang", [_yield_for_ever, _loop_for_ever])
def test_a_run_without_end_is_ended_and_has_its_seed(
    hang: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[SimulatedSink] = []

    async def begin(device: SimulatedSink) -> None:
        began.append(device)
        if len(began) == 2:
            await hang()

    draws = Draws(devices=1, faults=False)
    hangs = draws.plan(1)

    def soon(plan: FaultPlan) -> SimulatedMigration:
        # Others may take longer on a busy machine.
        return simulate_in_time(plan, patience=0.5 if plan == hangs else 60)

    monkeypatch.setattr(SimulatedSink, "begin", begin)
    monkeypatch.setattr(_campaign, "simulate_in_time", soon)
    report = run_campaign(range(4), draws)
    hung = [each for each in report.violations if "still runs" in each.violation.what]
    assert [each.seed for each in hung] == [1]
    assert report.outcomes["hung, hung"] == 1
    assert (report.seeds, sum(report.outcomes.values())) == (4, 4)


def test_a_timer_of_the_caller_goes_on() -> None:
    def rings(*_: object) -> None:
        raise AssertionError("this soon")

    before = signal.signal(signal.SIGALRM, rings)
    timer = signal.setitimer(signal.ITIMER_REAL, 40.0, 7.0)
    try:
        simulate_in_time(FaultPlan.from_seed(1))
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left < 40
        assert interval == 7.0
        assert signal.getsignal(signal.SIGALRM) is rings
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_a_timer_of_the_caller_rings_however_short_runs_are() -> None:
    rung: list[int] = []

    def rings(number: int, _: object) -> None:
        rung.append(number)

    before = signal.signal(signal.SIGALRM, rings)
    timer = signal.setitimer(signal.ITIMER_REAL, 1e-4)
    try:
        simulate_in_time(FaultPlan.from_seed(1))
        assert rung == [signal.SIGALRM]
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_threads_of_a_worker_come_to_the_same_report() -> None:
    # As those of a Dask worker with several.
    draws = Draws(devices=2, channels=2)
    with ThreadPoolExecutor(3) as pool:
        there = run_campaign(range(COUNT), draws, executor=pool)
    assert there == run_campaign(range(COUNT), draws)


def test_what_is_kept_alive_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def keep(plan: FaultPlan) -> SimulatedMigration:
        kept.append(Session.__new__(Session))
        return simulate_in_time(plan)

    monkeypatch.setattr(_campaign, "simulate_in_time", keep)
    monkeypatch.setattr(_campaign, "_LOOKS", 2)
    (found,) = run_campaign(range(3)).violations
    assert found.violation.invariant == "leftovers"
    assert "3 sessions are alive after seeds 0 to 2" in found.violation.what


def test_session_that_a_profiler_holds_for_a_moment_is_no_leftover(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A profiler's thread holds the frames of other threads while it looks at them."""
    held: list[Session] = []

    def look(plan: FaultPlan) -> SimulatedMigration:
        run = simulate_in_time(plan)
        held.extend(each for each in gc.get_objects() if type(each) is Session)
        return run

    def let_go(seconds: float) -> None:
        assert held
        held.clear()

    monkeypatch.setattr(_campaign, "simulate_in_time", look)
    monkeypatch.setattr("time.sleep", let_go)
    assert run_campaign(range(1), Draws(faults=False)).violations == ()
    assert not held


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
        seed=3, devices=(DevicePlan(size=2000),), channels=1, faults=(guilty,)
    )
    assert small == shrink(plan)


def test_what_a_fault_is_about_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    SHUT_0_ON_FAILURE.apply(monkeypatch)
    plan = FaultPlan(
        devices=(DevicePlan(size=2000),) * 4,
        channels=5,
        jitter={"main": 0.1, 4: 0.1},
        faults=(
            SinkFault(2, DeviceFault("finish")),
            LinkFault(3, "stall", at_byte=9000),
        ),
    )

    def run(plan: FaultPlan) -> SimulatedMigration:
        # As if it took both, and the jitter of main.
        done = simulate(plan)
        is_enough = len(plan.faults) == 2 and "main" in plan.jitter
        return done if is_enough else attrs.evolve(done, violations=())

    assert shrink(plan, run=run) == attrs.evolve(
        plan, devices=plan.devices[:3], channels=4, jitter={"main": 0.1}
    )


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
    assert small == attrs.evolve(plan, devices=(device,), channels=1)
