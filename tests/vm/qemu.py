"""A real QEMU with mtty devices, as the source or the destination of a migration.

It is driven by QMP (`.qmp`). Every wait is for what it reports itself, and a block
that runs it has one deadline for all of them. However the block ends, its QEMU is
killed: one that waits for a migration which does not come takes no notice of SIGTERM.
"""

from __future__ import annotations

import functools
import re
import socket
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, final

import attrs
import trio

from .credentials import HOSTNAME
from .mtty import Mtty
from .qmp import Monitor, open_monitor

PROGRAM: Final = "qemu-system-x86_64"

TRACED: Final = (
    "savevm_send_*",
    "source_return_path_thread_*",
    "multifd_send_thread_start",
    "vfio_save_complete_precopy_thread_start",
)
"""What sources say of what they do."""

FIRST_MULTIFD_MACHINE: Final = "pc-q35-10.0"
"""The first whose devices may send their state over multifd channels."""

_DEADLINE: Final = 120
"""Seconds for a block; as a rule it takes two, but on a busy machine many more."""
_FIRST_SLOT: Final = 4


@final
@attrs.frozen(kw_only=True)
class Setup:
    """How a machine is set up for a migration; most of it must be so at both ends."""

    machine: str = "q35"
    """As ``-machine`` has it; ``q35`` is this QEMU's newest."""
    channels: int | None = 2
    """How many multifd channels; None: no multifd."""
    transfer: str = "on"
    """Whether device state goes over them: on, off or auto; empty: as QEMU has it."""
    return_path: bool = True
    switchover_ack: bool = False
    iommufd: bool = False
    """How QEMU opens the devices: by iommufd, or by group and container."""
    tls: Path | None = None
    """A directory with x509 credentials."""
    firmware: bytes | None = None
    """What the guest runs; None: a BIOS that finds nothing to boot from."""
    trace: Sequence[str] = TRACED
    """Patterns of trace events."""

    @property
    def capabilities(self) -> dict[str, bool]:
        """Those of the migration."""
        return {
            "events": True,
            "multifd": self.channels is not None,
            "return-path": self.return_path,
            "switchover-ack": self.switchover_ack,
        }


