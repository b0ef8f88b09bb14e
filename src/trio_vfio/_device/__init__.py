"""The devices: the only place with file descriptors and threads."""

from __future__ import annotations

from ._fd import FdSink as FdSink
from ._fd_source import FdSource as FdSource
from ._file import FileSink as FileSink
from ._file_source import FileSource as FileSource
from ._kernel_devices import kernel_devices as kernel_devices
from ._null import NullSink as NullSink
from ._null_source import NullSource as NullSource
from ._snapshot import SnapshotDirectory as SnapshotDirectory
from ._snapshot_files import snapshot_files as snapshot_files
from ._vfio._locate import sysfs_path as sysfs_path
from ._vfio._open import VfioInterface as VfioInterface
from ._vfio._probe import KernelDeviceInfo as KernelDeviceInfo
from ._vfio_sink import (
    SupportsRun as SupportsRun,
    VfioSink as VfioSink,
    run_devices as run_devices,
)
from ._vfio_source import VfioSource as VfioSource
