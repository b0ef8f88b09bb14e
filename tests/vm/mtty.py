"""mtty devices, the kernel's sample of a migratable VFIO device, as tests see them.

Shares no code with `trio_vfio`, so that the two check each other. A device is opened
for one thing at a time and closed again, so that whoever is tested can have it in
between; its registers and its migration state outlive that.

Kernel: samples/vfio-mdev/mtty.c; ``<linux/vfio.h>`` for the ioctls.
"""

from __future__ import annotations

import fcntl
import os
import struct
import uuid as uuids
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, final

import attrs

_PARENT: Final = Path("/sys/class/mdev_bus/mtty/mdev_supported_types")
_DEVICES: Final = Path("/sys/bus/mdev/devices")
_PARAMETERS: Final = Path("/sys/module/mtty/parameters")

# _IO(';', 100 + n), without a size.
_GET_REGION_INFO: Final = 0x3B64 + 8
_RESET: Final = 0x3B64 + 11
_FEATURE: Final = 0x3B64 + 17
_BIND_IOMMUFD: Final = 0x3B64 + 18

_GET: Final = 1 << 16
_SET: Final = 1 << 17
_MIG_DEVICE_STATE: Final = 2

_REGION_INFO = struct.Struct("IIIIQQ")
_BIND = struct.Struct("IIiI")
# - argsz, flags: the number of a feature, and what to do with it
# - the device's state
# - data_fd
_STATE = struct.Struct("IIIi")

STATES: Final = (
    "ERROR",
    "STOP",
    "RUNNING",
    "STOP_COPY",
    "RESUMING",
    "RUNNING_P2P",
    "PRE_COPY",
    "PRE_COPY_P2P",
)

IER: Final = 1
LCR: Final = 3
MCR: Final = 4
SCRATCH: Final = 7

REGISTERS: Final = (IER, LCR, MCR, SCRATCH)
"""Those of a UART that can be read without changing it, and hold what was written.

Reading 0 (RBR) takes a byte out of its FIFO, and 2 (IIR), 5 (LSR) and 6 (MSR) clear
what they report."""


@final
@attrs.frozen
class Mtty:
    """One device. Each call opens it, and closes it again."""

    uuid: str
    ports: int
    """How many UARTs it has: 1 or 2."""

    @property
    def sysfs(self) -> Path:
        """Its directory, which is what QEMU's ``sysfsdev`` wants."""
        return _DEVICES / self.uuid

    @property
    def group(self) -> str:
        """Its way in through a container: ``/dev/vfio/N``."""
        return f"/dev/vfio/{(self.sysfs / 'iommu_group').resolve().name}"

    @property
    def cdev(self) -> str:
        """Its way in through iommufd: ``/dev/vfio/devices/vfioN``."""
        (found,) = (self.sysfs / "vfio-dev").iterdir()
        return f"/dev/vfio/devices/{found.name}"

    def registers(self) -> bytes:
        """Return the `REGISTERS` of its first port, then those of its second."""
        with self.opened() as device:
            return b"".join(os.pread(device, 1, at) for at in self._offsets(device))

    def set_registers(self, values: bytes) -> None:
        """Write what `registers` would return."""
        with self.opened() as device:
            for value, at in zip(values, self._offsets(device), strict=True):
                os.pwrite(device, bytes([value]), at)

    def poke(self, offset: int, value: int, port: int = 0) -> None:
        """Write one register of a port."""
        with self.opened() as device:
            os.pwrite(device, bytes([value]), _region(device, port) + offset)

    def state(self) -> str:
        """Return its migration state, as ``RUNNING``."""
        with self.opened() as device:
            return state_of(device)

    def reset(self) -> None:
        """Reset it: it is RUNNING then, whatever it was; the registers stay."""
        with self.opened() as device:
            fcntl.ioctl(device, _RESET)

    def leave_in(self, state: str) -> None:
        """Take it to *state* and close it, as somebody who dies there would."""
        with self.opened() as device:
            data_fd = _set_state(device, state)
            if data_fd >= 0:
                os.close(data_fd)

    def saved(self) -> bytes:
        """Return its whole migration state; it goes back to RUNNING."""
        with self.opened() as device:
            data = os.fdopen(_set_state(device, "STOP_COPY"), "rb", buffering=0)
            with data:
                saved = data.readall()
            _set_state(device, "RUNNING")
            return saved

    def _offsets(self, device: int) -> Iterator[int]:
        for port in range(self.ports):
            begin = _region(device, port)
            yield from (begin + register for register in REGISTERS)

    @contextmanager
    def opened(self) -> Generator[int]:
        """Open it by its cdev. That needs no address space as long as it does no DMA.

        Returns: its descriptor, for `poke_open` and `state_of`.
        """
        iommufd = os.open("/dev/iommu", os.O_RDWR)
        try:
            device = os.open(self.cdev, os.O_RDWR)
            try:
                bind = _BIND.pack(_BIND.size, 0, iommufd, 0)
                fcntl.ioctl(device, _BIND_IOMMUFD, bytearray(bind))
                yield device
            finally:
                os.close(device)
        finally:
            os.close(iommufd)


