"""The orders in which packets of several devices can arrive over several channels.

A sender hands over the packets of each device in the order of their indexes, one
after another, those of different devices in any order, each to any channel. A channel
keeps the order of what it was given, and the channels race each other. So packets
arrive in an order of which this module is about if and only if some order of
handing over fits both: the order of arrival within each channel, and the order of
the indexes of each device.

Pure: no I/O and no time.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, final

import attrs

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_ARRIVAL: Final = re.compile("([a-z])([0-9]+):([0-9]+)")


class Arrival(NamedTuple):
    """A packet that has arrived whole."""

    device: int
    idx: int
    """Of the packet among those of its device; the config has the last one."""
    channel: int

    def __str__(self) -> str:
        return f"{_LETTERS[self.device]}{self.idx}:{self.channel}"


@final
@attrs.frozen(repr=False)
class ArrivalOrder:
    """One order of arrival: each packet with the channel that has brought it.

    As text, ``a0:0 b0:1`` is packet 0 of the first device over channel 0, then
    packet 0 of the second device over channel 1. Its ``repr`` is Python that
    rebuilds it.
    """

    arrivals: tuple[Arrival, ...]
    channels: int = 2
    """How many there are, whether all of them bring something or not."""

    @classmethod
    def parse(cls, text: str, *, channels: int = 2) -> ArrivalOrder:
        """Return the order that *text* says.

        Raises:
          ValueError: if it says none.
        """
        arrivals: list[Arrival] = []
        for word in text.split():
            if (match := _ARRIVAL.fullmatch(word)) is None:
                raise ValueError(f"{word!r} is no arrival, as a0:1 is one")
            device, idx, channel = match.groups()
            arrivals.append(Arrival(_LETTERS.index(device), int(idx), int(channel)))
        return cls(tuple(arrivals), channels)

    @property
    def devices(self) -> int:
        """How many there are."""
        return 1 + max((arrival.device for arrival in self.arrivals), default=-1)

    @property
    def buffers(self) -> int:
        """How many each device has, its config not counted."""
        return max((arrival.idx for arrival in self.arrivals), default=-1)

    def check(self) -> None:
        """Check that an honest sender can bring it about.

        Raises:
          ValueError: if none can.
        """
        each = itertools.product(range(self.devices), range(self.buffers + 1))
        every = [tuple(packet) for packet in each]
        if not every or every != sorted(arrival[:2] for arrival in self.arrivals):
            raise ValueError(f"{self}: these are not all packets, once each")
        if not is_honest(self.arrivals):
            raise ValueError(f"{self}: no honest sender can bring that about")

    def __str__(self) -> str:
        return " ".join(map(str, self.arrivals))

    def __repr__(self) -> str:
        return f"ArrivalOrder.parse({str(self)!r}, channels={self.channels})"


def arrival_orders(
    devices: int = 2, channels: int = 2, buffers: int = 2
) -> Iterator[ArrivalOrder]:
    """Make all orders of arrival that an honest sender can bring about.

    Each device has *buffers* packets of data and a config. Orders that differ only
    in the names of the channels count as one: the first channel that brings
    something is channel 0, the next one channel 1. Those with the same beginning
    come one after another. None is kept: they are made as they are asked for.

    Raises:
      ValueError: if there is no device or no channel, or a number is too large.
    """
    if not 1 <= devices <= len(_LETTERS) or channels < 1 or buffers < 0:
        raise ValueError("there is no order of so few or so many")
    return _orders(devices, channels, buffers)


def _orders(devices: int, channels: int, buffers: int) -> Iterator[ArrivalOrder]:
    packets = [(each, idx) for each in range(devices) for idx in range(buffers + 1)]
    begun: list[tuple[Arrival, ...]] = [()]
    while begun:
        arrivals = begun.pop()
        if len(arrivals) == len(packets):
            yield ArrivalOrder(arrivals, channels)
            continue
        gone = {arrival[:2] for arrival in arrivals}
        used = 1 + max((arrival.channel for arrival in arrivals), default=-1)
        longer = [
            (*arrivals, Arrival(*packet, channel))
            for packet in packets
            if packet not in gone
            for channel in range(min(used + 1, channels))
        ]
        begun += (each for each in reversed(longer) if is_honest(each))


def is_honest(arrivals: Sequence[Arrival]) -> bool:
    """Whether an honest sender can bring about an order that begins so.

    Where it is the beginning of none, this may say so only of a longer beginning.
    """
    channels: dict[int, list[Arrival]] = {}
    for arrival in reversed(arrivals):
        channels.setdefault(arrival.channel, []).append(arrival)
    missing = {arrival[:2] for arrival in arrivals}
    # Hand them over again, each as soon as it is the first one of both its channel
    # and its device. What has not arrived does not hold up anything.
    while missing:
        before = len(missing)
        for queue in channels.values():
            while queue and not _waits(queue[-1], missing):
                missing.discard(queue.pop()[:2])
        if len(missing) == before:
            return False
    return True


def _waits(arrival: Arrival, missing: set[tuple[int, int]]) -> bool:
    return any((arrival.device, idx) in missing for idx in range(arrival.idx))
