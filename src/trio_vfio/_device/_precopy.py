"""How much of a source's data may be read before it is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs


@final
@attrs.define(eq=False)
class PreCopy:
    """Counts down what a source gives before `stop`; after that, lets all go.

    Args:
      left: how much that is at first, in bytes.
    """

    left: int
    """What may still be read before `stop`."""
    _stopped: bool = attrs.field(default=False, init=False)

    def stop(self) -> None:
        """Allow everything from now on."""
        self._stopped = True

    def allowed(self, buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        """Return as much of *buffers* as may be filled now; none of it is empty."""
        if self._stopped:
            return buffers
        allowed: list[memoryview] = []
        left = self.left
        for buffer in buffers:
            if left == 0:
                break
            allowed.append(buffer[:left])
            left -= len(allowed[-1])
        return allowed

    def read(self, counts: Sequence[int]) -> None:
        """Take note of what a read gave."""
        if 0 in counts:
            # The data is shorter than was said, which is no fault; but nobody
            # must wait for the rest.
            self.left = 0
        self.left = max(0, self.left - sum(counts))
