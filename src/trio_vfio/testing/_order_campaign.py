"""All orders of arrival of a few packets, and all that can go wrong meanwhile."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Final, TypeAlias, final

import attrs

from ._order_cases import SETTINGS, Event, OrderCase, events, settings
from ._order_run import receive
from ._orders import Arrival, ArrivalOrder, arrival_orders

# For one process at a time. The same for any executor, for it shows in the report.
_CHUNK: Final = 64

# None of these has a factor in common with what it is taken modulo.
_PER_ORDER, _PER_EVENT, _PER_TURN = 7, 5, 11
_PASSES: Final = 17

_NOTHING: Final[tuple[Event, int]] = ("nothing", 0)

_Key: TypeAlias = tuple[str, int, int, int]


@final
@attrs.frozen
class OrderViolation:
    """What should not have been, and where."""

    order: ArrivalOrder
    case: OrderCase
    what: tuple[str, ...]

    @property
    def python(self) -> str:
        """The expression that repeats it, with names from `trio_vfio.testing`."""
        return f"run_order({self.order!r}, {self.case!r})"

    def __str__(self) -> str:
        return f"{self.python}: {'; '.join(self.what)}"


@final
@attrs.frozen(kw_only=True)
class OrdersReport:
    """What came of a campaign."""

    orders: int = 0
    """How many orders of arrival were received."""
    cases: int = 0
    """How many pairs of an order and something that goes wrong, or nothing."""
    runs: int = 0
    """How many sessions that took: a session that ends early is the same for all
    orders that begin with what it has seen."""
    seconds: float = attrs.field(default=0.0, eq=False)
    """Of real time."""
    violations: tuple[OrderViolation, ...] = ()

    def __add__(self, other: OrdersReport) -> OrdersReport:
        """Return both as one; what took its time did so beside the other."""
        return OrdersReport(
            orders=self.orders + other.orders,
            cases=self.cases + other.cases,
            runs=self.runs + other.runs,
            seconds=max(self.seconds, other.seconds),
            violations=self.violations + other.violations,
        )


def check_orders(
    buffers: int = 2,
    *,
    devices: int = 2,
    channels: int = 2,
    events: int | None = None,
    turns: int = 1,
    most: int = 10,
    executor: Executor | None = None,
) -> OrdersReport:
    """Receive every order of arrival that an honest sender can bring about.

    Each goes through a whole session in virtual time, with room for so few packets
    that channels have to wait: once with nothing that goes wrong, and once for each
    event, which is a cancel or a cut connection at any step, or a fault in any call
    of any device. Devices are slow or not, room is for each of them or for all, and
    the switchover comes early or late, in 24 settings, of which each case has one
    in turn.

    To be called where Trio does not run.

    Args:
      buffers: how many packets of data each device has, before its config.
      devices: how many there are.
      channels: how many multifd channels there are.
      events: how many of them each order meets, in turn; None: all; 0: none.
      turns: in how many settings each case is run; with 24, in all.
      most: how many violations are enough: then this returns.
      executor: where to run it, a few orders at a time, if not here and now: in
        other processes, or in a single thread.

    Returns: the numbers, and all violations that were found, but not many more than
        *most*. Except for the time all is the same every time, with any executor.

    Raises:
      ValueError: if a number makes no sense.
      RuntimeError: if this Trio cannot be made deterministic.
    """
    if not 1 <= turns <= SETTINGS or most < 1 or (events or 0) < 0:
        raise ValueError("there is no campaign of so few or so many")
    began = time.perf_counter()
    orders = enumerate(arrival_orders(devices, channels, buffers))
    chunks = (
        _Chunk(chunk[0][0], tuple(order for _, order in chunk), events, turns, most)
        for chunk in iter(lambda: list(itertools.islice(orders, _CHUNK)), [])
    )
    reports = map(_Chunk.run, chunks) if executor is None else _spread(executor, chunks)
    total = OrdersReport()
    for report in reports:
        total += report
        if len(total.violations) >= most:
            break
    return attrs.evolve(total, seconds=time.perf_counter() - began)


@final
@attrs.frozen
class _Chunk:
    """Some orders that come one after another."""

    first: int
    orders: tuple[ArrivalOrder, ...]
    events: int | None
    turns: int
    most: int

    def run(self) -> OrdersReport:
        """Receive them."""
        seen: dict[_Key, tuple[Arrival, ...]] = {}
        violations: list[OrderViolation] = []
        orders = cases = runs = 0
        with _few_collections():
            for number, order in enumerate(self.orders, self.first):
                orders += 1
                for key, case in _cases(number, order, self):
                    cases += 1
                    beginning = seen.get(key, (None,))
                    if order.arrivals[: len(beginning)] == beginning:
                        continue
                    runs += 1
                    run = receive(order, case)
                    if case.event != "nothing":
                        seen[key] = order.arrivals[: run.steps]
                    if run.violations:
                        what = tuple(run.violations)
                        violations.append(OrderViolation(order, case, what))
                if len(violations) >= self.most:
                    break
        return OrdersReport(
            orders=orders,
            cases=cases,
            runs=runs,
            violations=tuple(violations),
        )


def _cases(
    number: int, order: ArrivalOrder, chunk: _Chunk
) -> Iterator[tuple[_Key, OrderCase]]:
    """Return the cases of an order, each with what is the same for other orders."""
    known = settings(order)
    every = list(events(order))
    if chunk.events is not None:
        first = number * chunk.events
        several = min(chunk.events, len(every))
        every = [every[(first + more) % len(every)] for more in range(several)]
    for place, (event, step) in enumerate([_NOTHING, *every]):
        for turn in range(chunk.turns):
            which = number * _PER_ORDER + place * _PER_EVENT + turn * _PER_TURN
            passes = (number + turn) % _PASSES if event == "cancel" else 0
            case = attrs.evolve(
                known[which % SETTINGS],
                event=event,
                step=step,
                passes=passes,
                seed=number + turn,
            )
            if event in ("write", "load_config", "finish"):
                device, idx, _ = order.arrivals[step]
                yield (event, device, idx, turn), case
            else:
                yield (event, step, 0, turn), case


def _spread(executor: Executor, chunks: Iterator[_Chunk]) -> Iterator[OrdersReport]:
    futures: list[Future[OrdersReport]] = []
    try:
        for chunk in chunks:
            futures.append(executor.submit(chunk.run))
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def _few_collections() -> Generator[None]:
    """Look for garbage seldom: of each session much stays until then, for not long."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
