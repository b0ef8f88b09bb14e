"""Snapshots for tests: two devices, how one is loaded, and what a session says then."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from trio_vfio import (
    DeviceResult,
    DeviceState,
    MigrationResult,
    SessionState,
    Transfer,
)
from trio_vfio._device import FileSink

A, B = "0000:00:04.0/vfio", "0000:00:05.0/vfio"


def views(*buffers: bytes) -> Iterator[memoryview]:
    return iter([memoryview(buffer) for buffer in buffers])


def result_of(
    *devices: tuple[str, bytes, bytes | None],
    status: DeviceState = DeviceState.COMPLETED,
) -> MigrationResult:
    """Return the result of a migration of devices with that data and config."""
    return MigrationResult(
        status=SessionState.DEVICE,
        errors=(),
        devices=tuple(
            DeviceResult(
                idstr=idstr,
                instance_id=0,
                status=status,
                transfer=Transfer.MULTIFD,
                errors=(),
                precopy_bytes=0,
                data_bytes=len(data),
                buffers=1,
                sha256=hashlib.sha256(data).hexdigest(),
                config_bytes=None if config is None else len(config),
                config_sha256=None
                if config is None
                else hashlib.sha256(config).hexdigest(),
                starved=0,
                seconds=1.0,
            )
            for idstr, data, config in devices
        ),
        channels=(),
        switchover_seconds=1.0,
        seconds=1.0,
    )


async def load(device: FileSink, data: bytes, config: bytes | None) -> None:
    await device.begin()
    await device.write(views(data))
    if config is not None:
        await device.load_config(config)
    await device.finish()
