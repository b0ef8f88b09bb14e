"""One order of arrival, received by a true session in virtual time."""

from __future__ import annotations

import errno
from typing import Final, NoReturn, final

import attrs
import trio
from trio.testing import MockClock

from .. import Incoming, open_incoming
from ._devices import SimulatedSink
from ._order_cases import OrderCase
from ._order_checks import Ended, at_rest, in_the_end
from ._order_source import SIZE, Source, name
from ._orders import ArrivalOrder
from ._scheduling import deterministic_scheduling

_BEGIN: Final = 1.0
_STEP: Final = 1.0

LIMIT: Final = 100.0
"""Seconds of virtual time that no run takes."""

_ROOMY: Final = 1 << 20


def run_order(order: ArrivalOrder, case: OrderCase) -> list[str]:
    """Receive *order* as *case* says, and return what should not have been.

    A whole session in virtual time, in a run of Trio of its own: to be called
    where Trio does not run, by one thread of a process at a time. It ends in bounded
    time, whatever the session does, and goes the same way every time.

    Raises:
      ValueError: if no honest sender's packets arrive so, or the case does not fit.
      RuntimeError: if this Trio cannot be made deterministic.
    """
    order.check()
    return receive(order, case).violations


def receive(order: ArrivalOrder, case: OrderCase) -> Run:
    """Do what `run_order` does, and return the run."""
    if not 0 <= case.step <= len(order.arrivals):
        raise ValueError(f"there is no step {case.step}")
    run = Run(order, case)
    with deterministic_scheduling(case.seed):
        trio.run(run.run, clock=MockClock(autojump_threshold=0))
    return run


@final
@attrs.define(eq=False)
class Run:
    """A session that receives one order."""

    order: ArrivalOrder
    case: OrderCase
    violations: list[str] = attrs.field(factory=list[str], init=False)
    steps: int = attrs.field(default=0, init=False)
    """Of which the session has seen anything."""
    _source: Source = attrs.field(init=False)
    _sinks: list[SimulatedSink] = attrs.field(init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _switchover_at: float | None = attrs.field(default=None, init=False)

    async def run(self) -> None:
        """Receive the order, and look at what has become of it."""
        order, case = self.order, self.case
        self._source = Source.connected(order.devices, order.buffers, order.channels)
        self._sinks = [self._sink(device) for device in range(order.devices)]
        room = case.room * SIZE
        error: Exception | None = None
        incoming: Incoming | None = None
        with trio.move_on_after(LIMIT) as limit, self._scope:
            try:
                async with open_incoming(
                    self._source.connections,
                    {name(number): sink for number, sink in enumerate(self._sinks)},
                    max_queued_bytes=_ROOMY if case.shared else room,
                    max_session_bytes=room if case.shared else _ROOMY,
                ) as incoming:
                    await self._drive(incoming)
            except Exception as raised:  # noqa: BLE001 (whatever it is, it is judged)
                error = raised
        assert incoming is not None
        if limit.cancelled_caught:
            self.violations.append(f"had not ended after {LIMIT:g} s")
        ended = Ended(
            order=order,
            case=case,
            sinks=self._sinks,
            source=self._source,
            switchover_at=self._switchover_at,
            result=incoming.result(),
            error=error,
        )
        # One that stays is seen again and again.
        self.violations = list(dict.fromkeys((*self.violations, *in_the_end(ended))))

    def _sink(self, device: int) -> SimulatedSink:
        fails: dict[str, int] = {}
        fails_at_byte: int | None = None
        if self.case.event in ("write", "load_config", "finish"):
            faulty = self.order.arrivals[self.case.step]
            if faulty.device == device and self.case.event == "write":
                fails_at_byte = faulty.idx * SIZE
            elif faulty.device == device:
                fails = {self.case.event: errno.EIO}
        return SimulatedSink(
            precopy=False,
            seconds_per_call=self.case.seconds_per_call,
            fails=fails,
            fails_at_byte=fails_at_byte,
        )

    async def _drive(self, incoming: Incoming) -> None:
        await trio.sleep(_BEGIN)
        for step, arrival in enumerate((*self.order.arrivals, None)):
            if step == self.case.switchover:
                self._switchover_at = trio.current_time()
                self._source.switch_over()
                await self._rest(incoming)
            last = step == self.case.step
            self.steps = step + 1
            self._source.step(arrival, cut=last and self.case.event == "cut")
            if last and self.case.event in ("cancel", "cut"):
                await self._end()
            await self._rest(incoming)
        await self._source.main.told.wait()
        self._source.close()
        await incoming.wait_complete()

    async def _rest(self, incoming: Incoming) -> None:
        """Let everything run that can, and look at it."""
        await trio.sleep(_STEP)
        self.violations += at_rest(incoming, self._source)

    async def _end(self) -> NoReturn:
        """Let the session end, and with it this."""
        if self.case.event == "cancel":
            for _ in range(self.case.passes):
                await trio.lowlevel.checkpoint()
            self._scope.cancel(reason="so says the case")
            await trio.lowlevel.checkpoint()
        # What breaks one connection is the end of the source, soon.
        await trio.sleep(_STEP)
        self._source.close()
        await trio.sleep_forever()
