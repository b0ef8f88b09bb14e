"""What must be so of a receiving session whenever all its tasks wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .._receive._loader import IncomingDevice
from .._receive._router import Channel, Router


def held_up(router: Router, unread: Callable[[int], int]) -> Iterator[str]:
    """Say what could go on, and does not: somebody waits for the wrong thing.

    Args:
      unread: how many bytes have come over the channel of that id, and were not read.
    """
    for device in router.devices.values():
        if device.arrived.locked():
            yield f"{device.name}: its lock is held while everything waits"
        if _is_idle(device):
            yield f"{device.name}: packet {device.queue.due} waits, and is not loaded"
    for channel in router.channels.values():
        if channel.paused_at is not None and not channel.is_stuck:
            yield f"{channel.name}: waits for room, and there is room"
        if _could_read(channel, router) and unread(channel.id):
            yield f"{channel.name}: bytes have come, and are not read"


def over_limits(devices: Sequence[IncomingDevice], most: int) -> Iterator[str]:
    """Say whose packets take more than they may. The one that is due always may.

    Args:
      most: what those of all devices may take together, in bytes.
    """
    for device in devices:
        queue = device.queue
        if queue.early > queue.max_bytes:
            yield f"{device.name}: {queue.early} bytes wait, at most {queue.max_bytes}"
    early = sum(device.queue.early for device in devices)
    if early > most:
        yield f"all devices: {early} bytes wait, at most {most}"


def _is_idle(device: IncomingDevice) -> bool:
    queue = device.queue
    return queue.started and queue.has_due and device.calls.running is None


def _could_read(channel: Channel, router: Router) -> bool:
    if channel.ended or channel.decoder is None or channel.paused_at is not None:
        return False
    # Before that, packets wait for the section that names their device.
    return all(device.announced for device in router.devices.values())
