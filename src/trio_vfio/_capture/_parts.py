"""What the source of a capture sent, and what it waited for, connection by connection.

Each connection goes on by itself, but for two things that a source waits for and
the files do not show:

- before SWITCHOVER_START, the answers that are in ``return.bin``
- on a multifd channel, SWITCHOVER_START before the first device-state packet

QEMU: ``migration_thread`` in migration/migration.c.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Final

import attrs

from .._errors import PeerProtocolError
from .._wire._return_path import ReturnPathDecoder, ReturnPathFrame, ReturnPathType
from ._channel_scan import ChannelScan
from ._faults import Fault
from ._report import CaptureScan

_COMMAND_BYTES: Final = 5


class Awaits(enum.Enum):
    """What has to be before a part is sent."""

    NOTHING = "nothing"
    ANSWERS = "the answers that the destination gave before switchover"
    SWITCHOVER = "SWITCHOVER_START to have been sent on main"


@attrs.frozen
class Part:
    """A part of a connection's file."""

    size: int
    """How many bytes it has."""
    awaits: Awaits = Awaits.NOTHING


def parts_of_main(scan: CaptureScan) -> Iterator[Part]:
    """Return the parts of ``main.bin``, in order; none if it is missing."""
    path, switchover = scan.capture.main, scan.main.switchover_start
    if not path.exists():
        return
    size = path.stat().st_size
    if switchover is None:
        yield Part(size)
        return
    command = min(_COMMAND_BYTES, size - switchover)
    yield Part(switchover)
    yield Part(command, Awaits.ANSWERS)
    yield Part(size - switchover - command)


def parts_of_channel(scan: CaptureScan, channel: ChannelScan) -> Iterator[Part]:
    """Return the parts of the file of one channel, in order."""
    size = channel.result.bytes
    if scan.main.switchover_start is None or not channel.packets:
        yield Part(size)
        return
    first = channel.packets[0].offset
    yield Part(first)
    yield Part(size - first, Awaits.SWITCHOVER)


def answers_before_switchover(scan: CaptureScan) -> int:
    """Return how many answers there were before SWITCHOVER_START; 0 if none.

    Raises:
      ValueError: if the return path is none.
      OSError: if it cannot be read.
    """
    path = scan.capture.return_path
    if not path.exists():
        return 0
    try:
        frames = ReturnPathDecoder().received(path.read_bytes())
    except PeerProtocolError as error:
        raise ValueError(str(Fault.of(path.name, error))) from error
    return count_answers(frames) - scan.main.pings_after_switchover


def count_answers(frames: Iterable[ReturnPathFrame]) -> int:
    """Return how many of *frames* are what a source waits for before switchover."""
    types = [frame.type for frame in frames]
    pongs = types.count(ReturnPathType.PONG)
    return pongs + types.count(ReturnPathType.SWITCHOVER_ACK)
