"""Opening a VFIO device: through its group and a container, or its cdev and iommufd.

All of it blocks, and is for worker threads.

Kernel: Documentation/driver-api/vfio.rst. QEMU: hw/vfio/container.c and
hw/vfio/iommufd.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal, TypeAlias, final

import attrs

from . import _uapi
from ._ioctl import DeviceFd, naming
from ._locate import Located, locate

VfioInterface: TypeAlias = Literal["cdev", "group"]

_CONTAINER: Final = Path("/dev/vfio/vfio")
_IOMMUFD: Final = Path("/dev/iommu")

_IOMMUS: Final = {
    _uapi.VFIO_TYPE1v2_IOMMU: "type1v2",
    _uapi.VFIO_TYPE1_IOMMU: "type1",
}
_NO_IOMMU: Final = {_uapi.VFIO_NOIOMMU_IOMMU: "no-IOMMU"}

# Drivers of devices that do no DMA, which may stay where they are.
_HARMLESS: Final = ("pcieport", "pci-stub")

_IN_USE: Final = "it is in use, here or by another process"
_OPEN_HINTS: Final = {
    errno.EBUSY: _IN_USE,
    errno.EACCES: "that takes its owner, or root",
    errno.ENOENT: "is the kernel's module for it loaded?",
}
_BIND_HINTS: Final = {errno.EBUSY: _IN_USE, errno.EINVAL: _IN_USE}


@final
@attrs.define(eq=False)
class OpenDevice:
    """A VFIO device that is open, and all that keeps it so."""

    device: DeviceFd
    _fds: ExitStack = attrs.field(alias="fds")

    def close(self) -> None:
        """Close what was opened. Many drivers reset their device then."""
        self._fds.close()


def open_device(
    where: str | int | Located, through: VfioInterface | None = None
) -> OpenDevice:
    """Open a device.

    Args:
      where: a device that was found, or what `locate` takes; or a descriptor of a
        device that is open already, which stays its owner's.
      through: which way. None: by cdev and iommufd if the host offers that, else by
        group and container.

    Raises:
      ValueError: if *where* cannot be a device.
      OSError: if it cannot be opened. Its text says which call failed, and what to
        do about it where that is known.
    """
    if isinstance(where, int):
        device = DeviceFd(where)
        # Whether it is one.
        device.is_pci()
        return OpenDevice(device, ExitStack())
    located = where if isinstance(where, Located) else locate(where)
    way = through or default_way(located)
    with ExitStack() as stack:
        opens = _open_cdev if way == "cdev" else _open_group
        device = opens(located, stack)
        return OpenDevice(device, stack.pop_all())


def default_way(located: Located) -> VfioInterface:
    """Return which way a device is opened if nobody chooses one.

    That is by cdev if we may use all that it takes, or if there is no group.
    """
    files = (located.root / _IOMMUFD.relative_to("/"), located.cdev_file)
    if all(file is not None and os.access(file, os.R_OK | os.W_OK) for file in files):
        return "cdev"
    return "cdev" if located.group_file is None and located.cdev_file else "group"


def _open_cdev(located: Located, stack: ExitStack) -> DeviceFd:
    file = located.cdev_file
    if file is None:
        raise _not_there(located, "no file in /dev/vfio/devices")
    iommufd = _open(_IOMMUFD, stack)
    fd = _open(file, stack)
    hints = _BIND_HINTS
    if in_the_way(located):
        hints = dict.fromkeys((errno.EPERM, *_BIND_HINTS), not_viable(located))
    with naming("VFIO_DEVICE_BIND_IOMMUFD", hints):
        bind = _uapi.BIND_IOMMUFD.encode(iommufd=iommufd)
        fcntl.ioctl(fd, _uapi.VFIO_DEVICE_BIND_IOMMUFD, bind)
    with naming("IOMMU_IOAS_ALLOC"):
        ioas = _uapi.IOAS_ALLOC.encode()
        fcntl.ioctl(iommufd, _uapi.IOMMU_IOAS_ALLOC, ioas)
    with naming("VFIO_DEVICE_ATTACH_IOMMUFD_PT"):
        pt_id = _uapi.IOAS_ALLOC.decode(ioas)["out_ioas_id"]
        attach = _uapi.ATTACH_IOMMUFD_PT.encode(pt_id=pt_id)
        fcntl.ioctl(fd, _uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach)
    return DeviceFd(fd)


def _open_group(located: Located, stack: ExitStack) -> DeviceFd:
    file = located.group_file
    if file is None:
        raise _not_there(located, "no file of its group in /dev/vfio")
    # Closed last, so that the group leaves it first.
    container = _open(_CONTAINER, stack)
    group = _open(file, stack)
    _check_viable(group, located)
    with naming("VFIO_GET_API_VERSION"):
        if (version := fcntl.ioctl(container, _uapi.VFIO_GET_API_VERSION)) != (
            _uapi.VFIO_API_VERSION
        ):
            raise OSError(errno.EPROTO, f"unknown version {version}")
    with naming("VFIO_GROUP_SET_CONTAINER"):
        argument = struct.pack("=i", container)
        fcntl.ioctl(group, _uapi.VFIO_GROUP_SET_CONTAINER, argument)
    _set_iommu(container, _NO_IOMMU if "noiommu" in file.name else _IOMMUS)
    with naming("VFIO_GROUP_GET_DEVICE_FD"):
        name = bytearray(located.name.encode() + b"\0")
        fd = fcntl.ioctl(group, _uapi.VFIO_GROUP_GET_DEVICE_FD, name)
    stack.callback(os.close, fd)
    return DeviceFd(fd)


def _check_viable(group: int, located: Located) -> None:
    raw = _uapi.GROUP_STATUS.encode()
    with naming("VFIO_GROUP_GET_STATUS"):
        fcntl.ioctl(group, _uapi.VFIO_GROUP_GET_STATUS, raw)
    if _uapi.GROUP_STATUS.decode(raw)["flags"] & _uapi.VFIO_GROUP_FLAGS_VIABLE:
        return
    raise OSError(errno.EPERM, not_viable(located))


def not_viable(located: Located) -> str:
    """Say why the group of a device cannot be used."""
    others = ", ".join(in_the_way(located)) or "one of them is not"
    return (
        f"group {located.group} is not viable: bind all of its devices to a driver"
        f" for VFIO, or unbind them: {others}"
    )


def in_the_way(located: Located) -> list[str]:
    """Name the devices because of which a device cannot be used, with their drivers."""
    return [
        f"{other.name} ({other.driver})"
        for other in located.others_in_group()
        if other.driver not in (None, *_HARMLESS) and not other.has_vfio_driver
    ]


def _set_iommu(container: int, kinds: Mapping[int, str]) -> None:
    for kind in kinds:
        with naming("VFIO_CHECK_EXTENSION"):
            if not fcntl.ioctl(container, _uapi.VFIO_CHECK_EXTENSION, kind):
                continue
        with naming(f"VFIO_SET_IOMMU {kinds[kind]}"):
            fcntl.ioctl(container, _uapi.VFIO_SET_IOMMU, kind)
        return
    names = ", ".join(kinds.values())
    raise OSError(errno.ENODEV, f"the host has no IOMMU of a known kind ({names})")


def _open(path: Path, stack: ExitStack) -> int:
    with naming(f"open of {path}", _OPEN_HINTS):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _not_there(located: Located, what: str) -> OSError:
    driver = located.driver or "no driver"
    text = f"{what}; the device is bound to {driver}: is that one for VFIO?"
    return OSError(errno.ENOENT, text, located.name)
