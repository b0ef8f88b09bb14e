"""The public way in: `open_incoming`."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import final

import attrs
import trio

from .._deadlines import Deadlines
from .._device._port import StateSink
from .._link._address import (
    address_of,
    listening,
    parse_address,
)
from .._link._tls import check_ready_made
from .._migration._block import beside
from .._migration._progress import DeviceProgress
from .._result import MigrationResult, SessionState
from .._trace import Trace, TraceEvent
from .._types import AcceptFrom, BeforeShut, DeviceName, Sinks
from .._values import AsyncValue
from .._wire._limits import MIB
from ._connections import Connections
from ._session import Options, Session


@final
@attrs.define(eq=False)
class Incoming:
    """An incoming migration, while its block runs and after."""

    addresses: tuple[str, ...]
    """Where it listens, as ``tcp:127.0.0.1:4444``."""
    _session: Session = attrs.field(alias="session")

    @property
    def state(self) -> AsyncValue[SessionState]:
        """How far it has come. To be waited on, not set."""
        return self._session.state

    @property
    def devices(self) -> Mapping[DeviceName, DeviceProgress]:
        """The devices that the caller named, and those the source announced."""
        return {
            (idstr, instance_id) if instance_id else idstr: device.progress
            for (idstr, instance_id), device in self._session.router.devices.items()
        }

    def result(self) -> MigrationResult:
        """Return how far it has come, in numbers."""
        return self._session.result()

    def waiting_for(self) -> str:
        """Say what has not come, for people to read."""
        return self._session.router.waiting_for()

    async def wait_complete(self) -> MigrationResult:
        """Wait until all devices are loaded and the source knows.

        If the migration fails, the whole block is cancelled, and with it this
        call; `MigrationFailed` is raised where the block ends.

        Returns: the result, with status ``completed``.

        Raises:
          MigrationFailed: if it has failed, in a part of the block that is
            shielded from the cancel.
        """
        return await self._session.wait_complete()


@asynccontextmanager
async def open_incoming(
    where: AcceptFrom,
    devices: Sinks,
    *,
    deadlines: Deadlines | None = None,
    device_grace: float | None = 10.0,
    digests: bool = False,
    page_size: int | None = None,
    max_queued_bytes: int = 16 * MIB,
    max_session_bytes: int = 512 * MIB,
    legacy_switchover_ack: bool | None = None,
    before_shut: BeforeShut | None = None,
    trace: Callable[[TraceEvent], None] | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[Incoming, None]:
    """Receive one migration while the ``async with`` block runs.

    The source may be a QEMU 10.0 or newer. Each device is loaded strictly in
    order by a task of its own, from SWITCHOVER_START on; the source is told of
    success only when every device has accepted its state.

    Channels that are plain sockets are read in threads while data comes, other
    streams in tasks. What holds is the same. A thread that waits looks up every 10 to
    50 ms, so that is what it may take until a cancel has ended them all; the source
    hears of it at once.

    The first fault ends the migration: the block is cancelled, the source hears
    that it failed, device calls under way are waited for, and every device that
    began is aborted, completed ones too. Meanwhile main is closed, and channels are
    read until the source closes them, for up to 5 s: a QEMU does not survive it if
    they break while it sends. The same happens if the block is cancelled, raises, or
    is left before the migration is complete. Once it is complete nothing can fail it
    any more.

    Args:
      where: an address (``tcp:HOST:PORT``, ``unix:PATH``), or listeners and
        streams that the caller has opened. Those stay the caller's to close; after
        a failure, what comes over such a stream has been read and is lost. Any
        stream may have a ``reset()``, not async, which closes it so that the peer
        finds it broken, and an attribute ``was_reset``, whether that is what the
        peer has done. Without them a failure can look like a proper end. A
        `trio.SSLStream` must be made without ``https_compatible``, by a context
        without `ssl.OP_IGNORE_UNEXPECTED_EOF`, which Python sets before 3.11.4:
        otherwise a cut connection looks like one that ended. A given stream that
        does not comply is refused with ValueError. One that a listener accepts is
        dropped, and the reason is logged.
      devices: where the state goes, by idstr (the guest's path to the device)
        or by idstr and instance id; then the source must send exactly these. Or
        a callable that makes a sink for whatever device the source announces, or
        returns None for one that it does not want.
      deadlines: see `Deadlines`.
      device_grace: seconds that a device call may take to end after a fault or
        a cancel before the device's ``abort`` is called; None: for ever.
      digests: whether to compute SHA-256 digests of what is loaded.
      page_size: bytes of a page of RAM, where neither the stream says it nor 4096
        is right.
      max_queued_bytes: how much of a device's state may wait in memory for a
        buffer that is still on its way. More waits in the channels.
      max_session_bytes: the same for all devices together.
      legacy_switchover_ack: whether the source wants one SWITCHOVER_ACK in all,
        as up to machine type 11.0, not one for each device; None: as the
        machine type says.
      before_shut: awaited when every device has accepted its state and before
        the source is told. If it raises, the migration fails, and what it
        raised leaves the block.
      trace: called with all that happens, under QEMU's names, in Trio's thread
        and between two steps of ours: it must not take long. If it raises, that
        is logged and it is not called again; the migration goes on.
      ssl_context: for a server; every connection must then be TLS. One whose
        handshake fails is dropped, and that is logged. The option
        `ssl.OP_IGNORE_UNEXPECTED_EOF` of the context is cleared, and stays so.

    Raises:
      MigrationFailed: with every fault that was found: `PeerProtocolError`,
        `ConnectionLost`, `DeadlineExceeded`, `DeviceError`.
      TypeError: if *where* holds something else.
      ValueError: if *where* is no address or holds a TLS stream that does not
        notice a cut, or a number makes no sense.
      OSError: if it cannot be listened on.
      Whatever the block itself raises, as it is.
    """
    session = Session(
        Options(
            named=_named(devices),
            make=devices if callable(devices) else None,
            deadlines=deadlines or Deadlines(),
            device_grace=device_grace,
            digests=digests,
            page_size=page_size,
            max_queued_bytes=max_queued_bytes,
            max_session_bytes=max_session_bytes,
            legacy_switchover_ack=legacy_switchover_ack,
            before_shut=before_shut,
        ),
        trace=Trace(trace),
    )
    async with _listening(where) as (listeners, given):
        if ssl_context is None:
            for stream in given:
                check_ready_made(stream)
        connections = Connections(session, listeners, given, ssl_context)
        addresses = tuple(filter(None, map(address_of, listeners)))
        async with beside(session, partial(_run, session, connections)):
            yield Incoming(addresses, session)


async def _run(session: Session, connections: Connections) -> None:
    try:
        await session.run(connections.serve)
    finally:
        # Waits for no peer, and for a TLS one only with a deadline of its own.
        await connections.close()  # noqa: ASYNC102
        session.clean_up()


@asynccontextmanager
async def _listening(
    where: AcceptFrom,
) -> AsyncGenerator[
    tuple[
        Sequence[trio.abc.Listener[trio.abc.Stream]],
        Sequence[trio.abc.Stream],
    ],
    None,
]:
    """Open what has to be opened, and close that again, and nothing else."""
    if isinstance(where, str):
        async with listening(parse_address(where)) as opened:
            yield opened, []
        return
    listeners = [each for each in where if isinstance(each, trio.abc.Listener)]
    streams = [each for each in where if isinstance(each, trio.abc.Stream)]
    if len(listeners) + len(streams) < len(where):
        raise TypeError("a place to receive is neither a listener nor a stream")
    if not where:
        raise ValueError("no place to receive")
    yield listeners, streams


def _named(devices: Sinks) -> dict[tuple[str, int], StateSink]:
    if callable(devices):
        return {}
    return {
        (name, 0) if isinstance(name, str) else name: sink
        for name, sink in devices.items()
    }