def idstr(number: int = 0) -> str:
    """Return what the stream calls the device with that number."""
    return f"0000:00:{_FIRST_SLOT + number:02x}.0/vfio"


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file which another process may still write.

    A line that crosses a page can be seen in part, even if one call writes it.
    """
    whole, _, _ = path.read_text().rpartition("\n")
    return whole.splitlines()


@final
@attrs.define(eq=False)
class Qemu:
    """A QEMU, while its block runs and after."""

    devices: Sequence[Mtty]
    process: trio.Process
    monitor: Monitor
    directory: Path
    """Where its files are."""
    name: str

    @property
    def socket(self) -> Path:
        """Where somebody else can talk to it, too."""
        return self._file("qmp")

    async def migrate(self, address: str) -> None:
        """Begin to migrate to *address*. Returns at once."""
        await self.monitor.execute("migrate", uri=address)

    async def throttle(self, rate: int) -> None:
        """Let migrations send no more than *rate* bytes of RAM per second."""
        await self.monitor.execute("migrate-set-parameters", max_bandwidth=rate)

    async def listen(self) -> str:
        """Wait for a migration at the address that is returned."""
        address = f"unix:{self.directory / self.name}.migration"
        await self.monitor.execute("migrate-incoming", uri=address)
        return address

    async def query_migrate(self) -> dict[str, Any]:
        """Return what it says of the migration."""
        return dict(await self.monitor.execute("query-migrate"))

    async def status(self) -> str:
        """Return the status of the migration; ``none`` if there was none."""
        return str((await self.query_migrate()).get("status", "none"))

    async def wait_status(self, *wanted: str) -> str:
        """Wait until the status is one of *wanted*, and return it.

        Ends with any status that is a last one.
        """
        while True:
            # Every change of the status is reported, after it can be asked for.
            before = len(self.monitor.events)
            status = await self.status()
            if status in (*wanted, "completed", "failed", "cancelled"):
                return status
            await self.monitor.wait_event("MIGRATION", after=before)

    async def run_state(self) -> str:
        """Return whether the guest runs, or why not."""
        return str((await self.monitor.execute("query-status"))["status"])

    async def wait_running(self) -> None:
        """Wait until the guest runs."""
        while True:
            before = len(self.monitor.events)
            if await self.run_state() == "running":
                return
            await self.monitor.wait_event("RESUME", after=before)

    async def wait_device_state(self, wanted: str, number: int = 0) -> None:
        """Wait until QEMU has put a device into that state, as ``running``."""
        while self.device_states(number)[-1:] != [wanted]:
            await self.monitor.wait_event(
                "VFIO_MIGRATION", after=len(self.monitor.events)
            )

    async def cont(self) -> None:
        """Let the guest run."""
        await self.monitor.execute("cont")

    async def quit(self) -> int:
        """End it as a user would, and return its exit status. The devices are free."""
        await self.monitor.execute("quit")
        return await self.process.wait()

    def device_states(self, number: int = 0) -> list[str]:
        """Return the states in which QEMU has put a device, as ``stop-copy``."""
        return [
            event["data"]["device-state"]
            for event in self.monitor.events
            if event["event"] == "VFIO_MIGRATION"
            and event["data"]["device-id"] == f"vf{number}"
        ]

    @property
    def stderr(self) -> str:
        """What it has complained about."""
        return self._file("stderr").read_text()

    @property
    def trace(self) -> list[str]:
        """Its trace so far."""
        return whole_lines(self._file("trace"))

    def traced(self, event: str) -> list[str]:
        """Return the arguments of each *event* in its trace."""
        lines = (line.partition(" ") for line in self.trace)
        return [arguments.strip() for name, _, arguments in lines if name == event]

    def _file(self, suffix: str) -> Path:
        return self.directory / f"{self.name}.{suffix}"


@asynccontextmanager
async def source(
    devices: Sequence[Mtty],
    directory: Path,
    setup: Setup | None = None,
    *,
    runs: bool = False,
    deadline: float = _DEADLINE,
) -> AsyncGenerator[Qemu]:
    """Run a QEMU that can be migrated, until the block ends.

    Args:
      devices: what the guest has, from slot 4 on. Nobody else may have them open.
      directory: for its files.
      runs: whether the guest runs; else it has not begun to.
      deadline: seconds for the block.
    """
    options = () if runs else ("-S",)
    async with _qemu(
        "source", devices, directory, setup, options, deadline=deadline
    ) as qemu:
        yield qemu


@asynccontextmanager
async def destination(
    devices: Sequence[Mtty],
    directory: Path,
    setup: Setup | None = None,
    *,
    runs: bool = False,
) -> AsyncGenerator[Qemu]:
    """Run a QEMU that will `listen` for a migration, until the block ends.

    Args:
      devices: see `source`.
      directory: for its files.
      runs: whether the guest runs as soon as it is there; else only when told to.
    """
    options = () if runs else ("-S",)
    options = (*options, "-incoming", "defer")
    async with _qemu("destination", devices, directory, setup, options) as qemu:
        yield qemu


@functools.cache
def machines() -> tuple[str, ...]:
    """Return the machine types that this QEMU has, the newest first."""
    command = [PROGRAM, "-machine", "help"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"^pc-q35-(\d+)\.(\d+) ", said, re.MULTILINE)
    versions = sorted(
        ((int(major), int(minor)) for major, minor in found), reverse=True
    )
    return tuple(f"pc-q35-{major}.{minor}" for major, minor in versions)


@asynccontextmanager
async def _qemu(
    name: str,
    devices: Sequence[Mtty],
    directory: Path,
    setup: Setup | None,
    options: Sequence[str],
    *,
    deadline: float = _DEADLINE,
) -> AsyncGenerator[Qemu]:
    setup = setup or Setup()
    here, there = socket.socketpair()
    arguments = _arguments(name, devices, directory, setup, there.fileno())
    with there, (directory / f"{name}.stderr").open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            [PROGRAM, *arguments, *options],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=[there.fileno()],
        )
    try:
        with trio.fail_after(deadline):
            async with open_monitor(here) as monitor:
                try:
                    qemu = Qemu(devices, process, monitor, directory, name)
                    await _set_up(monitor, setup)
                    yield qemu
                except BaseException as exc:
                    exc.add_note(f"threads of QEMU, the {name}:\n{_threads(process)}")
                    raise
                finally:
                    process.kill()
    except BaseException as exc:
        said = (directory / f"{name}.stderr").read_text()
        exc.add_note(f"stderr of QEMU, the {name}:\n{said}")
        raise
    finally:
        process.kill()
        with trio.move_on_after(10, shield=True):
            await process.wait()


def _threads(process: trio.Process) -> str:
    """Say where each thread of QEMU's is, in case that is why something takes too long."""
    lines: list[str] = []
    # One that has ended has none.
    with suppress(OSError):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            words = (
                (thread / each).read_text() for each in ("comm", "wchan", "syscall")
            )
            lines.append(" ".join(word.strip() for word in words))
    return "\n".join(lines)


