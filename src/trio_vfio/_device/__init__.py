"""The devices: the only place with file descriptors and threads."""

from __future__ import annotations

from ._fd import FdDevice as FdDevice
from ._fd_source import FdSource as FdSource
from ._file import FileDevice as FileDevice
from ._file_source import FileSource as FileSource
from ._kernel import (
    KernelDevice as KernelDevice,
    run_devices as run_devices,
)
from ._kernel_devices import kernel_devices as kernel_devices
from ._kernel_source import KernelSource as KernelSource
from ._null import NullDevice as NullDevice
from ._null_source import NullSource as NullSource
from ._snapshot import SnapshotDirectory as SnapshotDirectory
from ._vfio._locate import sysfs_path as sysfs_path
from ._vfio._open import Through as Through
from ._vfio._probe import KernelDeviceInfo as KernelDeviceInfo
