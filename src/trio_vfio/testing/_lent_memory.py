"""Buffers for the check of a source that reads all its data in one call."""

from __future__ import annotations

import math
from typing import Final, final

import attrs

from ._contract import first_difference, require

# Odd sizes, as large as sessions lend and as small as can be.
_SIZES: Final = (4096, 1, 10_007, 65_536, 100_003)

# What memory holds that nothing was read into.
_UNTOUCHED: Final = b"\xee"


@final
@attrs.define(eq=False)
class LentMemory:
    """The `Buffers` of a check, which look at what is done to them."""

    most: float = math.inf
    """How many there are before there are no more."""
    data: bytearray = attrs.field(factory=bytearray, init=False)
    """All that was read."""
    taken: int = attrs.field(default=0, init=False)
    _lent: bytearray | None = attrs.field(default=None, init=False)
    _before: bytearray = attrs.field(factory=bytearray, init=False)
    """The buffer that was filled last, as it is to stay."""

    def take(self) -> memoryview | None:
        """Lend the next buffer, if there is one."""
        self.check()
        if self.taken >= self.most:
            return None
        size = _SIZES[self.taken % len(_SIZES)]
        self.taken += 1
        self._lent = bytearray(_UNTOUCHED * size)
        return memoryview(self._lent)

    def filled(self, count: int) -> None:
        """Keep what is in the buffer."""
        lent, self._lent = self._lent, None
        if lent is None:
            raise ValueError("a buffer was filled that was not taken")
        if not 0 < count <= len(lent):
            raise ValueError(f"{count!r} bytes in a buffer of {len(lent)}")
        rest = lent[count:]
        at = first_difference(rest, _UNTOUCHED * len(rest))
        require(at is None, "read_all wrote behind what it says is in a buffer")
        self.data += lent[:count]
        lent[:] = _UNTOUCHED * len(lent)
        self._before = lent

    def check(self) -> None:
        """Look whether a buffer was written to that was not lent any more."""
        at = first_difference(self._before, _UNTOUCHED * len(self._before))
        require(at is None, "read_all wrote into a buffer that it had filled before")
