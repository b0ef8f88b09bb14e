"""Pure tests of the states of a VFIO device, against what the kernel was seen to do."""

from __future__ import annotations

import itertools
from typing import Final

import pytest

from trio_vfio._device._vfio._states import (
    NEXT,
    MigrationFlags,
    MigrationState,
    has,
    keeps_data_fd,
    opens_data_fd,
    path,
)

S = MigrationState
ALL: Final = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
EVERY_KIND: Final = [
    MigrationFlags.STOP_COPY | more
    for more in (
        MigrationFlags(0),
        MigrationFlags.P2P,
        MigrationFlags.PRE_COPY,
        MigrationFlags.P2P | MigrationFlags.PRE_COPY,
    )
]

# What Linux 6.12 answered for a device with all states (mtty), from the state of the
# row: whether it went to the state of the column, and then whether with a data_fd.
COLUMNS: Final = "STOP RUNNING STOP_COPY RESUMING RUNNING_P2P PRE_COPY PRE_COPY_P2P"
SEEN: Final = """
STOP          ok  ok  fd  fd  ok  fd      fd
RUNNING       ok  ok  fd  fd  ok  fd      fd
STOP_COPY     ok  ok  ok  fd  ok  EINVAL  EINVAL
RESUMING      ok  ok  fd  ok  ok  fd      fd
RUNNING_P2P   ok  ok  fd  fd  ok  fd      fd
PRE_COPY      ok  ok  ok  fd  ok  ok      ok
PRE_COPY_P2P  ok  ok  ok  fd  ok  ok      ok
"""


def seen() -> list[tuple[MigrationState, MigrationState, str]]:
    rows = [row.split() for row in SEEN.strip().splitlines()]
    return [
        (MigrationState[start], MigrationState[target], answer)
        for start, *answers in rows
        for target, answer in zip(COLUMNS.split(), answers, strict=True)
    ]


@pytest.mark.parametrize(("start", "target", "answer"), seen())
def test_every_arc_is_as_the_kernel_has_it(
    start: MigrationState, target: MigrationState, answer: str
) -> None:
    if answer == "EINVAL":
        with pytest.raises(ValueError, match=f"from {start.name} to {target.name}"):
            path(start, target, ALL)
        return
    steps = path(start, target, ALL)
    assert (steps[-1:] or (start,)) == (target,)
    assert opens_data_fd(start, steps) is (answer == "fd")


def test_single_steps() -> None:
    """The arcs that drivers implement; all others are made of them."""
    arcs = {
        (start, target)
        for start, row in NEXT.items()
        for target, step in row.items()
        if step is target
    }
    assert {(a.name, b.name) for a, b in arcs} == {
        ("STOP", "RUNNING_P2P"),
        ("STOP", "STOP_COPY"),
        ("STOP", "RESUMING"),
        ("RUNNING", "RUNNING_P2P"),
        ("RUNNING", "PRE_COPY"),
        ("PRE_COPY", "RUNNING"),
        ("PRE_COPY", "PRE_COPY_P2P"),
        ("PRE_COPY_P2P", "RUNNING_P2P"),
        ("PRE_COPY_P2P", "PRE_COPY"),
        ("PRE_COPY_P2P", "STOP_COPY"),
        ("STOP_COPY", "STOP"),
        ("RESUMING", "STOP"),
        ("RUNNING_P2P", "STOP"),
        ("RUNNING_P2P", "RUNNING"),
        ("RUNNING_P2P", "PRE_COPY_P2P"),
    }
    for start, row in NEXT.items():
        assert all((start, step) in arcs for step in row.values())


@pytest.mark.parametrize("flags", EVERY_KIND)
def test_states_that_a_device_does_not_have_are_passed_over(
    flags: MigrationFlags,
) -> None:
    for start, target in itertools.permutations(S, 2):
        if not _is_way(start, target, flags):
            with pytest.raises(ValueError):
                path(start, target, flags)
            continue
        steps = path(start, target, flags)
        assert steps[-1] is target
        assert all(has(flags, step) for step in steps)
        assert len(set(steps)) == len(steps)


def _is_way(
    start: MigrationState, target: MigrationState, flags: MigrationFlags
) -> bool:
    if S.ERROR in (start, target) or not (has(flags, start) and has(flags, target)):
        return False
    return not (start is S.STOP_COPY and target in (S.PRE_COPY, S.PRE_COPY_P2P))


def test_without_optional_states() -> None:
    least = MigrationFlags.STOP_COPY
    assert path(S.RUNNING, S.STOP_COPY, least) == (S.STOP, S.STOP_COPY)
    assert path(S.RESUMING, S.RUNNING, least) == (S.STOP, S.RUNNING)
    no_p2p = MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY
    assert path(S.PRE_COPY, S.STOP_COPY, no_p2p) == (S.STOP_COPY,)


def test_one_data_fd_for_all_states_of_saving() -> None:
    steps = path(S.PRE_COPY, S.STOP_COPY, ALL)
    assert keeps_data_fd(S.PRE_COPY, steps)
    assert not opens_data_fd(S.PRE_COPY, steps)
    assert not keeps_data_fd(S.PRE_COPY, path(S.PRE_COPY, S.STOP, ALL))
    # Out of them and in again: another one.
    there = path(S.STOP_COPY, S.RESUMING, ALL)
    assert not keeps_data_fd(S.STOP_COPY, there)
    assert opens_data_fd(S.STOP_COPY, there)
    assert not keeps_data_fd(S.RUNNING, ())
    assert keeps_data_fd(S.RESUMING, ())
