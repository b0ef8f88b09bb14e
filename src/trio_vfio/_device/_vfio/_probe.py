"""Which VFIO devices this host has, and why one cannot be migrated."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, final

import attrs

from ._host import migration_flags
from ._locate import Located
from ._open import in_the_way, not_viable, open_device
from ._states import MigrationFlags

_PROC: Final = Path("/proc")

_NO_MIGRATION: Final = (
    "bind it to the driver for its hardware that can do it, as mlx5_vfio_pci or"
    " hisi_acc_vfio_pci; vfio-pci cannot"
)


@final
@attrs.frozen
class KernelDeviceInfo:
    """A VFIO device of this host."""

    name: str
    """A PCI address, or the UUID of a mediated device."""
    driver: str | None
    """The driver that it is bound to."""
    group: str | None
    """The file of its group, as ``/dev/vfio/12``; None if there is none."""
    cdev: str | None
    """The file of its own, as ``/dev/vfio/devices/vfio0``; None if there is none."""
    migration: tuple[str, ...] | None = None
    """What it can do: ``STOP_COPY``, ``P2P``, ``PRE_COPY``; empty if it cannot be
    migrated, None if it could not be asked."""
    state: str | None = None
    """The migration state it is in, as ``RUNNING``."""
    stop_copy_bytes: int | None = None
    """How much state it estimates to have, if it was asked and knows."""
    problem: str | None = None
    """Why it cannot be migrated now; None if it can."""
    advice: str | None = None
    """What to do about that, where it is known."""

    @property
    def usable(self) -> bool:
        """Whether it can be migrated now."""
        return self.problem is None


def probe(located: Located) -> KernelDeviceInfo:
    """Open a device, ask it, and close it again. It blocks."""
    info = KernelDeviceInfo(
        name=located.name,
        driver=located.driver,
        group=_text(located.group_file),
        cdev=_text(located.cdev_file),
    )
    try:
        opened = open_device(located)
    except OSError as error:
        problem, advice = f"{error.strerror}", _advice(error, located)
        return attrs.evolve(info, problem=problem, advice=advice)
    try:
        flags = migration_flags(opened.device)
        return attrs.evolve(
            info,
            migration=tuple(f"{flag.name}" for flag in MigrationFlags if flag in flags),
            state=opened.device.state().name,
            stop_copy_bytes=opened.device.stop_copy_bytes(),
        )
    except OSError as error:
        problem = f"{error.strerror}"
        if error.errno != errno.ENOTTY:
            return attrs.evolve(info, problem=problem)
        return attrs.evolve(info, problem=problem, advice=_NO_MIGRATION, migration=())
    finally:
        opened.close()


def _advice(error: OSError, located: Located) -> str | None:
    """Say what to do about a device that could not be opened."""
    files = [file for file in (located.group_file, located.cdev_file) if file]
    match error.errno:
        case errno.EACCES:
            return "run as root, or let this user read and write that file"
        case errno.EPERM | errno.EBUSY | errno.EINVAL if in_the_way(located):
            return not_viable(located)
        case errno.EBUSY | errno.EINVAL:
            found = ", ".join(_holders(files))
            return f"end what uses it: {found or 'some process'}"
        case errno.ENOENT:
            return "load the kernel's module for it: modprobe vfio-pci or iommufd"
        case _:
            return None


def _holders(files: list[Path]) -> Iterator[str]:
    """Find the processes that have one of *files* open, as far as we may look."""
    wanted = set(map(str, files))
    for process in _PROC.glob("[0-9]*"):
        # What ended or was closed meanwhile, or is somebody else's, is passed over.
        with suppress(OSError):
            if any(_target(fd) in wanted for fd in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                yield f"{name} (process {process.name})"


def _target(fd: Path) -> str | None:
    try:
        return os.readlink(fd)
    except OSError:
        return None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
