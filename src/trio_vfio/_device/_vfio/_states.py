"""The states of a migratable VFIO device, and the arcs between them.

A device is asked for a state by VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, and the kernel
goes there step by step; `path` says which steps. Free of I/O.

Kernel: ``vfio_mig_get_next_state`` in drivers/vfio/vfio_main.c, and the comments of
``enum vfio_device_mig_state`` in linux/vfio.h.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final

from . import _uapi


class MigrationFlags(enum.IntFlag):
    """What a device can do, of what is optional."""

    STOP_COPY = _uapi.VFIO_MIGRATION_STOP_COPY
    """It can be migrated at all."""
    P2P = _uapi.VFIO_MIGRATION_P2P
    """It can be kept from accessing other devices before it is stopped."""
    PRE_COPY = _uapi.VFIO_MIGRATION_PRE_COPY
    """It gives data while it runs."""


class MigrationState(enum.IntEnum):
    """A state of a device, with the kernel's number."""

    ERROR = _uapi.VFIO_DEVICE_STATE_ERROR
    """It failed; only a reset ends that."""
    STOP = _uapi.VFIO_DEVICE_STATE_STOP
    """It stands still: no DMA, no interrupt, no change of its state."""
    RUNNING = _uapi.VFIO_DEVICE_STATE_RUNNING
    """It works. So it is after a reset, too."""
    STOP_COPY = _uapi.VFIO_DEVICE_STATE_STOP_COPY
    """It stands still, and its state is read."""
    RESUMING = _uapi.VFIO_DEVICE_STATE_RESUMING
    """It stands still, and a state is written into it."""
    RUNNING_P2P = _uapi.VFIO_DEVICE_STATE_RUNNING_P2P
    """It works, but begins no access to another device."""
    PRE_COPY = _uapi.VFIO_DEVICE_STATE_PRE_COPY
    """It works, and what of its state is known is read."""
    PRE_COPY_P2P = _uapi.VFIO_DEVICE_STATE_PRE_COPY_P2P
    """Both of the last two."""


_S = MigrationState

SAVING: Final = frozenset({_S.PRE_COPY, _S.PRE_COPY_P2P, _S.STOP_COPY})
"""The states in which state is read, all of them from one data_fd."""

_NEEDS: Final = MappingProxyType(
    {
        _S.RUNNING_P2P: MigrationFlags.P2P,
        _S.PRE_COPY: MigrationFlags.PRE_COPY,
        _S.PRE_COPY_P2P: MigrationFlags.P2P | MigrationFlags.PRE_COPY,
    }
)
"""What a device must be able to do to have a state."""

# The step to take from a state (row) to get to another (column) in the end, in the
# order of `_COLUMNS`. A dot: it is there. None: there is no way.
_COLUMNS: Final = (
    _S.STOP,
    _S.RUNNING,
    _S.PRE_COPY,
    _S.PRE_COPY_P2P,
    _S.STOP_COPY,
    _S.RESUMING,
    _S.RUNNING_P2P,
)
_TABLE: Final = """
STOP          .            RUNNING_P2P  RUNNING_P2P   RUNNING_P2P   STOP_COPY     RESUMING     RUNNING_P2P
RUNNING       RUNNING_P2P  .            PRE_COPY      RUNNING_P2P   RUNNING_P2P   RUNNING_P2P  RUNNING_P2P
PRE_COPY      RUNNING      RUNNING      .             PRE_COPY_P2P  PRE_COPY_P2P  RUNNING      RUNNING
PRE_COPY_P2P  RUNNING_P2P  RUNNING_P2P  PRE_COPY      .             STOP_COPY     RUNNING_P2P  RUNNING_P2P
STOP_COPY     STOP         STOP         None          None          .             STOP         STOP
RESUMING      STOP         STOP         STOP          STOP          STOP          .            STOP
RUNNING_P2P   STOP         RUNNING      RUNNING       PRE_COPY_P2P  STOP          STOP         .
"""  # noqa: E501 (a table)


def _parse(table: str) -> dict[MigrationState, dict[MigrationState, MigrationState]]:
    parsed: dict[MigrationState, dict[MigrationState, MigrationState]] = {}
    for row in table.strip().splitlines():
        start, *steps = row.split()
        parsed[MigrationState[start]] = {
            target: MigrationState[step]
            for target, step in zip(_COLUMNS, steps, strict=True)
            if step not in (".", "None")
        }
    return parsed


NEXT: Final = MappingProxyType(_parse(_TABLE))
"""The step from a state towards another, were all of them there."""


def has(flags: MigrationFlags, state: MigrationState) -> bool:
    """Whether a device that can do *flags* has *state*."""
    needed = _NEEDS.get(state, MigrationFlags.STOP_COPY)
    return needed in flags


def path(
    start: MigrationState, target: MigrationState, flags: MigrationFlags
) -> tuple[MigrationState, ...]:
    """Return the states that a device goes through, from *start* to *target*.

    Args:
      flags: what the device can do. States that it does not have are passed over.

    Returns: all states after *start*; none if it is *target*.

    Raises:
      ValueError: if there is no way.
    """
    if not (has(flags, start) and has(flags, target)):
        raise ValueError(f"no way from {start.name} to {target.name} with {flags!r}")
    steps: list[MigrationState] = []
    at = start
    while at is not target:
        at = _next(at, target)
        if has(flags, at):
            steps.append(at)
    return tuple(steps)


def _next(at: MigrationState, target: MigrationState) -> MigrationState:
    try:
        return NEXT[at][target]
    except KeyError:
        raise ValueError(f"no way from {at.name} to {target.name}") from None


def opens_data_fd(start: MigrationState, steps: tuple[MigrationState, ...]) -> bool:
    """Whether going these *steps* gives a new data_fd in the end."""
    if not steps or _data_of(steps[-1]) is None:
        return False
    return not keeps_data_fd(start, steps)


def keeps_data_fd(start: MigrationState, steps: tuple[MigrationState, ...]) -> bool:
    """Whether the data_fd of *start*, if there is one, is good behind these *steps*."""
    data = _data_of(start)
    return data is not None and all(_data_of(step) == data for step in steps)


def _data_of(state: MigrationState) -> str | None:
    """Name the data_fd that a device has in *state*."""
    if state in SAVING:
        return "saving"
    return "resuming" if state is _S.RESUMING else None
