"""Devices of the kernel, as far as a host without any can show them."""

from __future__ import annotations

import errno
import os

import pytest

from trio_vfio import KernelDevice, KernelSource, run_devices

DEVICES = (KernelDevice, KernelSource)
Either = type[KernelDevice] | type[KernelSource]


@pytest.mark.parametrize("kind", DEVICES)
async def test_no_such_device(kind: Either) -> None:
    with pytest.raises(OSError, match="there is no such device") as caught:
        await kind("ffff:ff:1f.7").begin()
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("kind", DEVICES)
async def test_no_name_of_a_device(kind: Either) -> None:
    with pytest.raises(ValueError, match="'eth0' is no PCI address"):
        await kind("eth0").begin()


@pytest.mark.parametrize("kind", DEVICES)
async def test_a_descriptor_of_something_else(kind: Either) -> None:
    fd = os.open(os.devnull, os.O_RDWR)
    try:
        with pytest.raises(OSError, match="^.Errno 25. VFIO_DEVICE_GET_INFO: "):
            await kind(fd).begin()
        # It is not ours to close.
        os.fstat(fd)
    finally:
        os.close(fd)


async def test_a_device_that_is_not_open() -> None:
    device = KernelDevice("0000:01:00.1")
    assert device.precopy is None
    assert device.config is None
    with pytest.raises(OSError, match="not open"):
        device.fileno()
    with pytest.raises(OSError, match="not open"):
        await device.run()
    with pytest.RaisesGroup(OSError):
        await run_devices([device])
    await device.aclose()
    await device.abort()
