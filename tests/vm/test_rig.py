"""Tests of the VM itself: its devices, and each thing that can be asked of mtty.

They know VFIO by the numbers of <linux/vfio.h> only. What other tests in this folder
find wrong is then not the driver's doing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = range(1, 8)

_MTTY: Final = Path("/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create")
_PARAMETERS: Final = Path("/sys/module/mtty/parameters")
_PCI: Final = Path("/sys/bus/pci")
_HEADER: Final = 24
_STATE: Final = 60
_SCRATCH: Final = 7  # a register, and its offset in BAR 0

_GROUP_STATUS: Final = 0x3B67
_RESET: Final = 0x3B6F
_FEATURE: Final = 0x3B75
_BIND_IOMMUFD: Final = 0x3B76
_ATTACH_PT: Final = 0x3B77
_IOAS_ALLOC: Final = 0x3B81
_GET, _SET = 1 << 16, 1 << 17
_MIG_DEVICE_STATE, _MIG_DATA_SIZE = 2, 9


class Device:
    """A VFIO device, opened through its cdev."""

    def __init__(self, sysfs: Path) -> None:
        (cdev,) = (sysfs / "vfio-dev").iterdir()
        with contextlib.ExitStack() as stack:
            self._iommufd = os.open("/dev/iommu", os.O_RDWR)
            stack.callback(os.close, self._iommufd)
            self._fd = os.open(f"/dev/vfio/devices/{cdev.name}", os.O_RDWR)
            stack.callback(os.close, self._fd)
            bind = struct.pack("IIiI", 16, 0, self._iommufd, 0)
            fcntl.ioctl(self._fd, _BIND_IOMMUFD, bind)
            space = bytearray(struct.pack("III", 12, 0, 0))
            fcntl.ioctl(self._iommufd, _IOAS_ALLOC, space)
            (number,) = struct.unpack_from("I", space, 8)
            fcntl.ioctl(self._fd, _ATTACH_PT, struct.pack("III", 12, 0, number))
            self.close = stack.pop_all().close

    def enter(self, state: int) -> int:
        """Go to *state* and return the data_fd that this gives, or -1."""
        return self._feature(_SET | _MIG_DEVICE_STATE, struct.pack("Ii", state, -1))[1]

    @property
    def state(self) -> int:
        return self._feature(_GET | _MIG_DEVICE_STATE, bytes(8))[0]

    @property
    def data_size(self) -> int:
        low, high = self._feature(_GET | _MIG_DATA_SIZE, bytes(8))
        return low | high << 32

    @property
    def scratch(self) -> int:
        return os.pread(self._fd, 1, _SCRATCH)[0]

    @scratch.setter
    def scratch(self, value: int) -> None:
        os.pwrite(self._fd, bytes([value]), _SCRATCH)

    def reset(self) -> None:
        fcntl.ioctl(self._fd, _RESET)

    def save(self) -> bytes:
        """Return the whole state by one read, and run again."""
        fd = self.enter(STOP_COPY)
        data = os.read(fd, 1 << 20)
        os.close(fd)
        self.enter(RUNNING)
        return data

    def load(self, data: bytes) -> None:
        """Take *data* as the state by one write, and run."""
        fd = self.enter(RESUMING)
        assert os.write(fd, data) == len(data)
        os.close(fd)
        self.enter(RUNNING)

    def _feature(self, flags: int, payload: bytes) -> tuple[int, int]:
        argument = bytearray(struct.pack("II", 8 + len(payload), flags) + payload)
        fcntl.ioctl(self._fd, _FEATURE, argument)
        first, second = struct.unpack_from("Ii", argument, 8)
        return first, second


@pytest.fixture
def make_mtty() -> Iterator[Callable[[], Device]]:
    """Makes devices of mtty's with one port."""
    with contextlib.ExitStack() as stack:

        def make() -> Device:
            name = str(uuid.uuid4())
            _MTTY.write_text(name)
            mdev = Path("/sys/bus/mdev/devices", name)
            stack.callback((mdev / "remove").write_text, "1")
            return stack.enter_context(contextlib.closing(Device(mdev)))

        yield make


@pytest.fixture
def mtty(make_mtty: Callable[[], Device]) -> Device:
    return make_mtty()


@pytest.fixture
def parameter() -> Iterator[Callable[[str, int], None]]:
    """Sets parameters of the driver. They are 0 again after the test."""
    with contextlib.ExitStack() as stack:

        def write(name: str, value: int) -> None:
            stack.callback((_PARAMETERS / name).write_text, "0")
            (_PARAMETERS / name).write_text(str(value))

        yield write


def fails(error: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda exc: exc.errno == error)