def _arguments(
    name: str, devices: Sequence[Mtty], directory: Path, setup: Setup, monitor: int
) -> list[str]:
    words = [
        *("-machine", f"{setup.machine},accel=tcg", "-cpu", "qemu64", "-m", "64"),
        *("-nodefaults", "-no-user-config", "-net", "none"),
        *("-display", "none", "-vga", "none"),
        *("-name", name, "-chardev", f"socket,id=monitor,fd={monitor}"),
        *("-qmp", "chardev:monitor", "-D", f"{directory / name}.trace"),
        *("-qmp", f"unix:{directory / name}.qmp,server=on,wait=off"),
    ]
    for pattern in setup.trace:
        words += ["-trace", pattern]
    if setup.iommufd:
        words += ["-object", "iommufd,id=iommufd0"]
    if setup.tls is not None:
        end = {"source": "client", "destination": "server"}[name]
        words += ["-object", f"tls-creds-x509,id=tls0,dir={setup.tls},endpoint={end}"]
    if setup.firmware is not None:
        bios = directory / f"{name}.bios"
        bios.write_bytes(setup.firmware)
        words += ["-bios", str(bios)]
    for number, device in enumerate(devices):
        words += ["-device", _device(number, device, setup)]
    return words


def _device(number: int, device: Mtty, setup: Setup) -> str:
    options = {
        "id": f"vf{number}",
        "addr": f"{_FIRST_SLOT + number:x}",
        "sysfsdev": str(device.sysfs),
        "enable-migration": "on",
        "migration-events": "on",
    }
    if setup.transfer:
        options["x-migration-multifd-transfer"] = setup.transfer
    if setup.iommufd:
        options["iommufd"] = "iommufd0"
    return ",".join(["vfio-pci", *(f"{key}={value}" for key, value in options.items())])


async def _set_up(monitor: Monitor, setup: Setup) -> None:
    # One that is not wanted need not be known.
    capabilities = [
        {"capability": name, "state": True}
        for name, wanted in setup.capabilities.items()
        if wanted
    ]
    await monitor.execute("migrate-set-capabilities", capabilities=capabilities)
    parameters: dict[str, object] = {
        # Nothing is to hold it up. What it has measured on a busy machine may never
        # let it switch over.
        "max_bandwidth": 1 << 40,
        "avail_switchover_bandwidth": 1 << 40,
    }
    if setup.channels is not None:
        parameters["multifd_channels"] = setup.channels
    if setup.tls is not None:
        # For unix sockets, which have no host's name of their own.
        parameters |= {"tls_creds": "tls0", "tls_hostname": HOSTNAME}
    await monitor.execute("migrate-set-parameters", **parameters)
