"""What goes wrong with a connection in memory at some time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TypeAlias, final

import attrs

Blow: TypeAlias = Callable[[float], None]
"""Something that goes wrong, told when it does."""


@final
@attrs.define(eq=False)
class Fate:
    """What will go wrong with a connection, either way, and when."""

    _blows: deque[tuple[float, Blow]] = attrs.field(alias="blows")
    """By their time."""
    next_at: float = attrs.field(default=math.inf, init=False)

    def __attrs_post_init__(self) -> None:
        self._look_ahead()

    def fulfil(self, now: float) -> None:
        """Let happen what should have, when it should."""
        while self.next_at <= now:
            at, blow = self._blows.popleft()
            self._look_ahead()
            blow(at)

    def _look_ahead(self) -> None:
        self.next_at = self._blows[0][0] if self._blows else math.inf
