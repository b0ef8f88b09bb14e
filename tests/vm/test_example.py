"""Collaboration: the example that moves devices, between two unmodified QEMUs.

Whatever goes wrong under way, the guest runs on at the source, and can be migrated again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import pytest
import trio

from trio_vfio import NullSink, open_incoming

from . import mtty, qemu
from .checks import PAD_KIB, Mttys, check_received, make_devices
from .qemu import Qemu, Setup, idstr
from .receiving import receive

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "move_qemu_device.py"

SETUP: Final = Setup(transfer="", channels=None, return_path=False)
"""What else it takes, the example sees to."""

RUNS_ON: Final = "the guest at the source is running"


@attrs.define(eq=False)
class Example:
    """The example, while it runs and after."""

    process: trio.Process
    lines: list[str] = attrs.field(factory=list[str], init=False)
    _said: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set and replaced with each line."""

    @property
    def has_saved(self) -> bool:
        """Whether it had come to the way back."""
        return any(line.startswith("saved in ") for line in self.lines)

    async def wait_line(self, begin: str) -> None:
        """Wait until it says something that begins so, from now on."""
        seen = len(self.lines)
        while not any(line.startswith(begin) for line in self.lines[seen:]):
            await self._said.wait()

    async def read(self) -> None:
        """Take down what it says."""
        rest = b""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            self.lines += [line.decode() for line in lines]
            self._said.set()
            self._said = trio.Event()
        assert rest == b""


