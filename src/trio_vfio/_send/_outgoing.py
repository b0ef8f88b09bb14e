"""The public way out: `open_outgoing`."""

from __future__ import annotations

import ssl
import uuid as uuids
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, final

import attrs

from .._deadlines import Deadlines
from .._device._port import StateSource
from .._migration._block import beside
from .._migration._progress import DeviceProgress
from .._result import MigrationResult, SessionState
from .._trace import Trace, TraceEvent
from .._types import BeforeSwitchover, Connect, DeviceName, Sources
from .._values import AsyncValue
from .._wire._idstr import is_idstr, is_vfio
from .._wire._limits import MAX_CHANNELS, MAX_DEVICES, MAX_MACHINE_TYPE, MIB
from ._connect import connected
from ._precopy import Limits
from ._session import DeviceKey, Options, Plan, Session


@final
@attrs.define(eq=False)
class Outgoing:
    """An outgoing migration, while its block runs and after."""

    _session: Session = attrs.field(alias="session")

    @property
    def state(self) -> AsyncValue[SessionState]:
        """How far it has come. To be waited on, not set."""
        return self._session.state

    @property
    def devices(self) -> Mapping[DeviceName, DeviceProgress]:
        """The devices, by the names that the caller gave them."""
        return {
            (idstr, instance_id) if instance_id else idstr: device.progress
            for (idstr, instance_id), device in self._session.devices.items()
        }

    def result(self) -> MigrationResult:
        """Return how far it has come, in numbers."""
        return self._session.result()

    def waiting_for(self) -> str:
        """Say what it waits for, for people to read."""
        return self._session.waiting_for()

    async def migrate(
        self,
        *,
        before_switchover: BeforeSwitchover | None = None,
        max_rounds: int | None = 16,
        downtime: float = 0.3,
    ) -> MigrationResult:
        """Take the devices to the destination.

        Pre-copy data goes in rounds, while the guest runs; a round is what the
        devices have when it begins. They end when no device has more, or what is
        left could go within *downtime* at the speed seen so far, or after
        *max_rounds*; and not before the destination has acknowledged the
        switchover, if that was agreed upon.

        If the migration fails, the whole block is cancelled, and with it this
        call; `MigrationFailed` is raised where the block ends. If this call is
        cancelled, the migration goes on until the block is left.

        Args:
          before_switchover: awaited before the devices are stopped. It stops the
            guest. If it raises, the migration fails, and what it raised leaves
            the block.
          max_rounds: at least 1; None: as many as it takes.
          downtime: in seconds.

        Returns: the result, with status ``completed``: the destination has the
            devices.

        Raises:
          MigrationFailed: if it has failed, in a part of the block that is
            shielded from the cancel.
          ValueError: if a limit makes no sense.
          RuntimeError: if it was called before.
        """
        plan = Plan(
            before_switchover=before_switchover,
            limits=Limits(max_rounds=max_rounds, downtime=downtime),
        )
        self._session.begin(plan)
        return await self._session.wait_complete()


