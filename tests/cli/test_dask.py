"""Processes: `trio-vfio simulate` on a Dask cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cli.dask_cluster import scheduler, worker
from trio_vfio._cli._main import group
from trio_vfio._cli._plain import Settings

COMMAND = (sys.executable, "-m", "trio_vfio", "simulate")

# The command, with less patience than users have.
IMPATIENT = """
import sys
from trio_vfio.__main__ import main
from trio_vfio._cli import _simulate

assert _simulate.{name} > 5
_simulate.{name} = 0.2
sys.exit(main())
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of a scheduler without workers."""
    with scheduler() as address:
        yield address


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_missing_dask_scheduler_is_reported_in_one_line() -> None:
    command = (sys.executable, "-c", IMPATIENT.format(name="_SCHEDULER_SECONDS"))
    there = "tcp://127.0.0.1:1"
    ran = run(*command, "simulate", "--seeds", "0:9", "--dask", there)
    assert ran.returncode == 1
    assert f"no Dask scheduler at {there}" in ran.stderr.splitlines()[-1]


def test_dask_scheduler_without_workers_is_reported(address: str) -> None:
    command = (sys.executable, "-c", IMPATIENT.format(name="_WORKER_SECONDS"))
    ran = run(*command, "simulate", "--seeds", "0:9", "--dask", address)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        f"trio-vfio: error: the Dask scheduler at {address} has no workers"
    )


def test_dask_cluster_and_this_process_make_the_same_report(address: str) -> None:
    # Two chunks of seeds, one for each worker.
    words = ("--seeds=0:60", "--devices=1", "--channels=1", "--size=100", "--json")
    with worker(address), worker(address):
        there = run(*COMMAND, *words, "--dask", address)
    assert there.returncode == 0, there.stdout + there.stderr
    arguments = ["simulate", *words, "--jobs", "1"]
    here = CliRunner().invoke(group, arguments, obj=Settings(), standalone_mode=False)
    assert _comparable(there.stdout) == _comparable(here.stdout)


def _comparable(said: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(said.splitlines()[-1])
    return {
        key: value
        for key, value in report.items()
        if key not in ("seconds", "peak_rss", "python")
    }
