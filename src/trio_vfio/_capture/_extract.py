"""Write the devices of a capture to a snapshot, as a destination would."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs
import trio

from .._device import SnapshotDirectory
from .._device._port import StateSink
from .._errors import PeerProtocolError
from .._result import DeviceState, MigrationResult, SessionState
from .._wire._main_decoder import MainDecoder
from .._wire._main_events import DeviceData
from ._device_state import DeviceCapture, packet_data
from ._main_scan import DeviceKey, read_main
from ._report import CaptureScan, scan_capture

_GRACE: Final = 10.0


async def extract(
    path: Path, directory: Path, *, page_size: int | None = None
) -> tuple[DeviceKey, ...]:
    """Write the state of each device that is whole to a snapshot in *directory*.

    A device that is not is left out: half a state is of no use to anyone. If no
    device is whole, nothing is written.

    If it fails or is cancelled, no file of the snapshot is left, and an earlier one
    is as it was.

    Args:
      page_size: of the machine that migrated, if its stream does not say it.

    Returns: the devices that were written.

    Raises:
      ValueError: if there is no capture at *path*.
      OSError: if it cannot be read, or the snapshot cannot be written. EBUSY if
        another run is writing to *directory*.
    """
    scan = scan_capture(path, page_size)
    whole = [device for device in scan.devices if not device.faults]
    if not whole:
        return ()
    snapshot = SnapshotDirectory(directory)
    sinks: dict[DeviceKey, StateSink] = {
        device.key: snapshot(*device.key) for device in whole
    }
    async with snapshot.locked():
        await _write(scan, whole, sinks, snapshot)
    return tuple(sinks)


async def _write(
    scan: CaptureScan,
    whole: list[DeviceCapture],
    sinks: Mapping[DeviceKey, StateSink],
    snapshot: SnapshotDirectory,
) -> None:
    """Write all of the snapshot. If it fails or is cancelled, all is removed again."""
    begun: list[StateSink] = []
    try:
        for sink in sinks.values():
            await sink.begin()
            begun.append(sink)
        await _write_main(scan, sinks)
        for device in whole:
            await _finish(scan, device, sinks[device.key])
        await snapshot.write_manifest(_result(scan, whole))
    except BaseException:
        with trio.move_on_after(_GRACE, shield=True):
            for sink in begun:
                with suppress(OSError):
                    await sink.abort()
        raise


async def _write_main(scan: CaptureScan, sinks: Mapping[DeviceKey, StateSink]) -> None:
    """Write what came over the main channel, in stream order."""
    path = scan.capture.main
    if not path.exists():
        return
    try:
        for event in read_main(path, MainDecoder(scan.main.page_size)):
            if isinstance(event, DeviceData) and event.data:
                key = (event.section.idstr, event.section.instance_id)
                if key in sinks:
                    await sinks[key].write(iter([memoryview(event.data)]))
    except PeerProtocolError:
        # Where the stream breaks off is known; the devices are whole without it.
        pass


async def _finish(scan: CaptureScan, device: DeviceCapture, sink: StateSink) -> None:
    """Write what came over multifd channels, and then the config."""
    if device.buffers:
        await sink.write(packet_data(scan.capture, device.buffers))
    if device.config is not None:
        await sink.load_config(device.config)
    await sink.finish()


def _result(scan: CaptureScan, whole: list[DeviceCapture]) -> MigrationResult:
    done = DeviceState.COMPLETED
    results = (device.result(scan.capture) for device in whole)
    return MigrationResult(
        status=SessionState.COMPLETED,
        errors=(),
        devices=tuple(attrs.evolve(result, status=done) for result in results),
        channels=tuple(channel.result for channel in scan.channels),
        switchover_seconds=None,
        seconds=0.0,
    )
