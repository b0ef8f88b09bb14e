"""What may never be, and was."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import attrs


@final
@attrs.frozen
class Violation:
    """An invariant that does not hold."""

    invariant: str
    """Its name, see `INVARIANTS`."""
    what: str
    """What was seen instead."""
    time: float
    """When, in seconds since the migration began."""

    def __str__(self) -> str:
        return f"{self.invariant}, at {self.time:g} s: {self.what}"


@final
@attrs.define(eq=False)
class Violations:
    """Those of one migration. Of each kind the first few say it all."""

    now: Callable[[], float]
    found: list[Violation] = attrs.field(factory=list[Violation], init=False)

    def add(self, invariant: str, what: str) -> None:
        """Note one."""
        if sum(each.invariant == invariant for each in self.found) < 3:
            self.found.append(Violation(invariant, what, self.now()))
