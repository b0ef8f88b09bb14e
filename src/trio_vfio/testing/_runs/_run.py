"""One migration in virtual time: both sides, the link between them, their devices."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Final, cast, final

import attrs
import trio
from trio.testing import MockClock

from ... import MigrationFailed, open_incoming, open_outgoing
from ..._device._port import StateSink, StateSource
from .._devices import SimulatedSink
from .._faults import LinkFault
from .._links import MemoryListener, link
from .._scheduling import deterministic_scheduling
from .._source_device import SimulatedSource
from ._events import Event, EventLog, digest
from ._invariants import AT_THE_END, Facts
from ._parts import (
    GRACE,
    CallbackFault,
    Cancel,
    DevicePlan,
    SinkFault,
    SourceFault,
)
from ._plan import FaultPlan
from ._recorded import RecordedSink, RecordedSource
from ._violations import Violation, Violations
from ._watch import DestinationWatch, Idle, SourceWatch, Watch

# Seconds behind all patience, after which nothing will ever happen.
_GUARD: Final = 3600.0

_UNKNOWN: Final = -1

MakeSink = Callable[[DevicePlan], StateSink]
MakeSource = Callable[[DevicePlan], StateSource]


@final
@attrs.frozen(kw_only=True, slots=False)
class SimulatedMigration:
    """What came of a plan."""

    plan: FaultPlan
    source: str
    """The status that the source has reported, as ``completed``, ``failed``,
    ``cancelled``; or ``never begun``."""
    destination: str
    """The same of the destination."""
    errors: tuple[str, ...]
    """What both sides have reported, those of the source first."""
    lost_last_word: bool
    """Whether the link died when the destination had said that it succeeded: the
    one case in which the two sides may end differently."""
    seconds: float
    """How much virtual time it took."""
    events: tuple[Event, ...] = attrs.field(repr=False)
    """All that happened, in order."""
    violations: tuple[Violation, ...]
    """The invariants that did not hold."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all events, in hex: the same for the same plan."""
        return digest(self.events)


def simulate(
    plan: FaultPlan,
    *,
    sink: MakeSink | None = None,
    source: MakeSource | None = None,
) -> SimulatedMigration:
    """Run a whole migration between two of ours, and check all `INVARIANTS`.

    Takes no real time to speak of, whatever virtual time passes, and goes the
    same way every time: the same plan has the same events. Not to be called
    within `trio.run`.

    Args:
      plan: the migration and its faults.
      sink: makes the sink of a device; by default a `SimulatedSink`, with the
        faults that the plan has for it, which a sink of your own does without.
        It must not use threads: their time is not virtual.
      source: the same for the source of a device; by default a
        `SimulatedSource`.

    Returns: what came of it. Whatever the sides did wrong is in its
        ``violations``, also what they raised.

    Raises:
      RuntimeError: if this Trio's scheduler cannot be made deterministic.
      Whatever *sink* and *source* raise.
    """
    simulation = _Simulation(plan, sink, source)
    before = _resources()
    with deterministic_scheduling(plan.seed):
        clock = MockClock(autojump_threshold=0)
        trio.run(simulation.run, clock=clock, instruments=[simulation.idle])
    simulation.check_resources(before)
    return simulation.result()


