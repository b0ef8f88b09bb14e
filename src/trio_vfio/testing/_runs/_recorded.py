"""Devices that note what is asked of them, around those that do it.

They hold for any sink and any source, and see at once what may never be asked.
What must be so at the end is for `_invariants`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar, final

import attrs

from ..._device._port import Pending, StateSink, StateSource
from ._parts import GRACE
from ._watch import DestinationWatch, SourceWatch, Watch

_W = TypeVar("_W", bound=Watch)


@attrs.define(eq=False, kw_only=True)
class Recorded(Generic[_W]):
    """The calls of a device, one after another."""

    who: str
    watch: _W
    """The side that it is on."""
    began: bool = attrs.field(default=False, init=False)
    """Whether ``begin`` has succeeded."""
    finished: bool = attrs.field(default=False, init=False)
    """Whether ``finish`` has succeeded."""
    aborts: int = attrs.field(default=0, init=False)
    running: str | None = attrs.field(default=None, init=False)
    """The call that is under way, ``abort`` apart."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.who} at the {self.watch.side}"

    @asynccontextmanager
    async def _call(self, name: str, what: object = "") -> AsyncGenerator[None]:
        self._check(name)
        self.watch.log.add(self.name, f"{name} {what}".rstrip())
        self.running = name
        try:
            yield
        except BaseException as error:
            self.watch.log.add(self.name, f"{name} raised {type(error).__name__}")
            raise
        finally:
            self.running = None
            self.watch.call_ended()
        self.watch.log.add(self.name, f"{name} returned")

    @asynccontextmanager
    async def _abort(self) -> AsyncGenerator[None]:
        watch = self.watch
        if self.running is not None and not watch.has_stopped_for(GRACE):
            watch.violated("abort", f"{self.name}: abort while {self.running} runs")
        watch.log.add(self.name, "abort")
        self.aborts += 1
        try:
            yield
        finally:
            watch.call_ended()

    def _check(self, name: str) -> None:
        if self.aborts:
            self.watch.violated("abort", f"{self.name}: {name} after abort")
        if self.running is not None:
            also = f"{self.name}: {name} while {self.running} runs"
            self.watch.violated("contract", also)
        if self.watch.has_stopped_for(0):
            self.watch.violated("cancel", f"{self.name}: {name} after the cancel")


@final
@attrs.define(eq=False, kw_only=True)
class RecordedSource(Recorded[SourceWatch]):
    """A `StateSource` around another."""

    device: StateSource
    given: bytearray = attrs.field(factory=bytearray, init=False)
    """All data that it gave, in order."""
    given_before_stop: int | None = attrs.field(default=None, init=False)
    """How much of it before the guest stood still; None: it still runs."""
    config_blob: bytes | None = attrs.field(default=None, init=False)
    """What it gave behind all data."""

    async def begin(self) -> bool:
        """Make ready."""
        async with self._call("begin"):
            precopy = await self.device.begin()
        self.began = True
        return precopy

    async def pending(self) -> Pending:
        """Estimate."""
        async with self._call("pending"):
            return await self.device.pending()

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        """Read."""
        async with self._call("read_into", len(buffers)):
            counts = await self.device.read_into(buffers)
        for buffer, count in zip(buffers, counts, strict=False):
            self.given += buffer[:count]
        return counts

    async def stop(self) -> None:
        """Stand still."""
        if not self.watch.guest_stopped:
            self.watch.violated("switchover", f"{self.name}: stop while the guest runs")
        self.given_before_stop = len(self.given)
        async with self._call("stop"):
            await self.device.stop()

    async def config(self) -> bytes:
        """Give the config."""
        async with self._call("config"):
            self.config_blob = await self.device.config()
            return self.config_blob

    async def finish(self) -> None:
        """Let go."""
        async with self._call("finish"):
            await self.device.finish()
        self.finished = True

    async def abort(self) -> None:
        """Run on."""
        async with self._abort():
            await self.device.abort()


@final
@attrs.define(eq=False, kw_only=True)
class RecordedSink(Recorded[DestinationWatch]):
    """A `StateSink` around another, which knows what it is to be given."""

    device: StateSink
    source: RecordedSource
    garbage: bool = False
    """Whether some comes on main, so that all of it may be taken for data."""
    offered: bytearray = attrs.field(factory=bytearray, init=False)
    """All data that it was offered, in order."""
    config: bytes | None = attrs.field(default=None, init=False)
    """What it was offered behind that."""

    @property
    def precopy(self) -> bool | None:
        """As the sink says."""
        return self.device.precopy

    async def begin(self) -> None:
        """Make ready."""
        async with self._call("begin"):
            await self.device.begin()
        self.began = True

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Write."""
        async with self._call("write"):
            await self.device.write(self._offered(buffers))

    async def load_config(self, blob: bytes) -> None:
        """Take the config."""
        if self.source.config_blob is None or len(self.offered) < len(
            self.source.given
        ):
            early = f"{self.name}: config after {len(self.offered)} bytes"
            self.watch.violated("config-last", early)
        self.config = blob
        async with self._call("load_config", len(blob)):
            await self.device.load_config(blob)

    async def finish(self) -> None:
        """Accept it all."""
        async with self._call("finish"):
            await self.device.finish()
        self.finished = True

    async def abort(self) -> None:
        """Drop it all."""
        async with self._abort():
            await self.device.abort()

    def _offered(self, buffers: Iterator[memoryview]) -> Iterator[memoryview]:
        for buffer in buffers:
            self._offer(buffer)
            yield buffer
            # It was the device's until now, whatever came meanwhile.
            if not self.offered.endswith(buffer):
                at = len(self.offered) - len(buffer)
                changed = f"{self.name}: the buffer of byte {at} has changed"
                self.watch.violated("prefix", changed)

    def _offer(self, buffer: memoryview) -> None:
        watch = self.watch
        if self.aborts:
            watch.violated("abort", f"{self.name}: a buffer after abort")
        if watch.has_stopped_for(0):
            watch.violated("cancel", f"{self.name}: a buffer after the cancel")
        if self.config is not None:
            watch.violated("config-last", f"{self.name}: a buffer after config")
        self.offered += buffer
        if not watch.switched_over and len(self.offered) > self._precopy_bytes:
            early = f"{self.name}: byte {len(self.offered)} before SWITCHOVER_START"
            watch.violated("switchover", early)
        watch.log.add(self.name, f"write of {len(buffer)} bytes")

    @property
    def _precopy_bytes(self) -> int:
        before = self.source.given_before_stop
        given = len(self.source.given) if before is None else before
        return max(given, self.watch.main_received) if self.garbage else given
