"""Pure tests of finding devices, in trees that are laid out as sysfs is."""

from __future__ import annotations

import errno
from pathlib import Path

import attrs
import pytest

from trio_vfio._device._vfio._locate import locate, vfio_devices
from trio_vfio._device._vfio._open import default_way, not_viable

PCI = "0000:01:00.1"
MDEV = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


@attrs.frozen
class Host:
    root: Path

    def device(
        self,
        bus: str,
        name: str,
        *,
        driver: str | None = None,
        group: int | None = None,
        vfio: int | None = None,
        cdev: bool = True,
    ) -> Path:
        path = self.root / "sys/devices/pci0000:00" / name
        path.mkdir(parents=True)
        self.link(self.root / f"sys/bus/{bus}/devices/{name}", path)
        if driver is not None:
            drivers = self.root / f"sys/bus/{bus}/drivers/{driver}"
            drivers.mkdir(parents=True, exist_ok=True)
            self.link(path / "driver", drivers)
        if group is not None:
            home = self.root / f"sys/kernel/iommu_groups/{group}"
            self.link(home / "devices" / name, path)
            self.link(path / "iommu_group", home)
        if vfio is not None:
            own = path / f"vfio-dev/vfio{vfio}"
            own.mkdir(parents=True)
            self.link(own / "device", path)
            self.link(self.root / f"sys/class/vfio-dev/vfio{vfio}", own)
            if cdev:
                self.file(f"dev/vfio/devices/vfio{vfio}")
        return path

    def file(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def link(self, link: Path, to: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(to)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    "where", [PCI, "01:00.1", "/dev/vfio/devices/vfio3", PCI.upper()]
)
def test_a_pci_device(host: Host, where: str) -> None:
    path = host.device("pci", PCI, driver="mlx5_vfio_pci", group=12, vfio=3)
    host.file("dev/vfio/12")
    found = locate(where, host.root)
    assert found.name == PCI
    assert found.sysfs == path.resolve()
    assert found.driver == "mlx5_vfio_pci"
    assert found.group == "12"
    assert found.group_file == host.root / "dev/vfio/12"
    assert found.cdev_file == host.root / "dev/vfio/devices/vfio3"
    assert found.has_vfio_driver


@pytest.mark.parametrize("where", [MDEV, MDEV.upper(), "/dev/vfio/devices/vfio0"])
def test_a_mediated_device(host: Host, where: str) -> None:
    host.device("mdev", MDEV, driver="vfio_mtty", group=0, vfio=0)
    assert locate(where, host.root).name == MDEV


def test_a_device_without_an_iommu(host: Host) -> None:
    host.device("pci", PCI, driver="vfio-pci", group=7)
    host.file("dev/vfio/noiommu-7")
    assert locate(PCI, host.root).group_file == host.root / "dev/vfio/noiommu-7"


def test_an_unbound_device(host: Host) -> None:
    host.device("pci", PCI)
    found = locate(PCI, host.root)
    assert (found.driver, found.group, found.group_file, found.cdev_file) == (None,) * 4
    assert not found.has_vfio_driver


@pytest.mark.parametrize("where", [PCI, MDEV, "/dev/vfio/devices/vfio3"])
def test_no_such_device(host: Host, where: str) -> None:
    with pytest.raises(OSError, match="no such device") as caught:
        locate(where, host.root)
    assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, where)


@pytest.mark.parametrize(
    "where",
    [
        "",
        "eth0",
        "0000:01:00",
        "01:00.8",
        "/dev/vfio/12",
        "/srv/vfio3",
        "../../etc/passwd",
    ],
)
def test_what_names_no_device(host: Host, where: str) -> None:
    with pytest.raises(ValueError, match="is no PCI address"):
        locate(where, host.root)


def test_cdev_is_the_first_choice_where_there_is_iommufd(host: Host) -> None:
    host.device("pci", PCI, driver="vfio-pci", group=7, vfio=0)
    host.file("dev/vfio/7")
    found = locate(PCI, host.root)
    assert default_way(found) == "group"
    host.file("dev/iommu")
    assert default_way(found) == "cdev"


def test_no_permission_for_cdev(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have been given the group, and nothing else."""
    host.device("pci", PCI, driver="vfio-pci", group=7, vfio=0)
    iommufd = host.file("dev/iommu")
    found = locate(PCI, host.root)
    assert default_way(found) == "cdev"
    # Root, who may run this, can read and write everything.
    monkeypatch.setattr("os.access", lambda path, _: path != iommufd)
    # Better an error that says so than none of the two.
    assert default_way(found) == "cdev"
    host.file("dev/vfio/7")
    assert default_way(found) == "group"


def test_no_cdev_in_this_kernel(host: Host) -> None:
    host.device("pci", PCI, driver="vfio-pci", group=7, vfio=0, cdev=False)
    host.file("dev/iommu")
    assert default_way(locate(PCI, host.root)) == "group"


def test_a_group_that_is_not_viable(host: Host) -> None:
    host.device("pci", PCI, driver="vfio-pci", group=7, vfio=0)
    host.device("pci", "0000:01:00.0", driver="mlx5_core", group=7)
    host.device("pci", "0000:01:00.2", driver="vfio-pci", group=7, vfio=1)
    host.device("pci", "0000:01:00.3", group=7)
    found = locate(PCI, host.root)
    others = [other.name for other in found.others_in_group()]
    assert others == ["0000:01:00.0", "0000:01:00.2", "0000:01:00.3"]
    assert not_viable(found).endswith("or unbind them: 0000:01:00.0 (mlx5_core)")


def test_all_devices_of_a_host(host: Host) -> None:
    host.device("pci", PCI, driver="mlx5_vfio_pci", group=12, vfio=3)
    host.device("pci", "0000:01:00.0", driver="mlx5_core", group=11)
    host.device("pci", "0000:02:00.0", driver="vfio-pci", group=13)
    host.device("mdev", MDEV, driver="vfio_mtty", group=0, vfio=0)
    host.device("cdx", "cdx-00:01", driver="vfio-cdx", group=1, vfio=1)
    found = [device.name for device in vfio_devices(host.root)]
    assert found == [PCI, "0000:02:00.0", MDEV, "cdx-00:01"]


def test_a_host_without_vfio(host: Host) -> None:
    assert vfio_devices(host.root) == []
