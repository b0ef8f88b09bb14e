"""A sink as it is, and what a session does with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import final

import attrs
import trio

from .._device._port import StateSink


@final
@attrs.define(eq=False)
class WatchedSink:
    """Hands all calls on to a sink, and keeps what they were."""

    sink: StateSink
    delay: float = attrs.field(default=0.0, init=False)
    """Seconds that each call takes before the sink is called. No cancel ends that,
    but an abort."""
    accepted: bytearray = attrs.field(factory=bytearray, init=False)
    """All data that the sink has taken."""
    config: bytes | None = attrs.field(default=None, init=False)
    began: bool = attrs.field(default=False, init=False)
    """Whether ``begin`` was called and has not failed."""
    finished: bool = attrs.field(default=False, init=False)
    aborted: bool = attrs.field(default=False, init=False)
    complaints: list[str] = attrs.field(factory=list[str], init=False)
    """What was done to it that may not be."""
    _running: str | None = attrs.field(default=None, init=False)
    _abort_called: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def precopy(self) -> bool | None:
        """As the sink says."""
        return self.sink.precopy

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._running is not None

    async def begin(self) -> None:
        """Make ready."""
        async with self._call("begin"):
            if self.began:
                self.complaints.append("begin twice")
            self.began = True
            try:
                await self.sink.begin()
            except BaseException:
                self.began = False
                raise

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Write all of *buffers*."""
        async with self._call("write"):
            if self.config is not None:
                self.complaints.append("write after load_config")
            await self.sink.write(self._watched(buffers))

    async def load_config(self, blob: bytes) -> None:
        """Take the config."""
        async with self._call("load_config"):
            if self.config is not None:
                self.complaints.append("load_config twice")
            self.config = bytes(blob)
            await self.sink.load_config(blob)

    async def finish(self) -> None:
        """Accept the state."""
        async with self._call("finish"):
            await self.sink.finish()
            self.finished = True

    async def abort(self) -> None:
        """Drop all."""
        if self.aborted or not self.began:
            self.complaints.append("abort twice, or before begin")
        self.aborted = True
        self._abort_called.set()
        await self.sink.abort()

    def _watched(self, buffers: Iterator[memoryview]) -> Iterator[memoryview]:
        for buffer in buffers:
            data = bytes(buffer)
            yield buffer
            # The next one is asked for: this one is written.
            self.accepted += data

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncGenerator[None]:
        if self._running is not None:
            self.complaints.append(f"{name} while {self._running} is under way")
        if self.aborted or self.finished:
            self.complaints.append(f"{name} after the end")
        self._running = name
        try:
            with trio.CancelScope(shield=True), trio.move_on_after(self.delay):
                await self._abort_called.wait()
            yield
        finally:
            self._running = None
