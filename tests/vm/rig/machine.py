"""The VM: QEMU on this machine, with one job inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .archive import make_archive
from .host import RigError, say, step, tail

_INIT: Final = Path(__file__).parent / "guest" / "init"
_KERNEL_LINE: Final = (
    "console=ttyS0 loglevel=5 oops=panic panic=-1 tsc=reliable intel_iommu=on"
    # It would count ticks, which on a busy host come late.
    " no_timer_check"
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


class BootError(RigError):
    """The VM has come to nothing before its job began."""


@dataclass(frozen=True)
class Machine:
    """A VM that can be started."""

    name: str
    """What `TRIO_VFIO_VM` is in it."""

    kernel: Path
    archives: tuple[Path, ...]
    """Of what is in its root directory."""

    versions: str
    accelerator: str = "tcg"
    memory: int = 2048
    """In MiB."""

    boot_seconds: float = 120.0
    """How long nothing of it may be heard."""

    def __str__(self) -> str:
        return f"a VM by {self.accelerator.upper()} with {self.versions}"

    def run(self, job: str, seconds: float, *, boots: int = 2) -> int:
        """Start the VM, run the shell script *job* in it and return its exit status.

        What *job* writes to stdout and stderr goes to stdout as it comes.

        Args:
          job: the script.
          seconds: how long it may run.
          boots: how often the VM is started if *job* does not begin.

        Raises:
          BootError: if it never began.
          RigError: if the VM then ends without a status, or runs for *seconds*.
        """
        try:
            return self._run(job, seconds)
        except BootError as exc:
            if boots == 1:
                raise
            say(f"{self.name}: did not boot, and does so once more: {exc}")
        return self.run(job, seconds, boots=boots - 1)

    def _run(self, job: str, seconds: float) -> int:
        with tempfile.TemporaryDirectory(prefix="trio-vfio-") as folder:
            rig = self._prepare(folder, job)
            reader, writer = os.pipe()
            ports = (
                *("-add-fd", f"fd={writer},set=1"),
                *_port("output", "path=/dev/fdset/1,append=on"),
                *_port("status", f"path={rig / 'status'}"),
            )
            with (
                (rig / "errors").open("wb") as errors,
                subprocess.Popen(
                    [*self._command(rig), *ports],
                    pass_fds=(writer,),
                    stdin=subprocess.DEVNULL,
                    stderr=errors,
                ) as qemu,
            ):
                os.close(writer)
                relay = threading.Thread(target=_relay, args=(reader,))
                relay.start()
                try:
                    with step(f"{self.name} boot"):
                        self._wait_begun(qemu, rig)
                    with step(f"{self.name} tests"):
                        qemu.wait(seconds)
                except subprocess.TimeoutExpired:
                    raise RigError(
                        f"the VM was stopped after {seconds:.0f} s. {_last_words(rig)}"
                    ) from None
                finally:
                    qemu.kill()
                    relay.join()
            return _status(rig)

    def _wait_begun(self, qemu: subprocess.Popen[bytes], rig: Path) -> None:
        start = time.monotonic()
        while not _said(rig):
            ended = qemu.poll() is not None
            late = time.monotonic() - start > self.boot_seconds
            # It may have said so just before it ended.
            if (ended or late) and not _said(rig):
                what = "ended" if ended else "showed no life"
                raise BootError(f"the VM {what} before it began. {_last_words(rig)}")
            time.sleep(0.1)

    def shell(self) -> None:
        """Start the VM with a shell on this terminal, until it ends."""
        with tempfile.TemporaryDirectory(prefix="trio-vfio-") as folder:
            terminal = (
                *("-chardev", "stdio,id=terminal,mux=on,signal=off"),
                *("-device", "virtconsole,chardev=terminal"),
            )
            rig = self._prepare(folder, None)
            subprocess.run([*self._command(rig), *terminal], check=False)

    def _prepare(self, folder: str, job: str | None) -> Path:
        rig = Path(folder)
        added = rig / "added"
        (added / "rig").mkdir(parents=True)
        shutil.copy(_INIT, added / "init")
        if job is not None:
            (added / "rig/job").write_text(job)
        make_archive(rig / "added.archive", {"": added})
        with (rig / "initramfs").open("wb") as initramfs:
            for archive in (*self.archives, rig / "added.archive"):
                with archive.open("rb") as part:
                    shutil.copyfileobj(part, initramfs, 1 << 20)
        return rig

    def _command(self, rig: Path) -> Sequence[str | Path]:
        accelerator = {"tcg": "tcg,thread=multi"}.get(
            self.accelerator, self.accelerator
        )
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-machine", "q35", "-cpu", "max", "-smp", "2", "-m", f"{self.memory}"),
            *(
                "-accel",
                accelerator,
                "-display",
                "none",
                "-serial",
                f"file:{rig / 'console'}",
            ),
            # What the kernel does not know becomes the environment of PID 1.
            *("-kernel", self.kernel, "-initrd", rig / "initramfs"),
            *("-append", f"{_KERNEL_LINE} TRIO_VFIO_VM={self.name}"),
            *("-device", "virtio-serial-pci,bus=pcie.0"),
            *_PCI,
        ]


def _port(name: str, file: str) -> Sequence[str]:
    return (
        *("-chardev", f"file,id={name},{file}"),
        *("-device", f"virtserialport,chardev={name},name={name}"),
    )


def _relay(reader: int) -> None:
    """Copy to stdout what comes from *reader*, until its other end is closed."""
    with open(reader, "rb", buffering=0) as source:
        while data := source.read(65536):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _said(rig: Path) -> list[str]:
    """Return what the VM has said of its job: that it has begun, and its status."""
    status = rig / "status"
    return status.read_text().split() if status.exists() else []


def _status(rig: Path) -> int:
    try:
        _, status = _said(rig)
    except ValueError:
        raise RigError(f"the VM ended without a status. {_last_words(rig)}") from None
    if "WARNING:" in (rig / "console").read_text(errors="replace"):
        say(f"the VM's kernel has warned. {_last_words(rig)}")
    return int(status)


def _last_words(rig: Path) -> str:
    return (
        f"QEMU said:\n{tail(rig / 'errors')}\nIts kernel said:\n{tail(rig / 'console')}"
    )