@asynccontextmanager
async def running(
    source: Path, destination: Path, snapshot: Path, downtime: float = 30
) -> AsyncGenerator[Example]:
    """Run the example, which has to end by itself, with these sockets."""
    arguments = [
        f"--downtime={downtime}",
        f"--source-qmp={source}",
        f"--destination-qmp={destination}",
        f"--snapshot={snapshot}",
    ]
    start = partial(
        trio.run_process,
        [sys.executable, "-u", "-W", "error", str(EXAMPLE), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            example = Example(await nursery.start(start))
            nursery.start_soon(example.read)
            yield example


@pytest.mark.qemu_11
@pytest.mark.parametrize("runs", [False, True], ids=["-S", "without -S"])
async def test_moved(runs: bool, mttys: Mttys, tmp_path: Path) -> None:
    devices = make_devices(mttys, 2, pad_kib=PAD_KIB)
    taking = mttys(count=2, pad_kib=PAD_KIB)
    snapshot = tmp_path / "snapshot"
    async with (
        qemu.source(devices, tmp_path, SETUP, runs=True) as source,
        qemu.destination(taking, tmp_path, SETUP, runs=runs) as destination,
    ):
        await source.wait_running()
        async with running(source.socket, destination.socket, snapshot) as example:
            pass
        assert example.process.returncode == 0
        assert await source.process.wait() == 0
        assert await destination.run_state() == "running"
        # Not a moment before it was told to.
        await destination.monitor.wait_event("RESUME")
        events = [
            event.get("data", {}).get("status", event["event"])
            for event in destination.monitor.events
            if event["event"] in ("MIGRATION", "RESUME")
        ]
        assert events[-2:] == ["completed", "RESUME"]
        assert await destination.quit() == 0
    assert f"saved in {snapshot}; the guest stands still" in example.lines
    assert example.lines[-1] == "the guest at the destination is running"
    for before, after in zip(devices, taking, strict=True):
        assert after.registers() == before.registers()
        assert after.saved() == before.saved()


async def test_a_guest_that_has_gone(mttys: Mttys, tmp_path: Path) -> None:
    """It may run elsewhere, and is left alone, as is the destination."""
    (device,), (taking,) = make_devices(mttys), mttys()
    async with (
        qemu.source([device], tmp_path, SETUP, runs=True) as source,
        qemu.destination([taking], tmp_path, SETUP) as destination,
    ):
        await source.wait_running()
        address = f"unix:{tmp_path / 'gone'}"
        async with open_incoming(address, {idstr(): NullSink()}) as incoming:
            await source.migrate(address)
            await incoming.wait_complete()
        assert await source.wait_status() == "completed"
        sockets = (source.socket, destination.socket)
        async with running(*sockets, tmp_path / "snapshot") as example:
            pass
        assert example.process.returncode == 1
        refused = f"failed: the guest at {source.socket} is postmigrate, not running"
        assert example.lines == [refused]
        assert await source.run_state() == "postmigrate"
        assert await destination.run_state() == "inmigrate"


async def hang_up_at(command: str, qmp: Path, here: trio.SocketStream) -> None:
    """Pass on what is said to *qmp* and back, but not what it answers to *command*."""
    asked = False
    async with await trio.open_unix_socket(qmp) as there, here:

        async def answer() -> None:
            async for data in there:
                await here.send_all(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            async for data in here:
                asked = f'"{command}"'.encode() in data
                if asked:
                    break
                await there.send_all(data)
            nursery.cancel_scope.cancel(reason="nothing more is to be passed on")
        if asked:
            await there.send_all(data)
            await there.receive_some()


async def test_nobody_knows_whether_it_runs(mttys: Mttys, tmp_path: Path) -> None:
    """Invariant: a guest that may run at the destination does not at the source."""
    (device,), (taking,) = make_devices(mttys), mttys()
    async with (
        qemu.source([device], tmp_path, SETUP, runs=True) as source,
        qemu.destination([taking], tmp_path, SETUP) as destination,
        trio.open_nursery() as nursery,
    ):
        await source.wait_running()
        between = tmp_path / "between"
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(between))
        listening.listen()
        nursery.start_soon(
            trio.serve_listeners,
            partial(hang_up_at, "cont", destination.socket),
            [trio.SocketListener(listening)],
        )
        async with running(source.socket, between, tmp_path / "snapshot") as example:
            pass
        assert example.process.returncode == 1
        assert example.lines[-1].startswith(f"failed: cont at {between}: ")
        assert await destination.run_state() == "running"
        assert await source.run_state() == "postmigrate"
        nursery.cancel_scope.cancel(reason="nobody talks any more")


@asynccontextmanager
async def surviving(
    mttys: Mttys,
    where: Path,
    *,
    ports: int = 1,
    snapshot: str = "snapshot",
    slow: str | None = None,
    downtime: float = 30,
) -> AsyncGenerator[tuple[Example, Qemu]]:
    """Run the example, which fails, perhaps because of what the block does.

    Args:
      ports: of the destination's device; the source's has one.
      snapshot: where in *where* it is to be.
      slow: parameter of mtty's, for what is to take its time.
      downtime: in seconds.

    Yields: the example and the destination.
    """
    devices, taking = make_devices(mttys), mttys(ports=ports)
    async with qemu.source(devices, where, SETUP, runs=True) as source:
        await source.wait_running()
        if slow is not None:
            mtty.parameter(slow, 1500)
        async with (
            qemu.destination(taking, where, SETUP) as destination,
            running(
                source.socket, destination.socket, where / snapshot, downtime
            ) as example,
        ):
            yield example, destination
        mtty.clear_parameters()
        ended = (example.process.returncode, example.lines[-1])
        assert ended == (1, RUNS_ON), example.lines
        assert await source.run_state() == "running"
        assert await source.wait_status() in ("failed", "cancelled", "completed")
        await source.wait_device_state("running")
        again = where / "again"
        again.mkdir()
        result = await receive(source, again)
    check_received(result, devices)


THERE: Final = "read_msecs"
BACK: Final = "write_msecs"


async def test_device_of_another_kind(mttys: Mttys, tmp_path: Path) -> None:
    """The destination ends, after it has said that it has all devices (W1)."""
    # Its device takes its time to refuse: else it may be gone before all was sent.
    async with surviving(mttys, tmp_path, ports=2, slow=BACK) as (example, destination):
        assert await destination.process.wait() == 1
    failed = f"failed: query-migrate at {destination.socket}: "
    assert example.lines[-2].startswith(failed)


async def test_no_room_for_a_snapshot(mttys: Mttys, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with surviving(mttys, tmp_path, snapshot="file/snapshot") as (example, _):
        pass
    failed = f"failed: {idstr()}: begin: ENOTDIR: Not a directory: "
    assert example.lines[-2].startswith(failed)


@pytest.mark.parametrize("slow", [THERE, BACK], ids=["there", "back"])
async def test_deadline(slow: str, mttys: Mttys, tmp_path: Path) -> None:
    async with surviving(mttys, tmp_path, slow=slow, downtime=1) as (example, _):
        pass
    assert example.lines[-2].startswith("failed: switchover deadline of 1 s passed: ")
    assert example.has_saved == (slow == BACK)


@pytest.mark.parametrize(
    ("slow", "state", "number"),
    [
        (THERE, "active", signal.SIGINT),
        (THERE, "device", signal.SIGINT),
        (BACK, "device", signal.SIGINT),
        (BACK, "device", signal.SIGTERM),
    ],
)
async def test_interrupted(
    slow: str, state: str, number: signal.Signals, mttys: Mttys, tmp_path: Path
) -> None:
    async with surviving(mttys, tmp_path, slow=slow) as (example, _):
        if slow == BACK:
            await example.wait_line("saved in ")
        await example.wait_line(f"{state}: ")
        example.process.send_signal(number)
    assert example.has_saved == (slow == BACK)
    assert not any(line.startswith("failed") for line in example.lines)


async def test_destination_that_is_killed(mttys: Mttys, tmp_path: Path) -> None:
    async with surviving(mttys, tmp_path, slow=BACK) as (example, destination):
        await example.wait_line("saved in ")
        await example.wait_line("device: 60 bytes (100 %)")
        destination.process.kill()
    assert example.has_saved
