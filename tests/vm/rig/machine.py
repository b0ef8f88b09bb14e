"""The VM: QEMU on this machine, with one job inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .host import RigError, say, tail

_INIT: Final = Path(__file__).parent / "guest" / "init"
_KERNEL_LINE: Final = (
    "root=/dev/vda rw init=/init console=ttyS0 loglevel=5"
    " oops=panic panic=-1 tsc=reliable intel_iommu=on"
    # Remapping interrupts, too, takes more of QEMU than KVM has everywhere.
    " iommufd.allow_unsafe_interrupts=1 vfio_iommu_type1.allow_unsafe_interrupts=1"
)
# What tests may bind to vfio-pci. None of it can migrate.
_PCI: Final = (
    *("-device", "intel-iommu,intremap=off"),
    # 00:1d.0, in an IOMMU group of its own
    *("-device", "pci-testdev,bus=pcie.0,addr=1d.0"),
    # 00:1e.1, in one with 00:1e.0, which a driver of the kernel's holds
    *("-device", "virtio-rng-pci,bus=pcie.0,addr=1e.0,multifunction=on"),
    *("-device", "pci-testdev,bus=pcie.0,addr=1e.1"),
    # 41:00.0, which no IOMMU is in charge of
    *("-device", "pxb-pcie,bus=pcie.0,id=free,bus_nr=0x40,bypass_iommu=on"),
    *("-device", "pcie-root-port,bus=free,id=free-port,chassis=1"),
    *("-device", "pci-testdev,bus=free-port"),
)


@dataclass(frozen=True)
class Machine:
    """A VM that can be started."""

    kernel: Path
    disk: Path
    site: Path
    project: Path
    versions: str
    accelerator: str = "tcg"
    memory: int = 2048
    """In MiB."""

    def __str__(self) -> str:
        return f"a VM by {self.accelerator.upper()} with {self.versions}"

    def run(self, job: str, console: Path, seconds: float) -> int:
        """Start the VM, run the shell script *job* in it and return its exit status.

        What *job* writes to stdout and stderr goes to stdout as it comes. What the
        kernel says goes to the file *console*.

        Raises:
          RigError: if the VM ends without a status, or runs for *seconds*.
        """
        with tempfile.TemporaryDirectory(prefix="trio-vfio-") as folder:
            rig = self._prepare(folder, job)
            reader, writer = os.pipe()
            output = (
                *("-add-fd", f"fd={writer},set=1"),
                *("-chardev", "file,id=output,path=/dev/fdset/1,append=on"),
                *("-device", "virtserialport,chardev=output,name=output"),
            )
            with (
                (rig / "errors").open("wb") as errors,
                subprocess.Popen(
                    [*self._command(rig, console), *output],
                    pass_fds=(writer,),
                    stdin=subprocess.DEVNULL,
                    stderr=errors,
                ) as qemu,
            ):
                os.close(writer)
                relay = threading.Thread(target=_relay, args=(reader,))
                relay.start()
                try:
                    qemu.wait(seconds)
                except subprocess.TimeoutExpired:
                    raise RigError(
                        f"the VM was stopped after {seconds:.0f} s. The end of its"
                        f" console:\n{tail(console)}"
                    ) from None
                finally:
                    qemu.kill()
                    relay.join()
            status = _status(rig, console)
        if "WARNING:" in console.read_text(errors="replace"):
            say(f"the VM's kernel has warned: see {console}")
        return status

    def shell(self, console: Path) -> None:
        """Start the VM with a shell on this terminal, until it ends."""
        with tempfile.TemporaryDirectory(prefix="trio-vfio-") as folder:
            rig = self._prepare(folder, None)
            terminal = (
                *("-chardev", "stdio,id=terminal,mux=on,signal=off"),
                *("-device", "virtconsole,chardev=terminal"),
            )
            subprocess.run([*self._command(rig, console), *terminal], check=False)

    def _prepare(self, folder: str, job: str | None) -> Path:
        rig = Path(folder)
        shutil.copy(_INIT, rig / "init")
        if job is not None:
            (rig / "job").write_text(job)
        return rig

    def _command(self, rig: Path, console: Path) -> Sequence[str | Path]:
        accelerator = {"tcg": "tcg,thread=multi"}.get(
            self.accelerator, self.accelerator
        )
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-machine", "q35", "-cpu", "max", "-smp", "2", "-m", f"{self.memory}"),
            *("-accel", accelerator, "-display", "none", "-serial", f"file:{console}"),
            *("-kernel", self.kernel, "-append", _KERNEL_LINE),
            # What the VM writes to its disk is gone when it ends.
            *_disk("root", self.disk, "snapshot=on"),
            *_disk("site", self.site, "readonly=on"),
            *_share("rig", rig, "multidevs=remap"),
            *_share("project", self.project, "readonly=on,multidevs=remap"),
            *("-device", "virtio-serial-pci,bus=pcie.0"),
            *_PCI,
        ]


def _disk(name: str, image: Path, options: str) -> Sequence[str]:
    return (
        *("-drive", f"file={image},format=raw,if=none,id={name},{options}"),
        *("-device", f"virtio-blk-pci,bus=pcie.0,drive={name}"),
    )


def _share(name: str, folder: Path, options: str) -> Sequence[str]:
    options = f"local,path={folder},security_model=none,{options}"
    return (
        *("-fsdev", f"{options},id={name}"),
        *("-device", f"virtio-9p-pci,bus=pcie.0,fsdev={name},mount_tag={name}"),
    )


def _relay(reader: int) -> None:
    """Copy to stdout what comes from *reader*, until its other end is closed."""
    with open(reader, "rb", buffering=0) as source:
        while data := source.read(65536):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _status(rig: Path, console: Path) -> int:
    try:
        return int((rig / "status").read_text())
    except (OSError, ValueError):
        raise RigError(
            f"the VM ended without a status. QEMU said:\n{tail(rig / 'errors')}\n"
            f"The end of the VM's console:\n{tail(console)}"
        ) from None
