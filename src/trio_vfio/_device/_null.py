"""A device that takes everything and keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import attrs
import trio


@final
@attrs.define(eq=False)
class NullSink:
    """A sink that drops all that it is given: no thread, no file, no memory.

    No call of it fails. If one is cancelled, it did nothing.
    """

    precopy: bool | None = attrs.field(default=None, init=False)
    """Always None: it takes data whenever it comes."""

    async def begin(self) -> None:
        """Do nothing."""
        await trio.lowlevel.checkpoint()

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Drop all of *buffers*."""
        await trio.lowlevel.checkpoint()
        for _ in buffers:
            pass

    async def load_config(self, blob: bytes) -> None:
        """Drop *blob*."""
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """Do nothing."""
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Do nothing."""
        await trio.lowlevel.checkpoint()
