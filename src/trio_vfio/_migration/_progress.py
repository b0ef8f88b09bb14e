"""How far a device has come, for whoever looks on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs

from .._result import DeviceResult, DeviceState, Transfer
from .._values import AsyncValue
from ._position import Position


def _setup() -> AsyncValue[DeviceState]:
    return AsyncValue(DeviceState.SETUP)


@final
@attrs.define(eq=False)
class DeviceProgress:
    """One device of a session, as it is now. To be read, and waited on; not changed."""

    idstr: str
    """Its name in the migration stream: the guest's path to it."""
    instance_id: int
    _position: Position = attrs.field(alias="position")
    state: AsyncValue[DeviceState] = attrs.field(factory=_setup, init=False)
    """Wait on it: ``await device.state.wait_value(DeviceState.COMPLETED)``."""
    transfer: Transfer | None = attrs.field(default=None, init=False)
    """``multifd`` or ``main``: how data comes after switchover; None: not known."""
    precopy_bytes: int = attrs.field(default=0, init=False)
    """Data before switchover that the device has taken or given, in bytes."""
    buffers: int = attrs.field(default=0, init=False)
    """Data packets taken or handed over, or blocks after switchover on main."""
    queued_bytes: int = attrs.field(default=0, init=False)
    """Of packets that are arriving, waiting, or being written or sent."""
    waiting_for: int | None = attrs.field(default=None, init=False)
    """Index that its loader waits for; None: it does not wait."""
    starved: int = attrs.field(default=0, init=False)
    """How often its loader had to wait."""
    expected_bytes: int | None = attrs.field(default=None, init=False)
    """All data, as the device estimates it; None where nobody can know."""
    config_sha256: str | None = attrs.field(default=None, init=False)
    """Of the config blob, in hex; None if digests are off."""
    config_bytes: int | None = attrs.field(default=None, init=False)
    """Size of the config blob; None before it was taken or given."""
    seconds: float | None = attrs.field(default=None, init=False)
    """From the start of its loader to the device's acceptance, or from its stop to
    when all was handed over; None before."""

    def result(self, errors: Sequence[str]) -> DeviceResult:
        """Return the same as a value, with *errors* that are the device's."""
        digest = self._position.digest
        return DeviceResult(
            idstr=self.idstr,
            instance_id=self.instance_id,
            status=self.state.value,
            transfer=self.transfer,
            errors=tuple(errors),
            precopy_bytes=self.precopy_bytes,
            data_bytes=self.data_bytes,
            buffers=self.buffers,
            sha256=None if digest is None else digest.hexdigest(),
            config_bytes=self.config_bytes,
            config_sha256=self.config_sha256,
            # It also waits, in vain, for what then comes over main.
            starved=self.starved if self.transfer is Transfer.MULTIFD else 0,
            seconds=self.seconds,
        )

    @property
    def data_bytes(self) -> int:
        """All data that the device has taken or given, in bytes."""
        return self._position.bytes
