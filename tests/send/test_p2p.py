"""Collaboration: devices that may access each other stand still together."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_vfio import (
    AcceptFrom,
    DeviceError,
    MigrationFailed,
    PeerToPeer,
    Pending,
    StateSource,
    open_incoming,
    open_outgoing,
)
from trio_vfio.testing import SimulatedSink, SimulatedSource, link

A, B, C = (f"0000:00:0{n}.0/vfio" for n in (4, 5, 6))


@attrs.define(eq=False)
class Peer:
    """A source that takes a second to leave other devices alone."""

    name: str
    source: SimulatedSource
    said: list[str]
    refuses: bool = False

    async def begin(self) -> bool:
        return await self.source.begin()

    async def pending(self) -> Pending:
        return await self.source.pending()

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        return await self.source.read_into(buffers)

    async def stop_p2p(self) -> None:
        await trio.sleep(1)
        if self.refuses:
            raise OSError(errno.EIO, "no")
        self.said.append(f"{self.name} stop_p2p")

    async def stop(self) -> None:
        self.said.append(f"{self.name} stop")
        await self.source.stop()

    async def config(self) -> bytes:
        return await self.source.config()

    async def finish(self) -> None:
        await self.source.finish()

    async def abort(self) -> None:
        self.said.append(f"{self.name} abort")
        await self.source.abort()


async def receive(there: AcceptFrom, names: Iterable[str]) -> None:
    sinks = {name: SimulatedSink() for name in names}
    with suppress(MigrationFailed):
        async with open_incoming(there, sinks) as incoming:
            await incoming.wait_complete()


async def migrate(sources: Mapping[str, StateSource]) -> None:
    here, there = link()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive, there, sources)
        try:
            async with open_outgoing(here, sources) as outgoing:
                await outgoing.migrate()
        except MigrationFailed as failed:
            raise failed.exceptions[0] from failed


async def test_none_is_stopped_before_all_leave_each_other_alone(
    autojump_clock: MockClock,
) -> None:
    said: list[str] = []
    peers: dict[str, StateSource] = {
        name: Peer(name, SimulatedSource(), said) for name in (A, B)
    }
    # One that cannot access others is asked nothing.
    peers[C] = SimulatedSource()
    assert [isinstance(each, PeerToPeer) for each in peers.values()] == [
        True,
        True,
        False,
    ]
    await migrate(peers)
    # Side by side, as the guest stands still meanwhile.
    assert trio.current_time() == 1
    assert sorted(said[:2]) == [f"{A} stop_p2p", f"{B} stop_p2p"]
    assert sorted(said[2:]) == [f"{A} stop", f"{B} stop"]


async def test_one_that_refuses_fails_the_migration(
    autojump_clock: MockClock,
) -> None:
    """Invariant: no device is stopped, and all run on."""
    said: list[str] = []
    peers = {
        name: Peer(name, SimulatedSource(), said, refuses=name == B) for name in (A, B)
    }
    refusal = pytest.RaisesExc(DeviceError, match=f"^{B}: stop_p2p: EIO: no$")
    with pytest.RaisesGroup(refusal):
        await migrate(peers)
    assert not any(each.endswith(" stop") for each in said)
    assert {f"{A} abort", f"{B} abort"} <= set(said)


async def test_a_cancel_while_they_are_asked(autojump_clock: MockClock) -> None:
    """Invariant: all run on; none was stopped."""
    said: list[str] = []
    peers = {name: Peer(name, SimulatedSource(), said) for name in (A, B)}
    with trio.move_on_after(0.5) as scope:
        await migrate(peers)
    assert scope.cancelled_caught
    assert sorted(said) == [f"{A} abort", f"{B} abort"]
