"""Lots for a whole migration: often small, often at a limit, seldom all at once."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, TypeVar, final, get_args

from ... import Deadlines
from .._costs import Cost, Stalls, Uniform
from .._faults import ConnectionName, DeviceFault, LinkFault
from ._parts import (
    CallbackFault,
    Cancel,
    DevicePlan,
    Fault,
    Side,
    SinkFault,
    SourceFault,
)

_T = TypeVar("_T")

_SOURCE_CALLS: Final = ("begin", "pending", "read_into", "stop", "config", "finish")
_SINK_CALLS: Final = ("begin", "write", "load_config", "finish")

_LinkFault: TypeAlias = Literal["cut", "reset", "half_close", "garbage", "stall"]

_LINK_FAULTS: Final[tuple[_LinkFault, ...]] = get_args(_LinkFault)

# A migration has so many events if nothing goes wrong and it is small.
_EVENTS: Final = 150

# Where a migration takes a turn.
_TURNS: Final = (
    "multifd_recv_new_channel",
    "vfio_save_setup",
    "savevm_send_switchover_start",
    "loadvm_process_command com=SWITCHOVER_START",
    "vfio_load_state_device_buffer_load_start",
    "vfio_load_device_config_state_start",
    "process_incoming_migration_co_end",
    "migrate_send_rp_message 1:",
    "source_return_path_thread_shut",
)

# Longer than most migrations take, so that times within spread over one.
_SECONDS: Final = 8.0

_GARBAGE: Final = b"\x51\x45\x56\x4d garbage, not of the protocol" * 2


@final
class Draw:
    """Draws parts of a plan.

    Uses ``random.Random.random`` alone, whose numbers Python never changes.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311 (no secrets)

    def number(self, least: float, most: float) -> float:
        """Return a number between the two."""
        # Rounded for people who read the plan.
        return round(least + (most - least) * self._random(), 3)

    def whole(self, least: int, most: int) -> int:
        """Return a whole number from *least* to *most*."""
        return least + int(self._random() * (most - least + 1))

    def chance(self, share: float) -> bool:
        """Return true in so many cases of 1."""
        return self._random() < share

    def pick(self, *from_: _T) -> _T:
        """Return one of them."""
        return from_[int(self._random() * len(from_))]

    def buffer_size(self, size: int | None) -> int:
        """Return how large packets are."""
        least = 64 if size is None else max(64, size // 1000)
        return max(least, self.pick(64, 300, 1000, 4096))

    def limits(self, buffer_size: int) -> tuple[int, int]:
        """Return the bytes that a device may queue, and all devices together.

        Often just as many as some buffers have, or one less.
        """
        one = max(1, self.whole(1, 6) * buffer_size - self.pick(0, 0, 1))
        if self.chance(0.3):
            one = 16 * buffer_size
        return one, self.pick(one, 2 * one, 64 * buffer_size)

    def devices(
        self, count: int | None, size: int | None, buffer_size: int
    ) -> tuple[DevicePlan, ...]:
        """Return the devices."""
        many = self.pick(1, 1, 2, 2, 3, 4) if count is None else count
        return tuple(self._device(size, buffer_size) for _ in range(many))

    def by_connection(
        self, share: float, channels: int, number: Callable[[], _T]
    ) -> dict[ConnectionName, _T]:
        """Return a number for each connection, but in most cases for none."""
        if not self.chance(share):
            return {}
        names: tuple[ConnectionName, ...] = ("main", *range(channels))
        return {name: number() for name in names if self.chance(0.7)}

    def deadlines(self) -> Deadlines:
        """Return deadlines that a migration without faults may well meet."""
        return Deadlines(
            first_connection=20.0,
            handshake=10.0,
            silence=self.pick(5.0, 30.0),
            switchover=self.pick(20.0, None),
        )

    def faults(
        self, devices: tuple[DevicePlan, ...], channels: int, *, return_path: bool
    ) -> tuple[Fault, ...]:
        """Return none to three faults."""
        kinds: tuple[Callable[[], Fault], ...] = (
            lambda: SourceFault(self._place(devices), self._source_fault()),
            lambda: SinkFault(self._place(devices), self._sink_fault()),
            lambda: self._link_fault(channels, return_path=return_path),
            self._cancel,
        )
        count = self.pick(0, 0, 1, 1, 2, 3)
        faults: list[Fault] = [self.pick(*kinds)() for _ in range(count)]
        if count and self.chance(0.1):
            faults.append(CallbackFault(self.pick("before_switchover", "before_shut")))
        return tuple(faults)

    def _device(self, size: int | None, buffer_size: int) -> DevicePlan:
        most = buffer_size * self.pick(0, 1, 3, 6, 20)
        size = self.whole(most // 2, most) if size is None else size
        has_precopy = self.chance(0.5)
        initial = self.whole(0, size) if has_precopy else 0
        dirty = self.whole(0, size - initial) if has_precopy else 0
        return DevicePlan(
            size=size,
            initial_bytes=initial,
            dirty_bytes=dirty,
            dirty_per_second=self.pick(0.0, 0.0, 100.0) if has_precopy else 0.0,
            ends_precopy=self.chance(0.5),
            most_per_read=self.pick(None, None, None, max(1, buffer_size // 3)),
            config=b"config" * self.whole(0, 3),
            # Two ends that disagree wait for each other for ever, as QEMU's do.
            takes_precopy=self.pick(None, initial + dirty > 0),
            read_seconds=self._cost(),
            write_seconds=self._cost(),
            threaded=self.chance(0.3),
        )

    def _cost(self) -> Cost:
        costs: tuple[Cost, ...] = (
            0.0,
            0.0,
            self.number(0, 0.3),
            Uniform(0.0, self.number(0, 0.5)),
            Stalls(0.001, self.number(0, 2), 0.1),
        )
        return self.pick(*costs)

    def _place(self, devices: tuple[DevicePlan, ...]) -> int:
        return self.whole(0, len(devices) - 1)

    def _source_fault(self) -> DeviceFault:
        call = self.pick(*_SOURCE_CALLS, "read_into", "read_into")
        if call == "read_into" and self.chance(0.2):
            return DeviceFault(call, does="ends", at_call=self.whole(0, 5))
        return self._device_fault(call, "read_into")

    def _sink_fault(self) -> DeviceFault:
        call = self.pick(*_SINK_CALLS, "write", "write", "finish", "abort")
        if call == "abort":
            return DeviceFault(call, errno=errno.EIO)
        return self._device_fault(call, "write")

    def _device_fault(self, call: str, data: str) -> DeviceFault:
        does: Literal["fails", "hangs"] = "hangs" if self.chance(0.3) else "fails"
        if (call, data) == ("finish", "read_into"):
            # By then the device lives elsewhere, and may not be aborted any more.
            does = "fails"
        number = self.pick(errno.EIO, errno.EINVAL, errno.ENOSPC)
        if call == data and self.chance(0.5):
            at = self.whole(0, 3000)
            return DeviceFault(call, does=does, errno=number, at_byte=at)
        if self.chance(0.2):
            when = self.number(0, _SECONDS)
            return DeviceFault(call, does=does, errno=number, at_time=when)
        if call in (data, "pending"):
            nth = self.whole(0, 4)
            return DeviceFault(call, does=does, errno=number, at_call=nth)
        return DeviceFault(call, does=does, errno=number)

    def _link_fault(self, channels: int, *, return_path: bool) -> LinkFault:
        name: ConnectionName = self.pick("main", self.whole(0, channels - 1))
        back = return_path and name == "main" and self.chance(0.4)
        does: _LinkFault = self.pick(*_LINK_FAULTS)
        if does == "garbage":
            # Within data nobody could tell it from data: there is no checksum.
            at = self.whole(0, 400) if name == "main" else 0
            data = _GARBAGE[: self.whole(1, len(_GARBAGE))]
            return LinkFault(name, does, at_byte=at, back=back, data=data)
        seconds = float("inf")
        if does == "stall":
            seconds = self.pick(seconds, self.number(0, 10))
        if self.chance(0.3):
            when = self.number(0, _SECONDS)
            return LinkFault(name, does, at_time=when, back=back, seconds=seconds)
        # A frame on the way back has 8 bytes.
        at = self.whole(0, 20) if back else self.whole(0, 3000)
        return LinkFault(name, does, at_byte=at, back=back, seconds=seconds)

    def _cancel(self) -> Cancel:
        side: Side = "source" if self.chance(0.5) else "destination"
        if self.chance(0.3):
            return Cancel(side=side, at_time=self.number(0, _SECONDS))
        if self.chance(0.5):
            return Cancel(side=side, at_event=self.pick(*_TURNS))
        return Cancel(side=side, at_event=self.whole(1, _EVENTS))
