"""Collaboration: the machine finds nothing in what is right, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.forms import form
from trio_vfio import StateSink
from trio_vfio._receive._reorder import ReorderQueue
from trio_vfio._receive._router import Router
from trio_vfio._wire._multifd import StateHeader
from trio_vfio.testing import SimulatedSink
from trio_vfio.testing.stateful import IncomingMachine

# As they are found: to shrink them takes longer.
FEW = settings(
    max_examples=200, stateful_step_count=30, phases=[Phase.generate], database=None
)

TestIncomingMachine = IncomingMachine.TestCase
TestIncomingMachine.settings = settings(
    max_examples=form(short=20, long=50), stateful_step_count=30
)


@attrs.define(eq=False)
class Forgetful:
    """A sink that drops the second buffer of each run."""

    precopy: bool | None = None
    content: bytearray = attrs.field(factory=bytearray)

    async def begin(self) -> None: ...

    async def write(self, buffers: Iterator[memoryview]) -> None:
        for number, buffer in enumerate(buffers):
            if number != 1:
                self.content += buffer

    async def load_config(self, blob: bytes) -> None: ...

    async def finish(self) -> None: ...

    async def abort(self) -> None: ...


class ForgetfulSinks(IncomingMachine):
    def make_sink(self, idstr: str) -> StateSink:
        return Forgetful()

    def loaded(self, sink: StateSink) -> bytes | None:
        assert isinstance(sink, Forgetful)
        return bytes(sink.content)


class RefusingSinks(IncomingMachine):
    def make_sink(self, idstr: str) -> StateSink:
        return SimulatedSink(fails={"load_config": 5})


def test_a_sink_that_drops_data_is_found() -> None:
    with pytest.raises(AssertionError, match="was given .* and holds"):
        run_state_machine_as_test(ForgetfulSinks, settings=FEW)


def test_a_sink_that_refuses_what_is_right_is_found() -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(RefusingSinks, settings=FEW)


def test_memory_without_a_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def admits(queue: ReorderQueue, header: StateHeader) -> bool:
        return True

    monkeypatch.setattr(ReorderQueue, "admits", admits)
    with pytest.raises(AssertionError, match="bytes queued"):
        run_state_machine_as_test(IncomingMachine, settings=FEW)


def test_a_due_packet_that_has_to_wait_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def admits(queue: ReorderQueue, header: StateHeader) -> bool:
        return queue.bytes + header.size <= queue.max_bytes

    monkeypatch.setattr(ReorderQueue, "admits", admits)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(IncomingMachine, settings=FEW)


def test_what_is_forgotten_at_the_switchover_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Devices that nobody loads: the migration never ends."""

    async def start(router: Router) -> list[object]:
        router.started = True
        return []

    monkeypatch.setattr(Router, "start", start)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(IncomingMachine, settings=FEW)
