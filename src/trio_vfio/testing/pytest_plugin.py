"""Fixtures for tests of what is built on trio_vfio, with pytest and pytest-trio.

In the ``conftest.py`` at the top of the tests::

    pytest_plugins = ["trio_vfio.testing.pytest_plugin"]

An async test that asks for `vfio_link` or `vfio_migrate` runs in virtual time: on a
clock that jumps as soon as all tasks wait, unless it asks for a clock itself::

    async def test_my_sink(vfio_migrate, simulated_source):
        sink = MySink()
        source = simulated_source(size=10_000_000, seconds_per_mib=20)
        await vfio_migrate({"0000:00:04.0/vfio": source}, {"0000:00:04.0/vfio": sink})
        assert sink.content == source.state

With worker threads in such a test, see `autojump_held`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final, Protocol, TypeVar

import attrs
import pytest
import trio
from trio.testing import MockClock

from .. import (
    MigrationFailed,
    MigrationResult,
    StateSink,
    StateSource,
    open_incoming,
    open_outgoing,
)
from ._devices import SimulatedSink
from ._links import Link, MemoryListener, link
from ._simulation import Simulation
from ._source_device import SimulatedSource

_T = TypeVar("_T")
_Made = TypeVar("_Made", bound=Simulation)

_IN_VIRTUAL_TIME: Final = frozenset({"vfio_link", "vfio_migrate"})


class Migrate(Protocol):
    """What `vfio_migrate` gives."""

    async def __call__(
        self,
        sources: Mapping[str, StateSource],
        sinks: Mapping[str, StateSink],
        *,
        incoming: Mapping[str, Any] | None = None,
        outgoing: Mapping[str, Any] | None = None,
    ) -> Migrated:
        """Take the state of *sources* to *sinks*, both by idstr, and wait for its end.

        Both sides are ours, with a return path, over the test's `vfio_link`.

        Cancellation: both sides are cancelled.

        Args:
          sources: as for `open_outgoing`.
          sinks: as for `open_incoming`.
          incoming: more arguments for `open_incoming`.
          outgoing: more arguments for `open_outgoing`.

        Raises:
          ExceptionGroup: of the `MigrationFailed` of each side that failed, or of
            whatever else either side raises.
        """
        ...


@attrs.frozen
class Migrated:
    """What came of a whole migration, as both sides see it."""

    incoming: MigrationResult
    outgoing: MigrationResult


@pytest.fixture
def vfio_link() -> tuple[Link, list[MemoryListener]]:
    """Give a new `link` in memory: what opens its connections, and its listeners.

    The first is for `open_outgoing`, `ScriptedSource` or `ScriptedPeer`, the other
    for `open_incoming`. A link that is slow, or is cut, is made by `link` itself.
    """
    return link()


@pytest.fixture
def vfio_migrate(vfio_link: tuple[Link, list[MemoryListener]]) -> Migrate:
    """Give a function that makes a whole migration; see `Migrate`."""
    connect, there = vfio_link

    async def migrate(
        sources: Mapping[str, StateSource],
        sinks: Mapping[str, StateSink],
        *,
        incoming: Mapping[str, Any] | None = None,
        outgoing: Mapping[str, Any] | None = None,
    ) -> Migrated:
        results: dict[str, MigrationResult] = {}
        faults: list[MigrationFailed] = []

        async def receive() -> None:
            try:
                async with open_incoming(there, sinks, **(incoming or {})) as receiving:
                    await receiving.wait_complete()
            except MigrationFailed as fault:
                faults.append(fault)
            else:
                results["incoming"] = receiving.result()

        async def send() -> None:
            try:
                async with open_outgoing(
                    connect, sources, **(outgoing or {})
                ) as sending:
                    await sending.migrate()
            except MigrationFailed as fault:
                faults.append(fault)
            else:
                results["outgoing"] = sending.result()

        # A failure ends the other side as it would in life: by what it hears of it.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
        if faults:
            raise ExceptionGroup("the migration failed", faults)
        return Migrated(**results)

    return migrate


@pytest.fixture
def simulated_sink() -> Generator[Callable[..., SimulatedSink]]:
    """Give a function that makes a `SimulatedSink`, with the same arguments.

    At its end the test fails if one of them was begun, and neither finished nor
    aborted: whoever drove it has forgotten it.
    """
    made: list[SimulatedSink] = []
    yield partial(_make, SimulatedSink, made)
    _check_all_left(made)


@pytest.fixture
def simulated_source() -> Generator[Callable[..., SimulatedSource]]:
    """Give a function that makes a `SimulatedSource`; else as `simulated_sink`."""
    made: list[SimulatedSource] = []
    yield partial(_make, SimulatedSource, made)
    _check_all_left(made)


def _make(kind: Callable[..., _Made], made: list[_Made], **arguments: Any) -> _Made:
    device = kind(**arguments)
    made.append(device)
    return device


def _check_all_left(made: Sequence[Simulation]) -> None:
    left = [
        f"{type(device).__name__} {number}: last called was {device.calls[-1].name}"
        for number, device in enumerate(made)
        if device.began
        and not (device.finished or device.aborted)
        # A begin that fails or hangs has to clean up after itself: no abort follows.
        and "begin" not in (*device.fails, device.hangs_in)
    ]
    if left:
        pytest.fail(
            "neither finished nor aborted, in order of their making: "
            + "; ".join(left),
            pytrace=False,
        )


def _run_in_virtual_time(
    main: Callable[[], Awaitable[_T]],
    *,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> _T:
    clock = MockClock(autojump_threshold=0) if clock is None else clock
    return trio.run(main, clock=clock, instruments=instruments)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let pytest-trio run those tests in virtual time that ask for it."""
    # pytest-trio itself sees no clock but one that the test names as an argument.
    if not isinstance(item, pytest.Function):
        return
    if iscoroutinefunction(item.obj) and not _IN_VIRTUAL_TIME.isdisjoint(
        item.fixturenames
    ):
        item.add_marker(pytest.mark.trio(run=_run_in_virtual_time), append=False)
