"""What a migration came to: plain values, the same for a session and for a capture."""

from __future__ import annotations

import enum

import attrs


class DeviceState(enum.StrEnum):
    """How far one device has come."""

    SETUP = "setup"
    """Announced or expected; nothing was written to it."""
    PRECOPY = "precopy"
    """Takes data while the source's guest still runs."""
    SAVING = "saving"
    """At the source: stands still; the rest of its data and its config is read."""
    LOADING = "loading"
    """At the destination: takes the rest of its data and its config."""
    COMPLETED = "completed"
    """Has accepted its whole state; at the source, was let go of."""
    FAILED = "failed"
    """Was aborted, or never got its whole state; at the source, runs again."""


class SessionState(enum.StrEnum):
    """How far a migration has come, in QEMU's words where it has them."""

    SETUP = "setup"
    """Waits for the main channel."""
    ACTIVE = "active"
    """The source's guest runs; pre-copy data may come."""
    DEVICE = "device"
    """Switchover has begun; the source's guest stands still."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class CaptureStatus(enum.StrEnum):
    """How much of a migration, or of one device, a capture holds."""

    COMPLETE = "complete"
    """All of it."""
    INCOMPLETE = "incomplete"
    """A part is missing or wrong; ``errors`` says which."""
    CUT = "cut"
    """A file ends in the middle of a packet. A device is never cut."""


class Transfer(enum.StrEnum):
    """How a device's data comes after switchover."""

    MULTIFD = "multifd"
    """As buffers with an index, over the multifd channels."""
    MAIN = "main"
    """In order, over the main channel."""


@attrs.frozen
class DeviceResult:
    """What one device got, and what became of it."""

    idstr: str
    instance_id: int
    status: DeviceState | CaptureStatus
    """In a migration, a `DeviceState`. In a capture, a `CaptureStatus`."""
    transfer: Transfer | None
    """How its data came after switchover; None if that is not known."""
    errors: tuple[str, ...]
    precopy_bytes: int
    """Data before switchover, in bytes."""
    data_bytes: int
    """All data, pre-copy included, in bytes."""
    buffers: int
    """Data packets, or blocks of data after switchover on the main channel."""
    sha256: str | None
    """Of all data in load order, in hex; None if digests are off."""
    config_bytes: int | None
    """Size of the config blob between its marks; None if none came."""
    config_sha256: str | None
    starved: int
    """How often its loader had to wait for the due buffer."""
    seconds: float | None
    """From the start of its loader to the device's acceptance; None before."""


@attrs.frozen
class ChannelResult:
    """What came over one multifd channel."""

    id: int
    bytes: int
    packets: int
    """Packets of every kind, the initial one not counted."""
    device_state_packets: int


@attrs.frozen
class MigrationResult:
    """How a migration ended, or how far it has come."""

    status: SessionState
    """How far the migration came. A result of ``migrate`` is ``completed``."""
    errors: tuple[str, ...]
    devices: tuple[DeviceResult, ...]
    channels: tuple[ChannelResult, ...]
    switchover_seconds: float | None
    """From SWITCHOVER_START to the last device's acceptance; None before."""
    seconds: float
    """From the first byte of the migration."""
    dropped: tuple[str, ...] = ()
    """Connections that the destination has not taken, and why; the first 64 of them
    that differ."""
