"""When to acknowledge the switchover.

A source that asks for it does not stop its guest before the destination has
said that each device took its initial data. Up to machine type 11.0 that is
said once, for all devices; from 11.1 on, once for each.

Too early costs downtime only. Never is a hang, so a device that does not know
whether it takes pre-copy data counts only until it is plain that none comes.

QEMU: ``qemu_loadvm_state_switchover_ack_needed`` and
``qemu_loadvm_approve_switchover`` in migration/savevm.c.
"""

from __future__ import annotations

from typing import Final, final

import attrs

# The end of the second round over RAM: by then every device had its turn.
_ROUNDS: Final = 2


@final
@attrs.define(eq=False)
class SwitchoverAck:
    """Counts who has to be waited for. Each method returns how many ACKs to send."""

    once: bool = attrs.field(kw_only=True)
    """One ACK in all, not one for each device."""

    _counting: set[str] = attrs.field(factory=set[str], init=False)
    """Devices whose initial data is still to come."""
    _unsure: set[str] = attrs.field(factory=set[str], init=False)
    """Those of them that do not know whether they take any."""
    _sent: bool = attrs.field(default=False, init=False)
    _rounds: int = attrs.field(default=0, init=False)
    _has_ram: bool = attrs.field(default=False, init=False)

    def expect(self, device: str, *, precopy: bool | None) -> None:
        """Take note of a device: named by the caller, or announced."""
        if precopy is False or self._rounds >= _ROUNDS:
            return
        self._counting.add(device)
        if precopy is None:
            self._unsure.add(device)

    def return_path_opened(self, *, all_known: bool) -> int:
        """The source can hear us; *all_known*: no more devices are to come."""
        return self._when_none_counts() if all_known else 0

    @property
    def pending(self) -> int:
        """Devices whose initial data is still to come."""
        return len(self._counting)

    def ram_announced(self) -> None:
        """There will be rounds over RAM, as there are not without a guest."""
        self._has_ram = True

    def part_came(self, device: str) -> None:
        """The device does take data before switchover."""
        self._unsure.discard(device)

    def init_data_sent(self, device: str) -> int:
        """The device has its initial data."""
        self._counting.discard(device)
        self._unsure.discard(device)
        if not self._has_ram:
            # No round is to come that would tell: rather too early than never.
            self._drop_unsure()
        return self._when_none_counts() if self.once else 1

    def ram_round_ended(self) -> int:
        """The source has been over all of RAM, and all devices, once more."""
        self._rounds += 1
        if self._rounds != _ROUNDS:
            return 0
        self._drop_unsure()
        return self._when_none_counts()

    def _drop_unsure(self) -> None:
        self._counting -= self._unsure
        self._unsure.clear()

    def _when_none_counts(self) -> int:
        if not self.once or self._counting or self._sent:
            return 0
        self._sent = True
        return 1
