"""A source that has nothing but zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import attrs
import trio

from ._port import Pending

# Small enough to stay in a processor's cache, where copying from it costs no
# more than filling.
_ZEROS: Final = memoryview(bytes(64 * 1024))


@final
@attrs.define(eq=False)
class NullSource:
    """A source that gives zeros: no thread, no file, no config, no pre-copy.

    No call of it fails. If one is cancelled, it did nothing, but for a read,
    which may have put zeros in some of its buffers.

    Args:
      size: how many there are.

    Raises:
      ValueError: if *size* is negative.
    """

    size: int = attrs.field(
        default=0,
        validator=attrs.validators.ge(0),
        on_setattr=attrs.setters.frozen,
    )
    """How many zeros there are in all."""
    _given: int = attrs.field(default=0, init=False)

    async def begin(self) -> bool:
        """Start with the first zero, also after a migration that has failed.

        Returns: False, because there is no pre-copy.
        """
        await trio.lowlevel.checkpoint()
        self._given = 0
        return False

    async def pending(self) -> Pending:
        """Return how much there is left."""
        await trio.lowlevel.checkpoint()
        return Pending(stop_copy_bytes=self.size - self._given)

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        """Fill *buffers* with zeros, until there were enough."""
        left = self.size - self._given
        counts: list[int] = []
        for buffer in buffers:
            await trio.lowlevel.checkpoint()
            count = min(len(buffer), left)
            _clear(buffer[:count])
            left -= count
            counts.append(count)
            if count == 0:
                break
        self._given = self.size - left
        return counts

    async def stop(self) -> None:
        """Do nothing."""
        await trio.lowlevel.checkpoint()

    async def config(self) -> bytes:
        """Return an empty blob."""
        await trio.lowlevel.checkpoint()
        return b""

    async def finish(self) -> None:
        """Do nothing."""
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Do nothing."""
        await trio.lowlevel.checkpoint()


def _clear(buffer: memoryview) -> None:
    for begin in range(0, len(buffer), len(_ZEROS)):
        piece = buffer[begin : begin + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]
