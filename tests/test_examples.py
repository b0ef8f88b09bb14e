"""Collaboration: every example runs as it is, and says what it is for."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_an_interrupted_migration_lets_the_guest_run_on() -> None:
    command = [sys.executable, "-u", str(EXAMPLES / "migrate_with_rollback.py")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert any(line == "the guest stands still\n" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        said = process.stdout.readlines()
    assert said[-1] == "the guest runs on, here\n"


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
