"""Collaboration: every example runs as it is, and says what it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("warm")

EXAMPLES = Path(__file__).parents[1] / "examples"

# What each says, among other things.
SAYS = {
    "embed.py": [
        "listening on tcp:127.0.0.1:",
        "config: b'registers'",
        "accepted: 5242880 bytes",
        "0000:00:04.0/vfio is loaded from 4 buffers",
        "sent: completed",
        "received: completed in ",
    ],
    "migrate_with_rollback.py": [
        "active: ",
        "the guest stands still",
        "failed: the destination says that the migration failed",
        "the guest runs on, here",
        "moved; the guest stood still for ",
    ],
    "mock_clock_test.py": ["18 virtual seconds have passed"],
    "own_device_test.py": ["2.1 hours of virtual time"],
    "snapshot_and_restore.py": [
        "saved 5000000 bytes",
        "manifest.json",
        "loaded 5000000 bytes",
        "the same",
        "config: b'registers'",
    ],
    "two_processes.py": [
        "destination: listening on unix:",
        "0000:00:04.0/vfio: 8 MiB, the same",
        "0000:00:05.0/vfio: 16 MiB, the same",
    ],
}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# tests/vm/test_example.py runs it, where there are devices and QEMU.
MOVE = "move_qemu_device.py"


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAYS, MOVE}


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str) -> None:
    ran = run(name)
    assert (ran.returncode, ran.stderr) == (0, "")
    at = 0
    for line in SAYS[name]:
        # One behind the other.
        assert line in ran.stdout[at:]
        at = ran.stdout.index(line, at) + len(line)


INTERRUPTED = """
import runpy, signal, sys
import trio_vfio

_, example, moment = sys.argv

def interrupt(where):
    if where.startswith(moment):
        signal.raise_signal(signal.SIGINT)

def say(text, *more):
    print(text, *more, flush=True)
    interrupt(text)

def result(self):
    interrupt("result")
    return original(self)

original, trio_vfio.Outgoing.result = trio_vfio.Outgoing.result, result
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_path(example, {"print": say}, "__main__")
"""
"""Runs an example, and interrupts it at a moment, exactly."""


@pytest.mark.parametrize(
    ("moment", "status"),
    [
        ("setup", 1),
        ("the guest stands still", 1),
        ("device", 1),
        ("failed", 1),
        ("result", 1),
        ("moved", 0),
    ],
)
def test_an_interrupted_migration_lets_the_guest_run_on(
    moment: str, status: int
) -> None:
    """Also if the signal comes while the example decides whether to resume it."""
    example = str(EXAMPLES / "migrate_with_rollback.py")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERRUPTED, example, moment],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (status, ""), ran.stdout
    said = ran.stdout.splitlines()
    if status == 0:
        assert said.pop().startswith("moved; the guest stood still for ")
        said.remove("the guest stands still")
    stood_still = said.count("the guest stands still")
    assert stood_still == said.count("the guest runs on, here")


def test_moving_takes_to_be_told_what() -> None:
    ran = run(MOVE)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"usage: {MOVE} ")


def test_moving_takes_a_guest(tmp_path: Path) -> None:
    nothing = str(tmp_path / "qmp")
    ran = run(
        MOVE,
        f"--source-qmp={nothing}",
        f"--destination-qmp={nothing}",
        f"--snapshot={tmp_path / 'snapshot'}",
    )
    assert (ran.returncode, ran.stderr) == (1, "")
    (failed,) = ran.stdout.splitlines()
    assert failed.startswith(f"failed: query-status at {nothing}: ")
    assert failed.endswith("No such file or directory")
    assert list(tmp_path.iterdir()) == []