@final
@attrs.define(eq=False)
class _Simulation:
    """Both sides of a migration and all that is around them."""

    plan: FaultPlan
    make_sink: MakeSink | None
    make_source: MakeSource | None
    log: EventLog = attrs.field(factory=EventLog, init=False)
    violations: Violations = attrs.field(init=False)
    idle: Idle = attrs.field(factory=Idle, init=False)
    facts: Facts = attrs.field(init=False)
    listeners: list[MemoryListener] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.violations = Violations(self.log.now)

    async def run(self) -> None:
        """Migrate, and check what must be so in the end."""
        self._set_up()
        facts = self.facts
        self.idle.watches = (facts.source, facts.destination)
        async with trio.open_nursery() as nursery:
            for fault in self.plan.faults:
                if isinstance(fault, Cancel):
                    self._arm(fault, nursery)
            nursery.start_soon(self._guard)
            await self._both_sides()
            nursery.cancel_scope.cancel()
        for name, check in AT_THE_END.items():
            for what in check(facts):
                self.violations.add(name, what)

    def check_resources(self, before: dict[str, int]) -> None:
        """Check that nothing is left of what the process can run out of."""
        for what, count in _resources().items():
            if count > before[what] != _UNKNOWN:
                self.violations.add("leftovers", f"{count - before[what]} more {what}")

    def result(self) -> SimulatedMigration:
        """Return what came of it."""
        facts = self.facts
        return SimulatedMigration(
            plan=self.plan,
            source=facts.status(facts.source),
            destination=facts.status(facts.destination),
            errors=tuple(
                f"{side}: {error}"
                for side, failure in facts.failures.items()
                for error in failure.exceptions
            ),
            lost_last_word=facts.lost_last_word,
            seconds=self.log.now(),
            events=tuple(self.log.events),
            violations=tuple(self.violations.found),
        )

    def _set_up(self) -> None:
        plan = self.plan
        here, self.listeners = link(
            delay=plan.delay,
            jitter=plan.jitter,
            bandwidth=plan.bandwidth,
            window=plan.window,
            faults=[each for each in plan.faults if isinstance(each, LinkFault)],
            seed=plan.seed,
        )
        source = SourceWatch(side="source", log=self.log, violations=self.violations)
        destination = DestinationWatch(
            side="destination", log=self.log, violations=self.violations, link=here
        )
        numbers = range(len(plan.devices))
        sources = [self._source(number, source) for number in numbers]
        self.facts = Facts(
            plan=plan,
            link=here,
            source=source,
            destination=destination,
            sources=sources,
            sinks=[self._sink(each, destination, sources[each]) for each in numbers],
        )

    async def _both_sides(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._side, self.facts.destination, self._receive)
            nursery.start_soon(self._side, self.facts.source, self._send)

    async def _guard(self) -> None:
        """End what does not end by itself, or the run would never."""
        await trio.sleep(self.plan.patience + _GUARD)
        facts = self.facts
        for side in (facts.source, facts.destination):
            if side.ended_at is None:
                self.violations.add("deadlines", f"the {side.side} never ended")
        devices: tuple[RecordedSource | RecordedSink, ...]
        devices = (*facts.sources, *facts.sinks)
        for each in devices:
            if each.running is not None:
                with suppress(Exception):
                    await each.device.abort()

    async def _side(self, watch: Watch, run: Callable[[], Awaitable[None]]) -> None:
        with watch.scope:
            watch.scope.relative_deadline = self.plan.patience
            try:
                await run()
            except MigrationFailed as failure:
                self.facts.failures[watch.side] = failure
            except Exception as error:  # noqa: BLE001 (that is a finding)
                self._crashed(watch, error)
        watch.ended_at = self.log.now()
        self.log.add(watch.side, "has ended")

    def _crashed(self, watch: Watch, error: Exception) -> None:
        callbacks = [f for f in self.plan.faults if isinstance(f, CallbackFault)]
        if not (callbacks and isinstance(error, _CallbackError)):
            self.violations.add("crash", f"the {watch.side}: {_leaves(error)}")

    async def _receive(self) -> None:
        facts, plan = self.facts, self.plan
        async with open_incoming(
            self.listeners,
            {plan.idstr(n): sink for n, sink in enumerate(facts.sinks)},
            deadlines=plan.deadlines,
            device_grace=GRACE,
            max_queued_bytes=plan.max_queued_bytes,
            max_session_bytes=plan.max_session_bytes,
            before_shut=lambda _: self._call_back("before_shut"),
            trace=self.log.hook("destination"),
        ) as facts.destination.incoming:
            await facts.destination.incoming.wait_complete()

    async def _send(self) -> None:
        facts, plan = self.facts, self.plan
        async with open_outgoing(
            facts.link,
            {plan.idstr(n): source for n, source in enumerate(facts.sources)},
            channels=plan.channels,
            machine=plan.machine,
            return_path=plan.return_path,
            switchover_ack=plan.switchover_ack,
            deadlines=plan.deadlines,
            device_grace=GRACE,
            buffer_size=plan.buffer_size,
            max_queued_bytes=plan.max_queued_bytes,
            max_session_bytes=plan.max_session_bytes,
            trace=self.log.hook("source"),
        ) as facts.source.outgoing:
            await facts.source.outgoing.migrate(before_switchover=self._stop_guest)

    async def _stop_guest(self) -> None:
        await trio.sleep(self.plan.stop_seconds)
        await self._call_back("before_switchover")
        self.facts.source.guest_stopped = True

    async def _call_back(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        for fault in self.plan.faults:
            if isinstance(fault, CallbackFault) and fault.name == name:
                raise _CallbackError(name)

    def _arm(self, fault: Cancel, nursery: trio.Nursery) -> None:
        facts = self.facts
        side = facts.source if fault.side == "source" else facts.destination

        def cancel() -> None:
            self.log.add(side.side, "is cancelled")
            side.scope.cancel()

        async def cancel_later(seconds: float) -> None:
            await trio.sleep(seconds)
            cancel()

        if fault.at_time is not None:
            nursery.start_soon(cancel_later, fault.at_time)
        elif isinstance(fault.at_event, int):
            self.log.at_number[fault.at_event] = cancel
        elif fault.at_event is not None:
            self.log.at_first[fault.at_event] = cancel

    def _source(self, number: int, watch: SourceWatch) -> RecordedSource:
        plan = self.plan.devices[number]
        make = self.make_source or partial(self._simulated_source, number)
        idstr = self.plan.idstr(number)
        return RecordedSource(who=idstr, watch=watch, device=make(plan))

    def _sink(
        self, number: int, watch: DestinationWatch, source: RecordedSource
    ) -> RecordedSink:
        plan = self.plan.devices[number]
        make = self.make_sink or partial(self._simulated_sink, number)
        idstr = self.plan.idstr(number)
        return RecordedSink(
            who=idstr,
            watch=watch,
            device=make(plan),
            source=source,
            garbage=self.plan.has_garbage_on("main"),
        )

    def _simulated_source(self, number: int, plan: DevicePlan) -> SimulatedSource:
        return SimulatedSource(
            size=plan.size,
            initial_bytes=plan.initial_bytes,
            dirty_bytes=plan.dirty_bytes,
            dirty_per_second=plan.dirty_per_second,
            ends_precopy=plan.ends_precopy,
            most_per_read=plan.most_per_read,
            config=plan.config,
            seconds_per_call=plan.read_seconds,
            cost_seed=self.plan.seed + number,
            seed=self.plan.seed + number,
            faults=[
                each.fault
                for each in self.plan.faults
                if isinstance(each, SourceFault) and each.device == number
            ],
        )

    def _simulated_sink(self, number: int, plan: DevicePlan) -> SimulatedSink:
        return SimulatedSink(
            precopy=plan.takes_precopy,
            threaded=plan.threaded,
            seconds_per_call=plan.write_seconds,
            cost_seed=self.plan.seed + number,
            faults=[
                each.fault
                for each in self.plan.faults
                if isinstance(each, SinkFault) and each.device == number
            ],
        )


class _CallbackError(Exception):
    """What a function of the caller's raises in a plan with a `CallbackFault`."""


def _leaves(error: BaseException) -> str:
    """Return what *error* is at bottom, if it is a group."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return "; ".join(map(_leaves, group.exceptions))
    return f"{type(error).__name__}: {error}"


def _resources() -> dict[str, int]:
    """Count what a process can run out of.

    Threads of Trio's only, and descriptors only where no other thread has its own.
    """
    descriptors = Path("/proc/self/fd")
    alone = threading.active_count() == 1 and descriptors.exists()
    return {
        "threads": sum("Trio" in thread.name for thread in threading.enumerate()),
        "descriptors": len(os.listdir(descriptors)) if alone else _UNKNOWN,
    }
