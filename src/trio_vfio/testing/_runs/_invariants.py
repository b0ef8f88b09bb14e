"""What must be so when a simulated migration is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from types import MappingProxyType
from typing import Final, final

import attrs

from ... import MigrationFailed, MigrationResult
from ..._receive._parting import PATIENCE
from ..._send._answers import LAST_CHANCE
from ..._wire._machine import acks_once
from .._faults import ConnectionName, LinkFault
from .._links import Link
from ._parts import GRACE
from ._plan import FaultPlan
from ._recorded import RecordedSink, RecordedSource
from ._watch import DestinationWatch, SourceWatch, Watch

_COMPLETED: Final = "completed"
_SHUT: Final = "migrate_send_rp_message 1:"
_ACKED: Final = "source_return_path_thread_switchover_acked"

# All that a session does at its end besides waiting for devices: a last word is sent
# (0.5 s) or awaited (0.1 s), a reset looked for (0.5 s), connections closed (1 s). A
# destination also waits for its source to close the channels.
_AT_THE_END: Final = {"source": 2.5, "destination": 2.5 + PATIENCE}


@final
@attrs.define(eq=False, kw_only=True)
class Facts:
    """All that is known of a migration in the end."""

    plan: FaultPlan
    link: Link
    source: SourceWatch
    destination: DestinationWatch
    sources: Sequence[RecordedSource]
    sinks: Sequence[RecordedSink]
    failures: dict[str, MigrationFailed] = attrs.field(
        factory=dict[str, MigrationFailed]
    )
    """What left the block of a side, by side."""

    def status(self, side: Watch) -> str:
        """Return how that side says that it ended."""
        result = self.result(side)
        return "never begun" if result is None else result.status

    def result(self, side: Watch) -> MigrationResult | None:
        """Return the result of that side, if it came so far as to have one."""
        return None if side.session is None else side.session.result()

    @property
    def lost_last_word(self) -> bool:
        """Whether the link died when the destination had said that it succeeded.

        Then it has the devices, and the source cannot know.
        """
        if self.status(self.destination) != _COMPLETED:
            return False
        if self.status(self.source) == _COMPLETED:
            return False
        return not self.plan.return_path or not self._heard_last_word

    @property
    def _heard_last_word(self) -> bool:
        """Whether all that the destination said came to the source, and in time."""
        # All may have been over before there was time to look.
        stopped_at = self.source.stopped_at or self.source.ended_at
        if self._is_faulty("main") or stopped_at is None:
            return False
        main = self.link.connections["main"]
        if main.received_back == main.sent_back:
            return True
        said = [e.time for e in self.source.log.events if e.what.startswith(_SHUT)]
        delay = self.plan.delay.get("main", 0) + self.plan.jitter.get("main", 0)
        return bool(said) and said[-1] + delay < stopped_at + LAST_CHANCE

    def _is_faulty(self, name: ConnectionName) -> bool:
        faults = self.plan.faults
        return any(isinstance(f, LinkFault) and f.connection == name for f in faults)


def _prefix(facts: Facts) -> Iterator[str]:
    for source, sink in zip(facts.sources, facts.sinks, strict=True):
        given, offered = source.given, sink.offered
        if given[: len(offered)] != offered and not _has_garbage(facts.plan):
            pairs = zip_longest(offered, given)
            at = next(n for n, (a, b) in enumerate(pairs) if a != b)
            yield f"{sink.name}: byte {at} of {len(offered)} is not the source's"


def _complete(facts: Facts) -> Iterator[str]:
    if facts.status(facts.destination) != _COMPLETED:
        return
    for source, sink in zip(facts.sources, facts.sinks, strict=True):
        if sink.offered != source.given:
            counts = f"{len(sink.offered)} of {len(source.given)} bytes"
            yield f"{sink.name}: success with {counts}"
        if sink.config is None or sink.config != source.config_blob:
            yield f"{sink.name}: success with config {sink.config!r}"


def _agreement(facts: Facts) -> Iterator[str]:
    source, destination = facts.status(facts.source), facts.status(facts.destination)
    if (source == _COMPLETED) == (destination == _COMPLETED) or facts.lost_last_word:
        return
    yield f"the source says {source!r}, the destination {destination!r}"


def _devices(facts: Facts) -> Iterator[str]:
    succeeded = facts.status(facts.destination) == _COMPLETED
    for sink in facts.sinks:
        yield from _device(sink, succeeded=succeeded)
        if succeeded and not sink.finished:
            yield f"{sink.name}: never finished, and all went well"
    succeeded = facts.status(facts.source) == _COMPLETED
    for source in facts.sources:
        yield from _device(source, succeeded=succeeded)


def _device(device: RecordedSource | RecordedSink, *, succeeded: bool) -> Iterator[str]:
    if device.running is not None:
        yield f"{device.name}: {device.running} never ended"
    if succeeded and device.aborts:
        yield f"{device.name}: was aborted, and all went well"
    if not succeeded and device.began and device.aborts != 1:
        yield f"{device.name}: was aborted {device.aborts} times"


def _promptness(facts: Facts) -> Iterator[str]:
    for side in (facts.source, facts.destination):
        if side.stopped_at is None or side.ended_at is None:
            continue
        latest = max(side.stopped_at + GRACE, side.last_call_end)
        latest += _AT_THE_END[side.side]
        if side.ended_at > latest:
            seconds = side.ended_at - side.stopped_at
            yield f"the {side.side} ended {seconds:g} s after it was cancelled"


def _deadlines(facts: Facts) -> Iterator[str]:
    for side in (facts.source, facts.destination):
        if side.ended_at is None:
            continue
        seconds = facts.plan.deadlines.switchover
        began = None if side.session is None else side.session.activity.switchover_at
        if seconds is None or began is None:
            continue
        done = side.ended_at if side.stopped_at is None else side.stopped_at
        latest = max(began + seconds, side.last_call_end)
        if done > latest + _AT_THE_END[side.side]:
            yield f"the {side.side} outlived its deadline of {seconds:g} s"


def _no_fault(facts: Facts) -> Iterator[str]:
    if facts.plan.faults:
        return
    for side in (facts.source, facts.destination):
        if (status := facts.status(side)) != _COMPLETED:
            why = facts.failures.get(side.side)
            reasons = [] if why is None else list(map(str, why.exceptions))
            yield f"the {side.side} says {status!r}: {'; '.join(reasons)}"


def _acks(facts: Facts) -> Iterator[str]:
    heard = sum(event.what.startswith(_ACKED) for event in facts.source.log.events)
    most = 1 if acks_once(facts.plan.machine) else len(facts.sinks)
    if heard > most:
        # No source waits for more, and a QEMU does not survive it.
        yield f"{heard} were sent, at most {most} can be waited for"


def _leftovers(facts: Facts) -> Iterator[str]:
    session = facts.destination.session
    if session is None or facts.status(facts.destination) != _COMPLETED:
        return
    for device in session.router.devices.values():
        if device.queue.bytes:
            yield f"{device.name}: {device.queue.bytes} bytes were never given back"


Check = Callable[[Facts], Iterator[str]]

AT_THE_END: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "prefix": _prefix,
        "complete": _complete,
        "agreement": _agreement,
        "devices": _devices,
        "cancel": _promptness,
        "deadlines": _deadlines,
        "no-fault": _no_fault,
        "acks": _acks,
        "leftovers": _leftovers,
    }
)
"""What is checked at the end, by the name of the invariant."""

INVARIANTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "prefix": "what a sink is given is what its source gave, from the first byte"
        " on, in order, without gap or repeat",
        "complete": "success is reported when every sink has all of it, and the config",
        "agreement": "both sides report success, or neither; unless the link died when"
        " the destination had said so",
        "switchover": "no device is stopped while the guest runs, and no sink is given"
        " more than pre-copy data before SWITCHOVER_START",
        "config-last": "the config comes after all data, and nothing after it",
        "abort": "nothing is asked of a device after abort, and no call is cut short by"
        " one before its time is over",
        "delivery": "nobody waits for what is there already, or for a device of others",
        "cancel": "a cancelled side asks nothing more of a device, and ends as soon as"
        " its device calls have",
        "devices": "on success every device is finished, else every one that began is"
        " aborted, once",
        "memory": "what waits for its turn is never more than it may be",
        "deadlines": "nothing outlives its deadline",
        "no-fault": "without faults a migration succeeds",
        "acks": "a switchover is acknowledged as often as was agreed upon",
        "contract": "the calls of a device come one by one, in their order",
        "leftovers": "every task, thread, descriptor and buffer is given back",
        "crash": "nothing but MigrationFailed leaves either side",
    }
)
"""What holds in every simulated migration, by the names of the invariants."""


def _has_garbage(plan: FaultPlan) -> bool:
    """Whether data may be garbage, which without checksums nobody can tell."""
    return any(
        isinstance(fault, LinkFault) and fault.does == "garbage" and not fault.back
        for fault in plan.faults
    )
