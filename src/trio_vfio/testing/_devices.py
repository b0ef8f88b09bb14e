"""A device that takes state in virtual time, and fails when told to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, final

import attrs
import trio

from ._simulation import MAY_BEGIN, LegalCalls, Simulation, Stage

_LEGAL: Final[LegalCalls] = {
    "begin": (MAY_BEGIN, Stage.READY),
    "write": (frozenset({Stage.READY}), Stage.READY),
    "load_config": (frozenset({Stage.READY}), Stage.CONFIGURED),
    "finish": (frozenset({Stage.READY, Stage.CONFIGURED}), Stage.FINISHED),
    "abort": (
        frozenset({Stage.READY, Stage.CONFIGURED, Stage.FINISHED, Stage.BROKEN}),
        Stage.ABORTED,
    ),
}


@final
@attrs.define(eq=False, kw_only=True)
class SimulatedSink(Simulation):
    """A `StateSink` in virtual time. Never uses a thread.

    Each buffer and each other call takes its time in one shielded step, as a
    thread that cannot be interrupted would. Between two steps a cancel is seen;
    an abort ends a step, and the call with ECANCELED.

    Raises `ContractViolation` in whoever calls it out of order, and keeps it in
    `violations`.
    """

    _legal: ClassVar[LegalCalls] = _LEGAL
    _data_call: ClassVar[str] = "write"

    precopy: bool | None = None
    """Whether it takes data before switchover; None if it cannot say."""

    config: bytes | None = attrs.field(default=None, init=False)
    """The config blob, once it is accepted."""
    _accepted: bytearray = attrs.field(factory=bytearray, init=False)

    @property
    def loaded(self) -> bytes:
        """All data that was accepted, in order; stays until the next `begin`."""
        return bytes(self._accepted)

    async def begin(self) -> None:
        """Make ready; takes no time unless it hangs.

        Raises:
          OSError: as told; ECANCELED if the device is aborted meanwhile.
        """
        async with self._call("begin"):
            self._record("begin")
            await self._step("begin", 0.0)

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Accept *buffers* one by one.

        If cancelled, the buffer that is being written is accepted first. If this
        fails, that buffer is not accepted.

        Raises:
          OSError: as told; ECANCELED if the device is aborted meanwhile.
        """
        async with self._call("write"):
            for buffer in buffers:
                data = bytes(buffer)
                if not data:
                    raise self._violation("write of an empty buffer")
                await self._data_step(len(data))
                self._accepted += data
                # A full one, so that of two things that happen at the same
                # moment a cancel comes before the next buffer.
                await trio.lowlevel.checkpoint()

    async def load_config(self, blob: bytes) -> None:
        """Accept the config. Cancelled or failing as `write`."""
        async with self._call("load_config"):
            self._record("load_config", len(blob))
            await self._step("load_config", self._seconds())
            self.config = blob

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self.config = None
        self._accepted.clear()

    def _bytes_done(self) -> int:
        return len(self._accepted)
