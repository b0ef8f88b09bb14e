"""A migration with all that goes wrong in it, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import attrs

from ... import Deadlines
from ..._wire._limits import MIB
from .._faults import ConnectionName, LinkFault
from ._draw import Draw
from ._parts import DevicePlan, Fault
from ._python import python


@final
@attrs.frozen(kw_only=True, repr=False)
class FaultPlan:
    """A whole migration between two of ours: its conditions, and its faults.

    Everything that happens follows from it, the order in which tasks run included.
    Its repr is Python that rebuilds it.
    """

    seed: int = 0
    """For the order of tasks, and for what costs and jitter are drawn by."""
    devices: tuple[DevicePlan, ...]
    channels: int = 2
    delay: Mapping[ConnectionName, float] = attrs.field(
        factory=dict[ConnectionName, float]
    )
    jitter: Mapping[ConnectionName, float] = attrs.field(
        factory=dict[ConnectionName, float]
    )
    bandwidth: Mapping[ConnectionName, float] = attrs.field(
        factory=dict[ConnectionName, float]
    )
    window: Mapping[ConnectionName, int] = attrs.field(
        factory=dict[ConnectionName, int]
    )
    """These by connection, as `link` takes them."""
    machine: str = "pc-q35-10.0"
    return_path: bool = True
    switchover_ack: bool = False
    stop_seconds: float = 0.0
    """How long the guest takes to stop."""
    buffer_size: int = MIB
    max_queued_bytes: int = 16 * MIB
    max_session_bytes: int = 512 * MIB
    deadlines: Deadlines = Deadlines()
    patience: float = 10_000.0
    """Seconds after which the user of either side gives up, and cancels it."""
    faults: tuple[Fault, ...] = ()

    def __repr__(self) -> str:
        return python(self)

    @staticmethod
    def from_seed(
        seed: int,
        *,
        devices: int | None = None,
        channels: int | None = None,
        size: int | None = None,
        faults: bool = True,
    ) -> FaultPlan:
        """Draw a plan by lot: the same for the same arguments, on every Python.

        About a third of all plans have no faults.

        Args:
          seed: what the lots depend on.
          devices: how many; None: 1 to 4.
          channels: how many; None: 1 to 5.
          size: of each device's state, in bytes; None: up to 20 buffers, at times
            none.
          faults: whether there may be any.
        """
        draw = Draw(seed)
        buffer_size = draw.buffer_size(size)
        given = draw.devices(devices, size, buffer_size)
        count = draw.whole(1, 5) if channels is None else channels
        return_path = draw.chance(0.9)
        queued, in_all = draw.limits(buffer_size)
        drawn = draw.faults(given, count, return_path=return_path) if faults else ()
        return FaultPlan(
            seed=seed,
            devices=given,
            channels=count,
            delay=draw.by_connection(0.3, count, lambda: draw.number(0, 0.5)),
            jitter=draw.by_connection(0.4, count, lambda: draw.number(0, 1)),
            bandwidth=draw.by_connection(
                0.3, count, lambda: draw.number(1, 20) * (buffer_size + 300)
            ),
            window=draw.by_connection(
                0.3, count, lambda: draw.whole(300, 4 * buffer_size + 300)
            ),
            machine=draw.pick("pc-q35-10.0", "pc-q35-11.1", "none"),
            return_path=return_path,
            switchover_ack=return_path and draw.chance(0.4),
            stop_seconds=draw.pick(0.0, 0.0, 0.5),
            buffer_size=buffer_size,
            max_queued_bytes=queued,
            max_session_bytes=in_all,
            deadlines=draw.deadlines() if drawn else Deadlines(),
            patience=600.0,
            faults=drawn,
        )

    def without(self, fault: Fault) -> FaultPlan:
        """Return the same plan without one of its faults."""
        rest = tuple(each for each in self.faults if each is not fault)
        return attrs.evolve(self, faults=rest)

    def has_garbage_on(self, connection: ConnectionName) -> bool:
        """Whether garbage comes to the destination on a connection."""
        garbage = (connection, "garbage", False)
        return any(
            (fault.connection, fault.does, fault.back) == garbage
            for fault in self.faults
            if isinstance(fault, LinkFault)
        )

    def idstr(self, device: int) -> str:
        """Return what the device at that place in the plan is called."""
        return f"0000:00:{device + 4:02x}.0/vfio"