@asynccontextmanager
async def open_outgoing(
    where: str | Connect,
    devices: Sources,
    *,
    channels: int = 2,
    machine: str = "none",
    uuid: uuids.UUID | None = None,
    return_path: bool = True,
    switchover_ack: bool = False,
    deadlines: Deadlines | None = None,
    device_grace: float | None = 10.0,
    digests: bool = False,
    buffer_size: int = MIB,
    max_queued_bytes: int = 16 * MIB,
    max_session_bytes: int = 512 * MIB,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    trace: Callable[[TraceEvent], None] | None = None,
) -> AsyncGenerator[Outgoing, None]:
    """Connect to a destination, to which `Outgoing.migrate` then takes *devices*.

    The destination may be a QEMU 10.0 or newer, with the machine type *machine*
    and the devices at the same places in it.

    Until the destination has said that it has all devices, a fault ends the
    migration: the block is cancelled, all connections are closed, device calls
    under way are waited for, and every device that began is aborted, so that it
    runs again. The same happens if the block is cancelled, raises, or is left
    before the migration is complete. Once the destination has said so, nothing
    can fail it any more: a cancel that comes a moment later leaves the block as a
    cancel, but the result says ``completed``.

    Without a return path the destination says nothing. Then the migration is
    complete when all was sent and the destination has closed the connection. One
    of ours that has failed breaks it instead, but only over TCP, or over a stream
    that can do so by itself (see *where* of `open_incoming`): what closes a unix
    socket, or was killed, looks as if it had all devices.

    Over a plain socket (`trio.SocketStream`) each channel sends in a thread of its
    own, and its socket blocks meanwhile, so nobody else may use it; a source that
    `ReadsAll` is read in one. They have ended when the block has, also after a fault
    or a cancel, which wakes them. All other streams and sources are left to tasks.

    Args:
      where: an address (``tcp:HOST:PORT``, ``unix:PATH``), or a function that
        opens a connection; called once for the main channel and then once for
        each other channel. What it opens is closed; when the migration fails, by
        the ``reset`` of a stream that has one. A `trio.SSLStream` must be made
        without ``https_compatible``, by a context without
        `ssl.OP_IGNORE_UNEXPECTED_EOF`, which Python sets before 3.11.4: otherwise a
        cut connection looks like one that ended.
      devices: what gives the state, by idstr (the guest's path to the device) or
        by idstr and instance id.
      channels: how many multifd channels, 1 to 255.
      machine: the machine type, which a QEMU compares with its own.
      uuid: of the machine, which a QEMU compares with its own; None: it has none.
      return_path: whether the destination is to answer.
      switchover_ack: whether the destination acknowledges the switchover: both
        sides must have agreed on it. Needs a return path.
      deadlines: see `Deadlines`.
      device_grace: seconds that a device call may take to end after a fault or
        a cancel before the device's ``abort`` is called; None: for ever.
      digests: whether to compute SHA-256 digests of what is sent.
      buffer_size: how much data a packet holds at most, in bytes; up to 1 MiB.
      max_queued_bytes: how much of a device's state may wait in memory for a
        channel, or be sent. A device may always fill one buffer. One that is read
        in a thread gets no more than what keeps all channels busy.
      max_session_bytes: the same for all devices together.
      ssl_context: for a client; every connection is then TLS. The option
        `ssl.OP_IGNORE_UNEXPECTED_EOF` of the context is cleared, and stays so.
      server_hostname: what the destination's certificate must be for; None: the
        host of the address.
      trace: called with all that happens, under QEMU's names, in Trio's thread.
        If it raises, that is logged and it is called no more.

    Raises:
      MigrationFailed: with every fault that was found: `PeerProtocolError`,
        `ConnectionLost`, `DestinationFailed`, `DeadlineExceeded`, `DeviceError`.
      ValueError: if *where* is no address or opens a TLS stream that does not
        notice a cut, a name is no idstr, or a number makes no sense.
      OSError: if no connection can be made; ETIMEDOUT after the deadline
        ``first_connection``.
      ssl.SSLError: if the destination is not trusted, as the cause of an OSError. A
        destination that does not trust us shows later, with TLS 1.3: as
        `ConnectionLost`.
      Whatever the block itself raises, as it is.
    """
    deadlines = deadlines or Deadlines()
    options = Options(
        sources=_named(devices),
        machine=_machine(machine),
        return_path=return_path,
        switchover_ack=switchover_ack,
        deadlines=deadlines,
        device_grace=device_grace,
        digests=digests,
        buffer_size=_within("buffer_size", buffer_size, MIB),
        max_queued_bytes=max_queued_bytes,
        max_session_bytes=max_session_bytes,
    )
    count = _within("channels", channels, MAX_CHANNELS)
    async with connected(
        where,
        count,
        uuid=bytes(16) if uuid is None else uuid.bytes,
        deadlines=deadlines,
        ssl_context=ssl_context,
        server_hostname=server_hostname,
    ) as connections:
        session = Session(options, connections, trace=Trace(trace))
        async with beside(session, partial(session.run, session.serve)):
            yield Outgoing(session)


def _named(devices: Sources) -> dict[DeviceKey, StateSource]:
    named: dict[DeviceKey, StateSource] = {}
    for name, source in devices.items():
        idstr, instance_id = (name, 0) if isinstance(name, str) else name
        if not (is_idstr(idstr) and is_vfio(idstr)):
            raise ValueError(
                f"{idstr!r} is no VFIO device's idstr, as 0000:00:04.0/vfio"
            )
        if not 0 <= instance_id < 1 << 32:
            raise ValueError(f"{instance_id!r} is no instance id")
        named[idstr, instance_id] = source
    _within("the number of devices", len(named), MAX_DEVICES)
    return named


def _machine(machine: str) -> str:
    if not (0 < len(machine) <= MAX_MACHINE_TYPE and machine.isascii()):
        raise ValueError(f"{machine!r} is no machine type")
    if not machine.isprintable() or " " in machine:
        raise ValueError(f"{machine!r} is no machine type")
    return machine


def _within(name: str, number: Any, most: int) -> int:
    if not 1 <= number <= most:
        raise ValueError(f"{name} must be from 1 to {most}, not {number!r}")
    return int(number)
