"""Every exception of trio_vfio, sorted by whose doing it is.

::

    TrioVfioError
    ├── PeerProtocolError      the peer: bytes that break the protocol
    ├── ConnectionLost         the network, or a peer that left early
    ├── DestinationFailed      the destination: it says so itself
    ├── DeadlineExceeded       nobody in particular: it took too long
    └── DeviceError            the device: it refused its state, or failed

    MigrationFailed            all of the above that ended one migration

Mistakes of the caller stay `TypeError` and `ValueError`.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Sequence
from typing import Self

from ._result import MigrationResult


class TrioVfioError(Exception):
    """Base of every error that trio_vfio raises on its own account."""


def device_name(idstr: str, instance_id: int) -> str:
    """Name a device the way errors and tables do: the instance only if not 0."""
    return idstr if instance_id == 0 else f"{idstr} (instance {instance_id})"


class PeerProtocolError(TrioVfioError):
    """The peer sent bytes that break the migration protocol.

    The stream they came from cannot be trusted past this point, so the
    migration ends. Never raised for a fault of the caller's.

    .. attribute:: offset

       Where in its connection the offending piece begins, in bytes; None if
       it is no single piece.

    .. attribute:: channel

       ``"main"`` or ``"channel 3"``; None while it is not known.

    .. attribute:: ended

       Whether it is no more than an end before its time.
    """

    def __init__(
        self,
        reason: str,
        *,
        offset: int | None = None,
        channel: str | None = None,
        ended: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset
        self.channel = channel
        self.ended = ended

    def __str__(self) -> str:
        where = "" if self.channel is None else f"{self.channel}: "
        at = "" if self.offset is None else f" (at byte {self.offset})"
        return where + self.reason + at


class ConnectionLost(TrioVfioError):
    """A connection broke, or ended before the migration was complete.

    .. attribute:: channel

       ``"main"`` or ``"channel 3"``.
    """

    def __init__(self, reason: str, *, channel: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.channel = channel

    def __str__(self) -> str:
        return f"{self.channel}: {self.reason}"


class DestinationFailed(TrioVfioError):
    """The destination has said that it could not load the devices (``SHUT(1)``).

    It does not say why; its own log does.
    """

    def __str__(self) -> str:
        return "the destination says that the migration failed"


class DeadlineExceeded(TrioVfioError):
    """One of the session's `Deadlines` passed.

    .. attribute:: deadline

       The name of the field of `Deadlines`, e.g. ``"first_connection"``.

    .. attribute:: seconds

       How long it was.
    """

    def __init__(self, deadline: str, seconds: float, waiting_for: str) -> None:
        super().__init__(deadline, seconds, waiting_for)
        self.deadline = deadline
        self.seconds = seconds
        self.waiting_for = waiting_for

    def __str__(self) -> str:
        name = self.deadline.replace("_", "-")  # as the command's option has it
        return f"{name} deadline of {self.seconds:g} s passed: {self.waiting_for}"


class DeviceError(TrioVfioError):
    """A device refused its state, or failed while it took it.

    The cause, usually an `OSError`, is the ``__cause__``.

    .. attribute:: operation

       The call that failed: begin, write, load_config, finish or abort; at a source
       begin, pending, read, stop_p2p, stop, config, finish or abort.

    .. attribute:: idx

       The buffer that was being written or read; None outside of one, and for
       pre-copy data, which has no index.

    .. attribute:: offset

       Where that buffer begins in the device's whole stream of data, in bytes.

    .. attribute:: errno

       The system's number for it, if the cause has one.
    """

    def __init__(
        self,
        idstr: str,
        instance_id: int,
        operation: str,
        reason: str,
        *,
        idx: int | None = None,
        offset: int | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(idstr, instance_id, operation, reason)
        self.idstr = idstr
        self.instance_id = instance_id
        self.operation = operation
        self.reason = reason
        self.idx = idx
        self.offset = offset
        self.errno = errno

    def __str__(self) -> str:
        what = self.operation
        if self.idx is not None:
            what += f" of buffer {self.idx}"
        if self.offset is not None:
            what += f" at byte {self.offset}"
        return f"{device_name(self.idstr, self.instance_id)}: {what}: {self.reason}"


def describe(exc: BaseException) -> str:
    """Say in one line what *exc* is, with the name of its errno."""
    if isinstance(exc, OSError) and exc.errno is not None:
        name = _errno.errorcode.get(exc.errno, f"errno {exc.errno}")
        text = f"{name}: {exc.strerror or os.strerror(exc.errno)}"
        return text if exc.filename is None else f"{text}: {exc.filename}"
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


class MigrationFailed(ExceptionGroup[TrioVfioError]):
    """A migration failed; every fault that was found is in `exceptions`.

    Use ``except*`` for a kind of fault, or ``except`` for the whole.

    .. attribute:: result

       What was reached until then, as a `MigrationResult`.
    """

    result: MigrationResult

    def __new__(cls, faults: Sequence[TrioVfioError], result: MigrationResult) -> Self:
        self = super().__new__(cls, "migration failed", faults)
        self.result = result
        return self

    def __init__(self, faults: Sequence[TrioVfioError], result: MigrationResult):
        super().__init__("migration failed", faults)

    def derive(self, excs: Sequence[TrioVfioError], /) -> MigrationFailed:  # type: ignore[override]
        return MigrationFailed(excs, self.result)
