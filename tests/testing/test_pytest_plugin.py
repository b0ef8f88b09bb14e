"""The plugin in a pytest of its own, on the tests of somebody who uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_CONFTEST = 'pytest_plugins = ["trio_vfio.testing.pytest_plugin"]\n'
_SETTINGS = "[pytest]\ntrio_mode = {mode}\nfilterwarnings = error\n"
_IMPORTS = """
import errno
import pytest
import trio
from trio_vfio import DestinationFailed, DeviceError, MigrationFailed, open_incoming
from trio_vfio.testing import ScriptedSource, state_packets

A = "0000:00:04.0/vfio"
"""


def run(directory: Path, tests: str, *, mode: str = "true") -> str:
    """Run *tests* as a user's; return what pytest says, but for its first lines."""
    (directory / "conftest.py").write_text(_CONFTEST)
    (directory / "pytest.ini").write_text(_SETTINGS.format(mode=mode))
    (directory / "test_mine.py").write_text(_IMPORTS + tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        command,
        cwd=directory,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("mode", ["true", "false"])
def test_whole_migrations_in_virtual_time(tmp_path: Path, mode: str) -> None:
    output = run(
        tmp_path,
        mode=mode,
        tests="""
async def test_migrate(vfio_migrate, simulated_source, simulated_sink):
    source = simulated_source(size=10_000_000, seconds_per_mib=20)
    sink = simulated_sink()
    migrated = await vfio_migrate({A: source}, {A: sink}, outgoing={"channels": 3})
    assert sink.loaded == source.state
    assert len(migrated.incoming.channels) == 3
    assert migrated.incoming.status == migrated.outgoing.status == "completed"
    assert trio.current_time() > 150

async def test_link(vfio_link, simulated_sink):
    connect, there = vfio_link
    sink = simulated_sink(seconds_per_call=20)
    async with open_incoming(there, {A: sink}) as incoming:
        source = await ScriptedSource.connect(connect)
        await source.begin(A)
        await source.switch_over()
        await source.packets(1, *state_packets(A, [b"a", b"b"], b"config"))
        await source.end()
        await source.close()
        await incoming.wait_complete()
    assert sink.loaded == b"ab"
    assert trio.current_time() >= 4 * 20

async def test_with_a_clock_of_its_own(vfio_link, autojump_clock):
    assert trio.lowlevel.current_clock() is autojump_clock

def test_without_trio(vfio_link, simulated_source):
    assert len(simulated_source(size=7).state) == 7
""",
    )
    assert "4 passed" in output, output


def test_a_migration_that_fails(tmp_path: Path) -> None:
    """Each side says why, and no device is forgotten."""
    output = run(
        tmp_path,
        """
async def test_sink(vfio_migrate, simulated_source, simulated_sink):
    sink = simulated_sink(fails={"finish": errno.EINVAL})
    with pytest.RaisesGroup(
        pytest.RaisesGroup(DeviceError), pytest.RaisesGroup(DestinationFailed)
    ):
        await vfio_migrate({A: simulated_source(size=10)}, {A: sink})

async def test_begin(vfio_migrate, simulated_source, simulated_sink):
    source = simulated_source(fails={"begin": errno.EINVAL})
    with pytest.raises(ExceptionGroup) as failed:
        await vfio_migrate({A: source}, {A: simulated_sink()})
    assert failed.group_contains(DeviceError, match="begin")
""",
    )
    assert "2 passed" in output, output


def test_a_device_that_was_forgotten_fails_its_test(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
async def test_forgotten(simulated_sink, simulated_source):
    done = simulated_sink()
    await done.begin()
    await done.finish()
    never_used = simulated_sink()
    sink, source = simulated_sink(), simulated_source()
    await sink.begin()
    await source.begin()
    await source.stop()
    await source.abort()
""",
    )
    assert "1 passed, 1 error" in output, output
    expected = "in order of their making: SimulatedSink 2: last called was begin"
    assert expected in output
