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
    FdSink as FdSink,
    FdSource as FdSource,
    FileSink as FileSink,
    FileSource as FileSource,
    KernelDeviceInfo as KernelDeviceInfo,
    NullSink as NullSink,
    NullSource as NullSource,
    SnapshotDirectory as SnapshotDirectory,
    SupportsRun as SupportsRun,
    VfioInterface as VfioInterface,
    VfioSink as VfioSink,
    VfioSource as VfioSource,
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
from ._public import set_public_module as _set_public_module
from ._receive._incoming import (
    Incoming as Incoming,
    open_incoming as open_incoming,
)
from ._result import (
    CaptureStatus as CaptureStatus,
    ChannelResult as ChannelResult,
    DeviceResult as DeviceResult,
    DeviceState as DeviceState,
    MigrationResult as MigrationResult,
    SessionState as SessionState,
    Transfer as Transfer,
)
from ._send._outgoing import (
    Outgoing as Outgoing,
    open_outgoing as open_outgoing,
)
from ._trace import TraceEvent as TraceEvent
from ._types import (
    AcceptFrom as AcceptFrom,
    BeforeShut as BeforeShut,
    BeforeSwitchover as BeforeSwitchover,
    Connect as Connect,
    DeviceName as DeviceName,
    Sinks as Sinks,
    Sources as Sources,
)
from ._wire._config_blob import ConfigBlob as ConfigBlob

_set_public_module(globals())
