"""What is measured: one basic case for each task, and what varies from it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

import attrs

KIB: Final = 1 << 10
MIB: Final = 1 << 20


class Task(enum.StrEnum):
    """What the measured program does."""

    LOAD = "load"
    """It is the destination; the source is in C and makes its data up."""
    SAVE = "save"
    """It is the source; the destination is in C and drops the data."""
    WHOLE = "whole"
    """It is both, in two processes."""


class Medium(enum.StrEnum):
    """What the devices are."""

    MEMFD = "memfd"
    """Files in memory, whose pages are there before the clock starts."""
    PIPE = "pipe"
    """Pipes with a program at the other end that costs next to nothing."""


@attrs.frozen(kw_only=True)
class Case:
    """One thing to measure, with each contender."""

    task: Task
    medium: Medium = Medium.MEMFD
    us_per_mib: int = 0
    """How long a device takes for a MiB, in microseconds; 0: as fast as it can."""
    packet: int = MIB
    channels: int = 4
    devices: int = 4

    @property
    def name(self) -> str:
        """What it is called: all that it is, as ``load-memfd-1024k-4ch-4dev``."""
        slow = f"-{self.us_per_mib}us" if self.us_per_mib else ""
        size = f"{self.packet // KIB}k"
        where = f"{self.task}-{self.medium}{slow}"
        return f"{where}-{size}-{self.channels}ch-{self.devices}dev"

    def device_bytes(self, total: int) -> int:
        """Return how much state each device has if *total* is what all should have."""
        share = self.packet * self.devices
        return max(1, total // share) * self.packet


def _cases() -> Iterator[Case]:
    for task in (Task.LOAD, Task.SAVE):
        memfd = Case(task=task)
        yield memfd
        yield attrs.evolve(memfd, medium=Medium.PIPE)
        if task is Task.LOAD:
            for us_per_mib in (200, 1000):
                yield attrs.evolve(memfd, medium=Medium.PIPE, us_per_mib=us_per_mib)
        for packet in (64 * KIB, 256 * KIB):
            yield attrs.evolve(memfd, packet=packet)
        for channels in (1, 2, 8):
            yield attrs.evolve(memfd, channels=channels)
        for devices in (1, 2, 8, 32):
            yield attrs.evolve(memfd, devices=devices)
        yield attrs.evolve(memfd, medium=Medium.PIPE, devices=32)
    yield Case(task=Task.WHOLE)


CASES: Final = tuple(_cases())


def chosen(patterns: tuple[str, ...]) -> tuple[Case, ...]:
    """Return the cases whose name fits one of *patterns*, or all if there are none."""
    if not patterns:
        return CASES
    return tuple(
        case
        for case in CASES
        if any(fnmatchcase(case.name, pattern) for pattern in patterns)
    )
