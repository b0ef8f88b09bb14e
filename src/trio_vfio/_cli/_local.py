"""A migration within this process, from one device of it to another.

Both sides are those of ``send`` and ``receive``, over socket pairs in place of a
network. Each runs as if it were alone: it learns of the other's failure by what it
hears. Only then the two are taken for one: what one side says merely because the
other has failed is left out.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Generic, TypeVar, final

import attrs
import trio

from .. import (
    ConnectionLost,
    Deadlines,
    DestinationFailed,
    DeviceProgress,
    DeviceResult,
    Incoming,
    MigrationResult,
    Outgoing,
    PeerProtocolError,
    SessionState,
    StateSink,
    StateSource,
    TraceEvent,
    open_incoming,
    open_outgoing,
)
from ._faults import leaves, line
from ._progress import Migrating

_S = TypeVar("_S", bound=Migrating)

DeviceKey = tuple[str, int]

_CHANNELS: Final = 1
"""More of them are no faster where nothing is far away."""


@attrs.frozen(kw_only=True)
class LocalOptions:
    """What a command decides; see `open_outgoing` and `open_incoming`."""

    max_rounds: int = 16
    downtime: float = 0.3
    switchover: float | None = None
    device_grace: float | None = 10.0
    trace: Callable[[TraceEvent], None] | None = None


@final
@attrs.define(eq=False)
class _Side(Generic[_S]):
    """One side, which ends by itself and says nothing before."""

    opening: AbstractAsyncContextManager[_S]
    work: Callable[[_S], Awaitable[object]]
    streams: Sequence[trio.SocketStream]
    """Its ends of the connections."""
    session: _S | None = attrs.field(default=None, init=False)
    error: Exception | None = attrs.field(default=None, init=False)
    opened: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when there is a session, or will be none."""
    ended: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self) -> None:
        try:
            async with self.opening as self.session:
                self.opened.set()
                await self.work(self.session)
        except Exception as error:  # noqa: BLE001 (raised by `open_local`)
            self.error = error
        finally:
            # However this side has ended, the other is not to wait for it.
            for stream in self.streams:
                stream.socket.close()
            self.opened.set()
            self.ended.set()


@final
@attrs.define(eq=False)
class LocalMigration:
    """Both sides of a migration, seen as one."""

    _source: _Side[Outgoing] = attrs.field(alias="source")
    _destination: _Side[Incoming] = attrs.field(alias="destination")

    @property
    def devices(self) -> Mapping[Any, DeviceProgress]:
        """Its devices, as the source has them."""
        return self._outgoing.devices

    def waiting_for(self) -> str:
        """Say what has not happened yet."""
        return self._outgoing.waiting_for()

    def result(self) -> MigrationResult:
        """Return how far it has come: devices as they were loaded, times as sent."""
        sent, received = self._outgoing.result(), self._incoming.result()
        loaded = {_key(device): device for device in received.devices}
        devices = tuple(
            _one_device(device, loaded.get(_key(device))) for device in sent.devices
        )
        errors = tuple(line(cause) for cause in self.causes())
        return attrs.evolve(
            sent,
            status=_one_status(sent.status, received.status),
            devices=devices,
            # A cancel hides what is wrong besides, but for the devices' own.
            errors=errors or tuple(text for each in devices for text in each.errors),
        )

    async def wait_ended(self) -> None:
        """Wait until both sides have ended. What went wrong leaves `open_local`."""
        await self._source.ended.wait()
        await self._destination.ended.wait()

    def causes(self) -> Sequence[Exception]:
        """Return what has gone wrong on either side, without its echo on the other."""
        found = [*leaves(self._source.error), *leaves(self._destination.error)]
        first_hand = min(map(_distance, found), default=0)
        causes = [error for error in found if _distance(error) == first_hand]
        return causes[:1] if first_hand == _ECHO else causes

    @property
    def _outgoing(self) -> Outgoing:
        assert self._source.session is not None
        return self._source.session

    @property
    def _incoming(self) -> Incoming:
        assert self._destination.session is not None
        return self._destination.session


@asynccontextmanager
async def open_local(
    sources: Mapping[DeviceKey, StateSource],
    sinks: Mapping[DeviceKey, StateSink] | Callable[[str, int], StateSink],
    options: LocalOptions,
    *,
    before_shut: Callable[[MigrationResult], Awaitable[None]] | None = None,
) -> AsyncGenerator[LocalMigration]:
    """Migrate *sources* to *sinks* while the block runs; await its `wait_ended`.

    If it fails, or the block is cancelled, devices are aborted on both sides. Who
    leaves the block before it has ended waits for that.

    Raises:
      ValueError: if a name is no idstr.
      Exception: what has gone wrong on either side; several in a group.
    """
    pairs = [socket.socketpair() for _ in range(1 + _CHANNELS)]
    here, there = (
        [_stream(sock) for sock in side] for side in zip(*pairs, strict=True)
    )
    source = _Side(_open_source(here, sources, options), _migration(options), here)
    destination = _Side(
        open_incoming(
            there,
            sinks,
            deadlines=_deadlines(),
            device_grace=options.device_grace,
            digests=True,
            before_shut=before_shut,
            trace=options.trace,
        ),
        Incoming.wait_complete,
        there,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        nursery.start_soon(destination.run)
        await source.opened.wait()
        await destination.opened.wait()
        local = LocalMigration(source, destination)
        if source.session is not None and destination.session is not None:
            yield local
    causes = local.causes()
    if len(causes) == 1:
        raise causes[0]
    if causes:
        raise ExceptionGroup("the migration failed", causes)


def _open_source(
    streams: Sequence[trio.SocketStream],
    sources: Mapping[DeviceKey, StateSource],
    options: LocalOptions,
) -> AbstractAsyncContextManager[Outgoing]:
    left = iter(streams)

    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return next(left)

    return open_outgoing(
        connect,
        sources,
        channels=_CHANNELS,
        # The destination's switchover is part of it.
        deadlines=_deadlines(options.switchover),
        device_grace=options.device_grace,
        trace=options.trace,
    )


def _deadlines(switchover: float | None = None) -> Deadlines:
    """Return none but one: there is no peer that could be gone or silent."""
    return Deadlines(handshake=None, silence=None, switchover=switchover)


def _migration(options: LocalOptions) -> Callable[[Outgoing], Awaitable[object]]:
    async def migrate(outgoing: Outgoing) -> None:
        await outgoing.migrate(max_rounds=options.max_rounds, downtime=options.downtime)

    return migrate


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


_ECHO: Final = 2


def _distance(error: Exception) -> int:
    """Return how far *error* is from what has really happened."""
    if isinstance(error, PeerProtocolError):
        return _ECHO if error.ended else 1
    return _ECHO if isinstance(error, (ConnectionLost, DestinationFailed)) else 0


def _key(device: DeviceResult) -> DeviceKey:
    return device.idstr, device.instance_id


def _one_device(sent: DeviceResult, loaded: DeviceResult | None) -> DeviceResult:
    if loaded is None:
        return sent
    return attrs.evolve(loaded, errors=sent.errors + loaded.errors)


def _one_status(sent: SessionState, received: SessionState) -> SessionState:
    if SessionState.FAILED in (sent, received):
        return SessionState.FAILED
    return received if sent is SessionState.COMPLETED else sent