def test_no_parameter_is_set_at_first() -> None:
    values = {path.name: path.read_text().strip() for path in _PARAMETERS.iterdir()}
    assert values == dict.fromkeys(values, "0")
    assert set(values) == {
        *("pad_kib", "read_msecs", "write_msecs", "short_io", "eagain"),
        *("precopy_enomsg", "fail_state", "fail_errno", "fail_reset"),
    }


def test_without_parameters_the_driver_is_the_kernels(
    make_mtty: Callable[[], Device],
) -> None:
    source, destination = make_mtty(), make_mtty()
    source.scratch = 0x5A
    assert source.data_size == _STATE
    fd = source.enter(PRE_COPY)
    os.set_blocking(fd, False)
    header = os.read(fd, 100)
    assert len(header) == _HEADER
    assert os.read(fd, 100) == b""
    assert source.enter(STOP_COPY) == -1
    rest = os.read(fd, 100)
    assert os.read(fd, 100) == b""
    os.close(fd)
    assert len(header + rest) == _STATE
    destination.load(header + rest)
    assert destination.scratch == 0x5A
    destination.reset()
    assert destination.state == RUNNING


def test_pad_kib(
    make_mtty: Callable[[], Device], parameter: Callable[[str, int], None]
) -> None:
    before = make_mtty()
    parameter("pad_kib", 64)
    source, destination = make_mtty(), make_mtty()
    parameter("pad_kib", 1)
    source.scratch = 0x5A
    assert before.data_size == _STATE
    assert source.data_size == _STATE + 64 * 1024
    data = source.save()
    assert len(data) == source.data_size
    pad = data[_STATE:]
    assert len({pad[at : at + 1024] for at in range(0, len(pad), 1024)}) == 64
    destination.load(data)
    assert destination.scratch == 0x5A
    assert destination.save() == data
    source.scratch = 0x5B
    assert source.save()[_STATE:] != pad


@pytest.mark.parametrize("at", [_STATE, _STATE + 64 * 1024 - 1])
def test_a_pad_that_was_changed_is_refused(
    make_mtty: Callable[[], Device], parameter: Callable[[str, int], None], at: int
) -> None:
    parameter("pad_kib", 64)
    source, destination = make_mtty(), make_mtty()
    data = bytearray(source.save())
    data[at] ^= 1
    with fails(errno.EINVAL):
        destination.load(bytes(data))
    assert destination.state == RESUMING
    destination.reset()
    assert destination.state == RUNNING


def test_read_msecs(mtty: Device, parameter: Callable[[str, int], None]) -> None:
    fd = mtty.enter(STOP_COPY)
    parameter("read_msecs", 300)
    start = time.monotonic()
    assert len(os.read(fd, 100)) == _STATE
    assert time.monotonic() - start >= 0.3
    os.close(fd)


def test_write_msecs(mtty: Device, parameter: Callable[[str, int], None]) -> None:
    data = mtty.save()
    fd = mtty.enter(RESUMING)
    parameter("write_msecs", 300)
    start = time.monotonic()
    assert os.write(fd, data) == len(data)
    assert time.monotonic() - start >= 0.3
    os.close(fd)


def test_short_io(mtty: Device, parameter: Callable[[str, int], None]) -> None:
    parameter("short_io", 50)
    fd = mtty.enter(STOP_COPY)
    parts = [os.read(fd, 100) for _ in range(3)]
    os.close(fd)
    assert [len(part) for part in parts] == [50, 10, 0]
    fd = mtty.enter(RESUMING)
    data = b"".join(parts)
    assert os.write(fd, data) == 50
    assert os.write(fd, data[50:]) == 10
    os.close(fd)
    mtty.enter(RUNNING)


def test_eagain(mtty: Device, parameter: Callable[[str, int], None]) -> None:
    parameter("eagain", 1)
    parameter("short_io", 50)
    data = mtty.save()  # by calls that may block
    assert len(data) == 50
    fd = mtty.enter(STOP_COPY)
    os.set_blocking(fd, False)
    for size in (50, 10, 0):
        with fails(errno.EAGAIN):
            os.read(fd, 100)
        assert len(os.read(fd, 100)) == size
    os.close(fd)
    fd = mtty.enter(RESUMING)
    os.set_blocking(fd, False)
    with fails(errno.EAGAIN):
        os.write(fd, data)
    assert os.write(fd, data) == 50
    with fails(errno.EAGAIN):
        os.write(fd, bytes(10))
    assert os.write(fd, bytes(10)) == 10
    os.close(fd)
    mtty.enter(RUNNING)


