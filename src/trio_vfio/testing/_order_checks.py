"""What holds of a session at rest, and when it has ended."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Final, final

import attrs

from .. import DeviceError, Incoming, MigrationFailed, MigrationResult, TrioVfioError
from ._at_rest import held_up, over_limits
from ._devices import SimulatedSink
from ._order_cases import OrderCase
from ._order_source import Source, config, data, name
from ._orders import ArrivalOrder

_FAULTS: Final = ("write", "load_config", "finish")


def at_rest(incoming: Incoming, source: Source) -> Iterator[str]:
    """Say what is wrong with a session whose tasks all wait."""
    # What waits for what is nobody's business but the session's own.
    session = incoming._session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    router = session.router
    yield from held_up(router, lambda channel: len(source.channels[channel].arrived))
    devices = list(router.devices.values())
    yield from over_limits(devices, session.options.max_session_bytes)


@final
@attrs.frozen(eq=False, kw_only=True)
class Ended:
    """A session that has ended, and all that is known of it."""

    order: ArrivalOrder
    case: OrderCase
    sinks: Sequence[SimulatedSink]
    source: Source
    switchover_at: float | None
    result: MigrationResult
    error: Exception | None
    """What has left the session's block."""

    @property
    def faults(self) -> list[TrioVfioError]:
        """Return what it has found."""
        found = self.error.exceptions if isinstance(self.error, MigrationFailed) else ()
        return [each for each in found if isinstance(each, TrioVfioError)]

    @property
    def completed(self) -> bool:
        """Whether it says that it has succeeded."""
        return self.result.status == "completed"


def in_the_end(ended: Ended) -> Iterator[str]:
    """Say what is wrong with it."""
    yield from _check_outcome(ended)
    said = ended.source.main.last_words()
    if said != [0 if ended.completed else 1]:
        yield f"it is {ended.result.status}, and the source was told {said}"
    for number, sink in enumerate(ended.sinks):
        for what in _check_device(number, sink, ended):
            yield f"{name(number)}: {what}"


def _check_outcome(ended: Ended) -> Iterator[str]:
    event, status, faults = ended.case.event, ended.result.status, ended.faults
    of_devices = [fault for fault in faults if isinstance(fault, DeviceError)]
    right = {
        "nothing": status == "completed" and not faults,
        "cancel": status in ("cancelled", "completed") and not faults,
        "cut": status == "failed" and faults and not of_devices,
    }.get(event, status == "failed" and len(faults) == len(of_devices) == 1)
    if not right:
        yield f"{event}, and it is {status} with {list(map(str, faults))}"
    if ended.error is not None and not isinstance(ended.error, MigrationFailed):
        yield f"raised {ended.error!r}"
    if event in _FAULTS and of_devices:
        device = ended.order.arrivals[ended.case.step].device
        want = (name(device), event, errno.EIO)
        got = of_devices[0]
        if (got.idstr, got.operation, got.errno) != want:
            yield f"{event} of {name(device)} has failed, and it says {got}"


def _check_device(number: int, sink: SimulatedSink, ended: Ended) -> Iterator[str]:
    buffers = ended.order.buffers
    whole = b"".join(data(number, idx) for idx in range(buffers))
    if not whole.startswith(sink.loaded):
        yield f"accepted {sink.loaded.hex()}, which is not how {whole.hex()} begins"
    if sink.config not in (None, config(number)):
        yield f"accepted {sink.config!r} as its config"
    calls = [call.name for call in sink.calls]
    all_calls = ["begin", *["write"] * buffers, "load_config", "finish"]
    want = all_calls if ended.completed else [*all_calls[: len(calls) - 1], "abort"]
    yield from _check_times(sink, ended)
    if calls and calls != want:
        yield f"{' '.join(calls)} is not how calls go if {ended.result.status}"
    if ended.completed and sink.loaded != whole:
        yield f"completed, with only {sink.loaded.hex()} of {whole.hex()}"


def _check_times(sink: SimulatedSink, ended: Ended) -> Iterator[str]:
    switchover, before = ended.switchover_at, 0.0
    for call in sink.calls:
        early = switchover is None or call.time < switchover
        if call.name not in ("begin", "abort") and early:
            yield f"{call.name} at {call.time:g} s, before SWITCHOVER_START"
        if call.time < before:
            yield f"{call.name} at {call.time:g} s, while a call was under way"
        if call.name != "begin":
            before = call.time + ended.case.seconds_per_call
