"""What is done with an order of arrival: what happens meanwhile, and how fast."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias, final

import attrs

from ._orders import ArrivalOrder

Event: TypeAlias = Literal["nothing", "cancel", "cut", "write", "load_config", "finish"]

# Never a whole number of seconds in a few calls: at the time of a step all rests.
_SLOW: Final = 3.3


@final
@attrs.frozen
class OrderCase:
    """One way to receive an order of arrival.

    A second passes from one packet to the next. Its ``repr`` is Python that
    rebuilds it.
    """

    event: Event = "nothing"
    """What goes wrong: the receiver is cancelled, the connection that brings
    something breaks in the midst of it, or this call of a device fails."""
    step: int = 0
    """When: as this packet arrives, or behind the last one, as main ends."""
    slow: bool = False
    """Whether a device call takes more than three seconds, not none."""
    room: int = 1
    """How many packets of a device may wait for one that is due."""
    shared: bool = False
    """Whether that is for all devices together."""
    switchover: int = 0
    """Before which packet SWITCHOVER_START comes."""
    passes: int = 0
    """How often other tasks get to run between a step and a cancel."""
    seed: int = 0
    """Of the order in which Trio runs tasks that are ready."""

    @property
    def seconds_per_call(self) -> float:
        """What a device call takes."""
        return _SLOW if self.slow else 0.0


SETTINGS: Final = 24
"""How many `settings` there are."""


def settings(order: ArrivalOrder) -> list[OrderCase]:
    """Return all ways to receive *order* without an event."""
    last = len(order.arrivals)
    rooms = ((1, False), (1, True), (2, False), (last, False))
    several = itertools.product((False, True), rooms, (0, last // 2, last))
    return [
        OrderCase(slow=slow, room=room, shared=shared, switchover=switchover)
        for slow, (room, shared), switchover in several
    ]


def events(order: ArrivalOrder) -> Iterator[tuple[Event, int]]:
    """Return all that can go wrong, each with its step."""
    for step in range(len(order.arrivals) + 1):
        yield "cancel", step
        yield "cut", step
    for step, arrival in enumerate(order.arrivals):
        if arrival.idx < order.buffers:
            yield "write", step
        else:
            yield "load_config", step
            yield "finish", step
