"""PCI devices behind vfio-pci, which can be opened, but not migrated; and some neither.

The VM has them for that: one alone in its IOMMU group, one that shares it with a device
which a driver of the kernel's holds, and one that no IOMMU is in charge of.
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import pytest

from trio_vfio import KernelDeviceInfo, VfioSink, kernel_devices

ALONE: Final = "0000:00:1d.0"
SHARING: Final = "0000:00:1e.1"
HELD: Final = "0000:00:1e.0"
FREE: Final = "0000:41:00.0"

_PCI: Final = Path("/sys/bus/pci")
_NO_IOMMU: Final = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")


@contextmanager
def bound(name: str) -> Generator[None]:
    """Have the device *name* bound to vfio-pci while the block runs."""
    device = _PCI / "devices" / name
    (device / "driver_override").write_text("vfio-pci")
    (_PCI / "drivers_probe").write_text(name)
    assert (device / "driver").resolve().name == "vfio-pci"
    try:
        yield
    finally:
        (device / "driver" / "unbind").write_text(name)
        (device / "driver_override").write_text("\n")


async def info(name: str) -> KernelDeviceInfo:
    """Return what the list of devices says of *name*."""
    (found,) = [each for each in await kernel_devices() if each.name == name]
    return found


@pytest.mark.parametrize("way", ["cdev", "group"])
async def test_no_migration(way: Literal["cdev", "group"]) -> None:
    with bound(ALONE):
        with pytest.raises(OSError, match="its driver does not support mig") as caught:
            await VfioSink(ALONE, through=way).begin()
        assert caught.value.errno == errno.ENOTTY
        found = await info(ALONE)
        assert not found.usable
        assert found.driver == "vfio-pci"
        assert found.problem is not None
        assert "VFIO_DEVICE_FEATURE_MIGRATION" in found.problem
        assert found.advice is not None
        assert "vfio-pci cannot" in found.advice


@pytest.mark.parametrize("way", ["cdev", "group"])
async def test_a_group_that_is_not_viable(way: Literal["cdev", "group"]) -> None:
    with bound(SHARING):
        with pytest.raises(OSError) as caught:
            await VfioSink(SHARING, through=way).begin()
        if way == "group":
            assert caught.value.errno == errno.EPERM
            assert "is not viable: " in str(caught.value)
            assert f"{HELD} (virtio-pci)" in str(caught.value)
        found = await info(SHARING)
        assert found.problem is not None
        assert found.advice is not None
        assert f"{HELD} (virtio-pci)" in found.advice


async def test_without_an_iommu() -> None:
    """It is opened through the group that the kernel makes for such devices."""
    _NO_IOMMU.write_text("Y")
    try:
        with bound(FREE):
            found = await info(FREE)
            assert found.group is not None
            assert Path(found.group).name.startswith("noiommu-")
            # Opened it was; only then can it be seen that it cannot be migrated.
            assert found.problem is not None
            assert "VFIO_DEVICE_FEATURE_MIGRATION" in found.problem
            with pytest.raises(OSError, match="does not support migration"):
                await VfioSink(FREE, through="group").begin()
    finally:
        _NO_IOMMU.write_text("N")


async def test_a_device_that_is_not_bound() -> None:
    with pytest.raises(OSError, match="is that one for VFIO") as caught:
        await VfioSink(ALONE).begin()
    assert caught.value.errno == errno.ENOENT
    assert ALONE not in [each.name for each in await kernel_devices()]
