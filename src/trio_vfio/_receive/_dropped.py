"""Connections that were not taken, and why."""

from __future__ import annotations

import math
from typing import Final, final

import attrs
import trio

from .._migration._stop import log

_SAME_SOURCE: Final = 1.0
"""Seconds in which connections that are dropped for one reason are one source's."""

_MOST: Final = 64
"""Lines that are kept."""


@final
@attrs.define(eq=False)
class Dropped:
    """Keeps and logs a line for each, where lines differ."""

    lines: tuple[str, ...] = ()
    _logged: str = attrs.field(default="", init=False)
    _logged_at: float = attrs.field(default=-math.inf, init=False)

    def add(self, origin: str, why: str) -> None:
        """Take note of one that came from *origin*."""
        line = f"dropped a connection{origin}: {why}"
        if line not in self.lines and len(self.lines) < _MOST:
            self.lines = (*self.lines, line)
        now = trio.current_time()
        # A source opens all of its own at once, and one line says it for all.
        if line == self._logged and now < self._logged_at + _SAME_SOURCE:
            log.info("%s", line)
            return
        log.warning("%s", line)
        self._logged, self._logged_at = line, now
