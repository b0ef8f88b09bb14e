"""The devices: the only place with file descriptors and threads."""

from __future__ import annotations

from ._fd import FdDevice as FdDevice
from ._file import FileDevice as FileDevice
from ._null import NullDevice as NullDevice
from ._snapshot import SnapshotDirectory as SnapshotDirectory
