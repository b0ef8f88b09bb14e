"""What a step of a simulated device costs, in virtual time.

A cost that varies says how much it is at a share between 0 and 1, which the device
draws. Nothing here asks for a number of its own, and nothing but the four operations
makes one, so that a seed gives the same on every machine.
"""

from __future__ import annotations

import math
from typing import Any, Final, TypeAlias, final

import attrs

_LN_2: Final = 0.6931471805599453

# Enough of them, for the argument is at most 0.172.
_TERMS: Final = 11


def _seconds(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} cannot be {value!r}")


def _chance(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} is from 0 to 1, not {value!r}")


@final
@attrs.frozen
class Uniform:
    """Anything from `least` to `most`, and none of it more likely.

    Raises:
      ValueError: if a number is negative or infinite, or `most` is less than `least`.
    """

    least: float = attrs.field(validator=_seconds)
    most: float = attrs.field(validator=_seconds)

    def __attrs_post_init__(self) -> None:
        if self.most < self.least:
            raise ValueError("most is not less than least")

    def at(self, share: float) -> float:
        """Return what *share* of all steps do not exceed."""
        return self.least + (self.most - self.least) * share


@final
@attrs.frozen
class Exponential:
    """Mostly little, at times much more: what goes on for no longer at any moment.

    Raises:
      ValueError: if `mean` is negative or infinite.
    """

    mean: float = attrs.field(validator=_seconds)

    def at(self, share: float) -> float:
        """Return what *share* of all steps do not exceed; below 1."""
        return -self.mean * _log(1 - share)


@final
@attrs.frozen
class Stalls:
    """Always `usual`, but for a step now and then that takes `stall` instead.

    Raises:
      ValueError: if a number is negative or infinite, or `chance` is more than 1.
    """

    usual: float = attrs.field(validator=_seconds)
    stall: float = attrs.field(validator=_seconds)
    chance: float = attrs.field(validator=_chance)
    """What share of the steps take `stall`."""

    def at(self, share: float) -> float:
        """Return the cost of a step that drew *share*."""
        return self.usual if share < 1 - self.chance else self.stall


Cost: TypeAlias = float | Uniform | Exponential | Stalls
"""One number for every step, or one that varies."""


def cost_at(cost: Cost, share: float) -> float:
    """Return what *cost* is for a step that drew *share*."""
    return cost if isinstance(cost, (int, float)) else cost.at(share)


def _log(x: float) -> float:
    # Not math.log, whose last digit is up to the C library.
    fraction, exponent = math.frexp(x)
    if fraction < 0.7071067811865476:
        fraction, exponent = fraction * 2, exponent - 1
    ratio = (fraction - 1) / (fraction + 1)
    total = 0.0
    for n in reversed(range(_TERMS)):
        total = total * ratio * ratio + 1 / (2 * n + 1)
    return 2 * ratio * total + exponent * _LN_2
