"""Collaboration: whole migrations from a plan, the same every time."""

from __future__ import annotations

import errno
import logging
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import attrs
import pytest
import trio

import trio_vfio.testing
from tests.forms import form
from trio_vfio import Deadlines
from trio_vfio.testing import (
    INVARIANTS,
    CallbackFault,
    Cancel,
    DeviceFault,
    DevicePlan,
    Fault,
    FaultPlan,
    LinkFault,
    SimulatedSink,
    SimulatedSource,
    SinkFault,
    SourceFault,
    simulate,
)

ONE = (DevicePlan(size=2000, config=b"registers"),)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="trio_vfio")


def rebuilt(plan: FaultPlan) -> FaultPlan:
    names = {**vars(trio_vfio.testing), "Deadlines": Deadlines, "math": math}
    again = eval(repr(plan), names)  # noqa: S307
    assert isinstance(again, FaultPlan)
    return again


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_prints_as_python_that_rebuilds_it(seed: int) -> None:
    plan = FaultPlan.from_seed(seed)
    assert rebuilt(plan) == plan == FaultPlan.from_seed(seed)
    assert max(map(len, repr(plan).splitlines())) <= 100


def test_a_plan_prints_only_what_is_not_as_by_default() -> None:
    plan = FaultPlan(devices=ONE, delay={"main": 2.0})
    device = "DevicePlan(size=2000, config=b'registers')"
    assert repr(plan) == f"FaultPlan(devices=({device},), delay={{'main': 2.0}})"
    plan = FaultPlan(devices=ONE * 2, channels=4)
    assert repr(plan) == (
        "FaultPlan(\n"
        "    devices=(\n"
        f"        {device},\n"
        f"        {device},\n"
        "    ),\n"
        "    channels=4,\n"
        ")"
    )


def test_lots_can_be_limited() -> None:
    plans = [
        FaultPlan.from_seed(seed, devices=3, channels=7, size=9999, faults=False)
        for seed in range(20)
    ]
    for plan in plans:
        assert [device.size for device in plan.devices] == [9999] * 3
        assert (plan.channels, plan.faults) == (7, ())


def test_lots_are_of_every_kind() -> None:
    drawn: Counter[str] = Counter()
    plans = [FaultPlan.from_seed(seed) for seed in range(1000)]
    for plan in plans:
        drawn.update({type(fault).__name__ for fault in plan.faults} or {"none"})
        for fault in plan.faults:
            if isinstance(fault, LinkFault):
                drawn[fault.does] += 1
            elif isinstance(fault, SourceFault | SinkFault):
                drawn[f"{fault.fault.call} {fault.fault.does}"] += 1
    assert drawn["none"] in range(250, 450)
    assert min(drawn.values()) > 1
    assert {"cut", "reset", "half_close", "garbage", "stall"} < set(drawn)
    assert {"CallbackFault", "Cancel", "write hangs", "finish fails"} < set(drawn)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_plan_has_the_same_events(seed: int) -> None:
    one, other = (simulate(FaultPlan.from_seed(seed)) for _ in range(2))
    assert one == other
    assert one.digest == other.digest != simulate(FaultPlan.from_seed(seed + 1)).digest


def test_events_do_not_depend_on_how_python_hashes_and_where_things_lie() -> None:
    seeds = form(short=range(158, 166), long=range(150, 180))
    script = (
        "import logging, os; logging.disable();"
        "from trio_vfio.testing import *;"
        "lies = [object() for _ in range(1000 * int(os.environ['PYTHONHASHSEED']))];"
        "del lies[::3];"
        # Three devices of 162 wait for room in the session's budget.
        f"print([simulate(FaultPlan.from_seed(s)).digest for s in {seeds}])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "7")
    }
    assert len(said) == 1


