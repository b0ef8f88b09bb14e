"""What is in a capture, and whether it is a whole migration.

The files are read piece by piece, twice at most: a capture is as large as what
was migrated.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from .._errors import device_name
from .._result import CaptureStatus, ChannelResult, DeviceResult
from ._channel_scan import ChannelScan, PacketRecord, scan_channel
from ._device_state import DeviceCapture, collect_device
from ._faults import Fault
from ._layout import Capture, find_capture
from ._main_scan import DeviceKey, MainRecord, MainScan, scan_main


@attrs.frozen
class CaptureReport:
    """What is in a capture."""

    status: CaptureStatus
    errors: tuple[str, ...]
    """Why it is not complete, the one behind its status first."""
    devices: tuple[DeviceResult, ...]
    """What a destination would have loaded of each."""
    channels: tuple[ChannelResult, ...]
    packets: tuple[PacketRecord, ...]
    """Every device-state packet, by channel and then as they were sent."""
    main: tuple[MainRecord, ...]
    main_bytes: int
    switchover_start: int | None
    """Where in the main stream that command begins; None if it never came."""

    @property
    def reason(self) -> str | None:
        """Why it is not complete, in one line; None if it is."""
        return self.errors[0] if self.errors else None


@attrs.frozen
class CaptureScan:
    """All files of a capture, read once, and the devices in them."""

    capture: Capture
    main: MainScan
    channels: tuple[ChannelScan, ...]
    devices: tuple[DeviceCapture, ...]

    @property
    def faults(self) -> list[Fault]:
        """What is wrong with the files, cut ones first."""
        faults = [self.main.fault, *(channel.fault for channel in self.channels)]
        return sorted((fault for fault in faults if fault), key=lambda f: not f.cut)

    def report(self) -> CaptureReport:
        """Judge the capture as a whole, by the rules of a receiver.

        Raises:
          OSError: if a file cannot be read.
        """
        faults = self.faults
        devices = tuple(device.result(self.capture) for device in self.devices)
        reasons = [str(fault) for fault in faults]
        for device in devices:
            name = device_name(device.idstr, device.instance_id)
            reasons += [f"{name}: {error}" for error in device.errors]
        status = CaptureStatus.INCOMPLETE if reasons else CaptureStatus.COMPLETE
        return CaptureReport(
            status=CaptureStatus.CUT if any(fault.cut for fault in faults) else status,
            errors=tuple(reasons),
            devices=devices,
            channels=tuple(channel.result for channel in self.channels),
            packets=tuple(p for channel in self.channels for p in channel.packets),
            main=tuple(self.main.records),
            main_bytes=self.main.bytes,
            switchover_start=self.main.switchover_start,
        )


def scan_capture(path: Path, page_size: int | None = None) -> CaptureScan:
    """Read all files of the capture at *path*.

    Args:
      page_size: of the machine that migrated, if its stream does not say it.

    Raises:
      ValueError: if there is no capture at *path*.
      OSError: if it cannot be read.
    """
    capture = find_capture(path)
    main = scan_main(capture.main, page_size)
    channels = tuple(
        scan_channel(capture.channel(id_), id_, main.page_size)
        for id_ in capture.channels
    )
    packets: dict[DeviceKey, list[PacketRecord]] = {key: [] for key in main.devices}
    for channel in channels:
        for packet in channel.packets:
            packets.setdefault((packet.idstr, packet.instance_id), []).append(packet)
    devices = (collect_device(capture, key, main, packets[key]) for key in packets)
    return CaptureScan(capture, main, channels, tuple(devices))


def inspect_capture(path: Path, *, page_size: int | None = None) -> CaptureReport:
    """Say what is in the capture at *path*, whole or damaged.

    Args:
      page_size: of the machine that migrated, if its stream does not say it.

    Raises:
      ValueError: if there is no capture at *path*.
      OSError: if it cannot be read.
    """
    return scan_capture(path, page_size).report()