@pytest.mark.parametrize("state", [PRE_COPY, PRE_COPY_P2P])
def test_precopy_enomsg(
    mtty: Device, parameter: Callable[[str, int], None], state: int
) -> None:
    parameter("precopy_enomsg", 1)
    fd = mtty.enter(state)
    assert len(os.read(fd, 100)) == _HEADER
    with fails(errno.ENOMSG):
        os.read(fd, 100)
    mtty.enter(STOP_COPY)
    assert len(os.read(fd, 100)) == _STATE - _HEADER
    assert os.read(fd, 100) == b""
    os.close(fd)


@pytest.mark.parametrize(
    ("refused", "target", "reached"),
    [
        (STOP_COPY, STOP_COPY, STOP),
        (RESUMING, RESUMING, STOP),
        (STOP, RESUMING, RUNNING_P2P),
        (RUNNING_P2P, PRE_COPY_P2P, RUNNING),
    ],
)
def test_a_walk_ends_before_fail_state(
    mtty: Device,
    parameter: Callable[[str, int], None],
    refused: int,
    target: int,
    reached: int,
) -> None:
    parameter("fail_state", refused)
    parameter("fail_errno", errno.ENOSPC)
    with fails(errno.ENOSPC):
        mtty.enter(target)
    assert mtty.state == reached
    parameter("fail_errno", 0)
    with fails(errno.EIO):
        mtty.enter(target)
    parameter("fail_state", 0)
    fd = mtty.enter(target)
    assert mtty.state == target
    os.close(fd)


def test_a_loaded_state_may_be_refused(
    mtty: Device, parameter: Callable[[str, int], None]
) -> None:
    data = mtty.save()
    fd = mtty.enter(RESUMING)
    os.write(fd, data)
    parameter("fail_state", STOP)
    with fails(errno.EIO):
        mtty.enter(RUNNING)
    assert mtty.state == RESUMING
    os.close(fd)
    mtty.reset()
    assert mtty.state == RUNNING


def test_fail_reset(mtty: Device, parameter: Callable[[str, int], None]) -> None:
    parameter("fail_reset", errno.EBUSY)
    fd = mtty.enter(STOP_COPY)
    with fails(errno.EBUSY):
        mtty.reset()
    assert mtty.state == STOP_COPY
    parameter("fail_reset", 0)
    mtty.reset()
    assert mtty.state == RUNNING
    os.close(fd)


@pytest.fixture
def bind() -> Iterator[Callable[[str], Path]]:
    """Binds a PCI device to vfio-pci, and returns its directory in sysfs."""
    with contextlib.ExitStack() as stack:

        def bind_to_vfio(address: str) -> Path:
            device = _PCI / "devices" / address
            override = device / "driver_override"
            override.write_text("vfio-pci")
            stack.callback(override.write_text, "\n")
            (_PCI / "drivers_probe").write_text(address)
            stack.callback((_PCI / "drivers/vfio-pci/unbind").write_text, address)
            return device

        yield bind_to_vfio


def is_viable(device: Path) -> bool:
    group = (device / "iommu_group").resolve().name
    fd = os.open(f"/dev/vfio/{group}", os.O_RDWR)
    status = bytearray(struct.pack("II", 8, 0))
    fcntl.ioctl(fd, _GROUP_STATUS, status)
    os.close(fd)
    return bool(status[4] & 1)


def test_a_group_is_not_viable_while_the_kernel_has_one_of_its_devices(
    bind: Callable[[str], Path],
) -> None:
    device = bind("0000:00:1e.1")
    assert not is_viable(device)
    with fails(errno.EPERM):
        Device(device)
    virtio = _PCI / "drivers/virtio-pci"
    (virtio / "unbind").write_text("0000:00:1e.0")
    assert is_viable(device)
    (virtio / "bind").write_text("0000:00:1e.0")


def test_a_device_without_migration(bind: Callable[[str], Path]) -> None:
    sysfs = bind("0000:00:1d.0")
    assert is_viable(sysfs)
    with contextlib.closing(Device(sysfs)) as device, fails(errno.ENOTTY):
        assert device.state


def test_a_device_without_an_iommu(bind: Callable[[str], Path]) -> None:
    allowed = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
    allowed.write_text("1")
    device = bind("0000:41:00.0")
    group = (device / "iommu_group").resolve().name
    assert Path(f"/dev/vfio/noiommu-{group}").exists()
    allowed.write_text("0")


@pytest.mark.qemu_11
def test_the_qemu_is_that_of_the_suite() -> None:
    said = subprocess.run(
        ["/usr/bin/qemu-system-x86_64", "-version"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    wanted = {"trixie": "version 10.0.", "sid": "version 11."}
    assert wanted[os.environ["TRIO_VFIO_VM"]] in said
