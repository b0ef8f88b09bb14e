"""Save, transfer and load the migration state of VFIO devices, with Trio.

Wire-compatible with QEMU's multifd device state transfer.
"""

# General layout, the way the bytes go:
#
# _link      connections: addresses, sockets, reading into memory
# _trace     what happens, in QEMU's words
# _wire      bytes to packets and back; no I/O (S.. in its comments: see there)
# _migration what a migration is in either direction: tasks, faults, an end
# _receive   packets to devices: one task per connection, one per device
# _send      devices to packets: one task per device, one per connection
# _device    the devices: the only place with file descriptors and threads
# _capture   recorded migrations
# _cli       the command
# testing    for tests of what is built on this

from __future__ import annotations

from ._deadlines import Deadlines as Deadlines
from ._device import (
    FdDevice as FdDevice,
    FdSource as FdSource,
    FileDevice as FileDevice,
    FileSource as FileSource,
    KernelDevice as KernelDevice,
    KernelDeviceInfo as KernelDeviceInfo,
    KernelSource as KernelSource,
    NullDevice as NullDevice,
    NullSource as NullSource,
    SnapshotDirectory as SnapshotDirectory,
    kernel_devices as kernel_devices,
    run_devices as run_devices,
)
from ._device._port import (
    Buffers as Buffers,
    PeerToPeer as PeerToPeer,
    Pending as Pending,
    ReadsAll as ReadsAll,
    StateSink as StateSink,
    StateSource as StateSource,
)
from ._errors import (
    ConnectionLost as ConnectionLost,
    DeadlineExceeded as DeadlineExceeded,
    DestinationFailed as DestinationFailed,
    DeviceError as DeviceError,
    MigrationFailed as MigrationFailed,
    PeerProtocolError as PeerProtocolError,
    TrioVfioError as TrioVfioError,
)
from ._migration._progress import DeviceProgress as DeviceProgress
from ._receive._incoming import (
    Incoming as Incoming,
    open_incoming as open_incoming,
)
from ._result import (
    ChannelResult as ChannelResult,
    DeviceResult as DeviceResult,
    DeviceState as DeviceState,
    MigrationResult as MigrationResult,
    SessionState as SessionState,
)
from ._send._outgoing import (
    Outgoing as Outgoing,
    open_outgoing as open_outgoing,
)
from ._trace import TraceEvent as TraceEvent
from ._wire._config_blob import ConfigBlob as ConfigBlob