def poke_open(device: int, offset: int, value: int) -> None:
    """Write one register of the first port of a device that is open."""
    os.pwrite(device, bytes([value]), _region(device, 0) + offset)


def state_of(device: int) -> str:
    """Return the migration state of a device that is open, as ``RUNNING``."""
    feature = bytearray(_STATE.pack(_STATE.size, _GET | _MIG_DEVICE_STATE, 0, 0))
    fcntl.ioctl(device, _FEATURE, feature)
    return STATES[_STATE.unpack(feature)[2]]


def close_leftovers() -> None:
    """Close what a test that failed has left open, for a removal waits for it."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if entry.readlink().name.startswith(("vfio", "anon_inode:[vfio")):
                os.close(int(entry.name))


def create(ports: int = 1, count: int = 1, pad_kib: int = 0) -> list[Mtty]:
    """Make devices.

    Args:
      ports: how many UARTs each is to have, 1 or 2.
      count: how many devices. All together can have 24 ports.
      pad_kib: how many KiB more each has to migrate, in which the kernel finds any
        error when they are loaded.
    """
    parameter("pad_kib", pad_kib)
    made = [Mtty(str(uuids.uuid4()), ports) for _ in range(count)]
    for each in made:
        (_PARENT / f"mtty-{ports}" / "create").write_text(each.uuid)
    parameter("pad_kib", 0)
    return made


def remove_all() -> None:
    """Remove all devices. Waits for whoever still has one open."""
    for each in _DEVICES.iterdir():
        (each / "remove").write_text("1")


def parameter(name: str, value: int) -> None:
    """Set a parameter of the module, for all devices; `pad_kib` for new ones."""
    (_PARAMETERS / name).write_text(str(value))


def clear_parameters() -> None:
    """Set all parameters to 0."""
    for each in _PARAMETERS.iterdir():
        # Not all can be read, and those that can are few.
        with suppress(PermissionError):
            each.write_text("0")


def _region(device: int, index: int) -> int:
    info = bytearray(_REGION_INFO.pack(_REGION_INFO.size, 0, index, 0, 0, 0))
    fcntl.ioctl(device, _GET_REGION_INFO, info)
    return int(_REGION_INFO.unpack(info)[-1])


def _set_state(device: int, state: str) -> int:
    """Take the device to *state*. Returns data_fd, or -1."""
    wanted = STATES.index(state)
    raw = _STATE.pack(_STATE.size, _SET | _MIG_DEVICE_STATE, wanted, -1)
    feature = bytearray(raw)
    fcntl.ioctl(device, _FEATURE, feature)
    return int(_STATE.unpack(feature)[3])
