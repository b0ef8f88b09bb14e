"""The smallest plan that still shows what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, final

import attrs

from .._faults import LinkFault
from ._parts import SinkFault, SourceFault
from ._plan import FaultPlan
from ._python import default_of
from ._run import SimulatedMigration, simulate

# What has a way of its own to become smaller, or without which there is no end.
_KEPT: Final = {"seed", "devices", "channels", "faults", "patience"}

_BY_CONNECTION: Final = ("delay", "jitter", "bandwidth", "window")


def shrink(
    plan: FaultPlan,
    *,
    run: Callable[[FaultPlan], SimulatedMigration] = simulate,
    most: int = 500,
) -> FaultPlan:
    """Take away from *plan* whatever it does not need to violate what it violates.

    First faults, one by one, then the last devices and channels if no fault is
    theirs, then conditions: what is slow, small or odd becomes as it is by default.
    The same for the same plan.

    Args:
      plan: violates an invariant; one that does not is returned as it is.
      run: what runs a plan.
      most: how many runs that may take. If they do not suffice, the smallest plan
        up to then is returned.
    """
    return _Shrinking(run, most).shrink(plan)


@final
@attrs.define
class _Shrinking:
    run: Callable[[FaultPlan], SimulatedMigration]
    left: int
    wanted: frozenset[str] = frozenset()

    def shrink(self, plan: FaultPlan) -> FaultPlan:
        self.wanted = self._violated(plan)
        if not self.wanted:
            return plan
        while (smaller := self._smaller(plan)) is not None:
            plan = smaller
        return plan

    def _smaller(self, plan: FaultPlan) -> FaultPlan | None:
        """Return the first smaller plan that will do, or None."""
        for smaller in (
            *_with_fewer_faults(plan),
            *_with_fewer_devices(plan),
            *_with_fewer_channels(plan),
            *_with_fewer_conditions(plan),
        ):
            if not self.left:
                return None
            if self._violated(smaller) & self.wanted:
                return smaller
        return None

    def _violated(self, plan: FaultPlan) -> frozenset[str]:
        self.left -= 1
        return frozenset(each.invariant for each in self.run(plan).violations)


def _with_fewer_faults(plan: FaultPlan) -> Iterator[FaultPlan]:
    if len(plan.faults) > 1:
        yield attrs.evolve(plan, faults=())
    for fault in plan.faults:
        yield plan.without(fault)


def _with_fewer_devices(plan: FaultPlan) -> Iterator[FaultPlan]:
    # The last ones, so that the others keep their names and what they cost.
    count = 1 + max(
        (f.device for f in plan.faults if isinstance(f, SourceFault | SinkFault)),
        default=0,
    )
    for left in _fewer(count, len(plan.devices)):
        yield attrs.evolve(plan, devices=plan.devices[:left])


def _with_fewer_channels(plan: FaultPlan) -> Iterator[FaultPlan]:
    names = [f.connection for f in plan.faults if isinstance(f, LinkFault)]
    count = 1 + max((name for name in names if isinstance(name, int)), default=0)
    for left in _fewer(count, plan.channels):
        conditions: dict[str, Any] = {
            name: {
                to: value for to, value in each.items() if to in ("main", *range(left))
            }
            for name in _BY_CONNECTION
            if (each := getattr(plan, name))
        }
        yield attrs.evolve(plan, channels=left, **conditions)


def _fewer(least: int, now: int) -> Iterator[int]:
    """Return the least at once, else one less."""
    if least < now:
        yield least
    if least < now - 1:
        yield now - 1


def _with_fewer_conditions(plan: FaultPlan) -> Iterator[FaultPlan]:
    for name, default in _odd(plan):
        if name not in _KEPT:
            yield attrs.evolve(plan, **{name: default})
    for place, device in enumerate(plan.devices):
        for name, default in _odd(device):
            changed = attrs.evolve(device, **{name: default})
            devices = (*plan.devices[:place], changed, *plan.devices[place + 1 :])
            yield attrs.evolve(plan, devices=devices)


def _odd(value: Any) -> Iterator[tuple[str, Any]]:
    """Return the fields of *value* that are not as by default, with the default."""
    for field in value.__attrs_attrs__:
        default = default_of(field)
        if default is not attrs.NOTHING and getattr(value, field.name) != default:
            yield field.name, default
