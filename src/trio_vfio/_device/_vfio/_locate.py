"""Where a VFIO device is on this host: what sysfs says of it.

Spec of the kernel: Documentation/driver-api/vfio.rst,
Documentation/driver-api/vfio-mediated-device.rst.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

import attrs

_PCI_ADDRESS: Final = re.compile(
    r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", re.IGNORECASE
)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_CDEV: Final = re.compile(r"vfio[0-9]+")

_ROOT: Final = Path("/")
_PCI_DEVICES: Final = "sys/bus/pci/devices"
_MDEV_DEVICES: Final = "sys/bus/mdev/devices"
_CDEV_CLASS: Final = "sys/class/vfio-dev"
_DEVICE_FILES: Final = "dev/vfio"
_CDEV_FILES: Final = Path("/dev/vfio/devices")


@final
@attrs.frozen
class Located:
    """A device in sysfs."""

    sysfs: Path
    """Its directory there."""
    root: Path = _ROOT
    """Of the file system."""

    @property
    def name(self) -> str:
        """What the host calls it: a PCI address, or the UUID of a mediated device."""
        return self.sysfs.name

    @property
    def driver(self) -> str | None:
        """The driver that it is bound to, if there is one."""
        return _target(self.sysfs / "driver")

    @property
    def group(self) -> str | None:
        """The number of its IOMMU group, if it is in one."""
        return _target(self.sysfs / "iommu_group")

    @property
    def group_file(self) -> Path | None:
        """The file of its group, if there is one.

        That of a device without an IOMMU has a name that says so.
        """
        if self.group is None:
            return None
        files = self.root / _DEVICE_FILES
        plain, bare = files / self.group, files / f"noiommu-{self.group}"
        return next((file for file in (plain, bare) if file.exists()), None)

    @property
    def cdev_file(self) -> Path | None:
        """The file of its own, if there is one."""
        files = self.root / _DEVICE_FILES / "devices"
        found = (files / each.name for each in _entries(self.sysfs / "vfio-dev"))
        return next((file for file in found if file.exists()), None)

    def others_in_group(self) -> Iterator[Located]:
        """Find the other devices of its group, which are all in use or none is."""
        for each in _entries(self.sysfs / "iommu_group" / "devices"):
            if each.name != self.name:
                yield Located(each.resolve(), self.root)

    @property
    def has_vfio_driver(self) -> bool:
        """Whether the driver that it is bound to is one for VFIO."""
        # Drivers of single vendors' devices do not all have it in their name.
        return (self.sysfs / "vfio-dev").exists() or "vfio" in (self.driver or "")


def locate(where: str, root: Path = _ROOT) -> Located:
    """Find a device.

    Args:
      where: a PCI address (``0000:01:00.1``), the UUID of a mediated device, or
        the path ``/dev/vfio/devices/vfioN``.
      root: of the file system.

    Raises:
      ValueError: if *where* is none of these.
      OSError: (ENODEV) if there is no such device.
    """
    found = root / sysfs_path(where)
    if not found.exists():
        raise OSError(errno.ENODEV, "there is no such device", where)
    return Located(found.resolve(), root)


def sysfs_path(where: str) -> str:
    """Return where sysfs would have a device, if there is one; see `locate`.

    Raises:
      ValueError: if *where* names none.
    """
    if match := _PCI_ADDRESS.fullmatch(where):
        return f"{_PCI_DEVICES}/{match[1] or '0000'}:{match[2]}".lower()
    if _UUID.fullmatch(where):
        return f"{_MDEV_DEVICES}/{where.lower()}"
    path = Path(where)
    if path.parent == _CDEV_FILES and _CDEV.fullmatch(path.name):
        return f"{_CDEV_CLASS}/{path.name}/device"
    raise ValueError(
        f"{where!r} is no PCI address, no UUID of a mediated device and no"
        " /dev/vfio/devices/vfioN"
    )


def vfio_devices(root: Path = _ROOT) -> list[Located]:
    """Return the devices of this host that are bound to a driver for VFIO."""
    entries = [
        *_entries(root / _PCI_DEVICES),
        *_entries(root / _MDEV_DEVICES),
        # Of whatever other bus.
        *(each / "device" for each in _entries(root / _CDEV_CLASS)),
    ]
    found = {path: Located(path, root) for path in (e.resolve() for e in entries)}
    return [device for device in found.values() if device.has_vfio_driver]


def _target(link: Path) -> str | None:
    """Return the name of what *link* points to; None if it is not there."""
    try:
        return link.readlink().name
    except OSError:
        return None


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
