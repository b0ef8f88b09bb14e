"""Pre-copy: what can go while the guest runs, and when to stop that.

QEMU sends a block of each device in its turn until an estimate of what is left
falls below a threshold: ``migration_iteration_run`` in migration/migration.c and
``vfio_save_iterate`` in hw/vfio/migration.c. Where no estimate ever does, it goes
on for ever; here it ends when nothing more can be gained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import attrs
import trio

from ._buffers import BufferPool, Share
from ._device import OutgoingDevice
from ._main import MainChannel


def _not_negative(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{attribute.name} cannot be {value!r}")


@attrs.frozen(kw_only=True)
class Limits:
    """When pre-copy is over; see `Outgoing.migrate`."""

    max_rounds: int | None = attrs.field(
        validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    downtime: float = attrs.field(validator=_not_negative)


@final
@attrs.define(eq=False)
class Precopy:
    """Sends the pre-copy data of devices, round after round."""

    main: MainChannel
    devices: Sequence[OutgoingDevice]
    """Those that have such data."""
    pool: BufferPool
    limits: Limits
    acks: int
    """How many SWITCHOVER_ACK to wait for; 0 if none were agreed upon."""

    rounds: int = attrs.field(default=0, init=False)
    _bytes: int = attrs.field(default=0, init=False)
    _seconds: float = attrs.field(default=0.0, init=False)

    async def run(self) -> None:
        """Send rounds until it is time to switch over.

        A round is what the devices have when it begins. If this fails or is
        cancelled, part of a round has gone.

        Raises:
          DeviceError: if a device fails.
          ConnectionLost: if the connection breaks.
        """
        acks = self.main.answers.acks
        while self.devices and not self._is_over():
            await self._round()
            await self._ask()
            if self._is_over() and acks.value < self.acks:
                await acks.wait_value(lambda acks: acks >= self.acks)
                # The guest went on meanwhile.
                await self._ask()

    async def _ask(self) -> None:
        for device in self.devices:
            await device.ask_pending()

    def _is_over(self) -> bool:
        if not self.rounds:
            return False
        if self.limits.max_rounds is not None and self.rounds >= self.limits.max_rounds:
            return True
        left = [device.pending for device in self.devices]
        if not any(each.initial_bytes or each.dirty_bytes for each in left):
            return True
        then = sum(
            each.initial_bytes + each.dirty_bytes
            if each.stop_copy_bytes is None
            else each.stop_copy_bytes
            for each in left
        )
        return then <= self._rate * self.limits.downtime

    @property
    def _rate(self) -> float:
        """Bytes per second so far."""
        return self._bytes / self._seconds if self._seconds else math.inf

    async def _round(self) -> None:
        self.rounds += 1
        self.main.trace("savevm_state_iterate")
        share = Share(1)
        buffers = await self.pool.take(share, 1)
        began = trio.current_time()
        left = list(self.devices)
        while left:
            for device in left:
                await self._part(device, buffers[0])
            left = [
                device
                for device in left
                if device.pending.initial_bytes or device.pending.dirty_bytes
            ]
        self._seconds += trio.current_time() - began
        self.pool.give_back(share, *buffers)

    async def _part(self, device: OutgoingDevice, buffer: memoryview) -> None:
        data = await device.read_block(buffer)
        says_so = (
            self.acks > 0
            and not device.init_data_sent
            and not device.pending.initial_bytes
        )
        device.init_data_sent |= says_so
        await self.main.precopy(device.section, data, init_data_sent=says_so)
        self._bytes += len(data)