@pytest.mark.parametrize(
    ("fault", "source", "destination"),
    [
        (SinkFault(0, DeviceFault("write", at_byte=700)), "failed", "failed"),
        (SinkFault(0, DeviceFault("finish", errno=errno.EINVAL)), "failed", "failed"),
        (SourceFault(0, DeviceFault("read_into", at_call=1)), "failed", "failed"),
        (LinkFault(0, "cut", at_byte=500), "failed", "failed"),
        (LinkFault("main", "garbage", at_byte=9, data=b"?"), "failed", "failed"),
        (LinkFault("main", "reset", at_time=1.5), "failed", "failed"),
        (LinkFault(1, "stall", at_byte=99), "failed", "failed"),
        (Cancel(side="source", at_time=1.5), "cancelled", "failed"),
        (Cancel(side="destination", at_time=1.5), "failed", "cancelled"),
        (CallbackFault("before_shut"), "failed", "failed"),
        (CallbackFault("before_switchover"), "failed", "failed"),
    ],
    ids=str,
)
def test_each_fault_fails_both_sides(
    fault: Fault, source: str, destination: str
) -> None:
    device = DevicePlan(size=2000, config=b"registers", write_seconds=1.0)
    plan = FaultPlan(devices=(device,), buffer_size=500, delay={0: 0.5})
    assert simulate(plan).source == simulate(plan).destination == "completed"

    result = simulate(attrs.evolve(plan, faults=(fault,)))

    assert (result.source, result.destination) == (source, destination)
    assert result.violations == ()
    assert not result.lost_last_word


def test_a_last_word_that_is_lost_is_said() -> None:
    # All of the return path but its last frame, of 8 bytes, comes to the source.
    healthy = simulate(FaultPlan(devices=ONE))
    said = sum("migrate_send_rp_message" in each.what for each in healthy.events)
    assert said == 2
    fault = LinkFault("main", "stall", at_byte=8, back=True)
    deadlines = Deadlines(switchover=60)
    plan = FaultPlan(devices=ONE, deadlines=deadlines, faults=(fault,))

    result = simulate(plan)

    assert (result.source, result.destination) == ("failed", "completed")
    assert result.lost_last_word
    assert result.violations == ()


def test_a_device_of_ones_own_takes_the_place_of_the_simulated_one() -> None:
    made: list[object] = []

    def sink(plan: DevicePlan) -> SimulatedSink:
        made.append(SimulatedSink(seconds_per_call=3.0))
        return made[-1]  # type: ignore[return-value]

    def source(plan: DevicePlan) -> SimulatedSource:
        made.append(SimulatedSource(size=plan.size, config=b"its own"))
        return made[-1]  # type: ignore[return-value]

    result = simulate(FaultPlan(devices=ONE), sink=sink, source=source)

    assert result.violations == ()
    assert result.destination == "completed"
    given, taken = made
    assert isinstance(given, SimulatedSource)
    assert isinstance(taken, SimulatedSink)
    assert taken.loaded == given.state
    assert taken.config == b"its own"
    # A buffer, the config, and the end.
    assert result.seconds == 3 * 3.0


class Lossy:
    """A sink that says that it took what it never asked for."""

    precopy = None

    async def begin(self) -> None:
        await trio.lowlevel.checkpoint()

    async def write(self, buffers: Iterator[memoryview]) -> None:
        next(buffers)
        await trio.lowlevel.checkpoint()

    async def load_config(self, blob: bytes) -> None:
        await trio.lowlevel.checkpoint()

    finish = abort = begin


def test_a_bad_device_of_ones_own_fails_and_harms_nobody() -> None:
    result = simulate(FaultPlan(devices=ONE * 3), sink=lambda _: Lossy())
    assert result.destination == result.source == "failed"
    assert "returned before all buffers were taken" in "".join(result.errors)
    # That it fails by itself is all that is wrong.
    assert {each.invariant for each in result.violations} == {"no-fault"}


def test_what_never_ends_is_ended_and_said() -> None:
    # Once the destination has the device, nothing may abort it here.
    fault = SourceFault(0, DeviceFault("finish", does="hangs"))
    result = simulate(FaultPlan(devices=ONE, faults=(fault,), patience=100.0))
    assert result.violations[0].invariant == "deadlines"
    assert "the source never ended" in str(result.violations[0])


def test_a_cancel_has_a_time_or_the_number_of_an_event() -> None:
    for arguments in ({}, {"at_time": 1.0, "at_event": 1}):
        with pytest.raises(ValueError, match="a time or"):
            Cancel(side="source", **arguments)  # type: ignore[arg-type]


def test_every_invariant_says_what_it_is() -> None:
    assert all(len(text) > 20 for text in INVARIANTS.values())


def test_garbage_may_be_taken_for_data() -> None:
    """Before the switchover, too: it made this plan violate an invariant."""
    run = simulate(FaultPlan.from_seed(925184))
    assert run.violations == ()
    assert run.destination == "failed"
