"""Migrations between devices of the kernel in one process, as tests need them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_vfio import (
    MigrationFailed,
    MigrationResult,
    StateSink,
    StateSource,
    TraceEvent,
    open_incoming,
    open_outgoing,
)
from trio_vfio.testing import link

DEVICE = "0000:00:04.0/vfio"


@attrs.define(eq=False)
class Moved:
    """What both sides say of one migration."""

    sent: MigrationResult | None = None
    received: MigrationResult | None = None
    faults: list[str] = attrs.field(factory=list[str])
    """Of both sides."""

    @property
    def completed(self) -> bool:
        """Whether both sides say that it is complete."""
        results = (self.sent, self.received)
        return [each and each.status for each in results] == ["completed"] * 2


async def move(
    sources: Mapping[str, StateSource],
    sinks: Mapping[str, StateSink],
    *,
    before_switchover: Callable[[], Awaitable[None]] | None = None,
    trace: Callable[[TraceEvent], None] | None = None,
    device_grace: float | None = 10.0,
    **options: Any,
) -> Moved:
    """Migrate *sources* to *sinks*, over a link in memory; failures are in the result."""
    moved = Moved()
    here, there = link()

    async def send() -> None:
        with suppress(MigrationFailed):
            try:
                async with open_outgoing(here, sources, digests=True, **options) as out:
                    await out.migrate(before_switchover=before_switchover)
            finally:
                moved.sent = out.result()
                moved.faults += moved.sent.errors

    async def receive() -> None:
        incoming = partial(open_incoming, digests=True, device_grace=device_grace)
        with suppress(MigrationFailed):
            try:
                async with incoming(there, sinks, trace=trace) as session:
                    await session.wait_complete()
            finally:
                moved.received = session.result()
                moved.faults += moved.received.errors

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(send)
    return moved


async def wait_written(path: Path, text: str) -> None:
    """Wait until *text* is in the file at *path*, which another process writes."""
    # Nobody is told when a file grows.
    while text not in path.read_text():  # noqa: ASYNC110, ASYNC240
        await trio.sleep(0.02)
