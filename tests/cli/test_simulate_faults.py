"""The command `trio-vfio simulate` in this process, when something goes wrong."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trio_vfio._cli import _simulate
from trio_vfio._cli._main import group
from trio_vfio._cli._plain import Settings
from trio_vfio.testing import Draws, SimulatedSink, run_campaign
from trio_vfio.testing._runs import _campaign
from trio_vfio.testing._runs._in_time import simulate_in_time

ONE_DEVICE = ("--devices", "1", "--no-faults", "--jobs", "1")


def run(*arguments: str) -> Result:
    words = ["simulate", *arguments]
    return CliRunner().invoke(group, words, obj=Settings(), standalone_mode=False)


@pytest.mark.parametrize("which", [("--seeds", "0:100000000"), ("--seed", "1")])
def test_a_report_that_cannot_be_written_is_said_before_the_work(
    which: tuple[str, str], tmp_path: Path
) -> None:
    ran = run(*which, "--report", str(tmp_path / "none" / "report.json"))
    assert "No such file or directory" in str(ran.exception)
    assert ran.stdout == ""


def test_a_run_without_end_is_shown_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def begin(_: SimulatedSink) -> None:
        signal.pause()

    soon = partial(simulate_in_time, patience=0.3)
    monkeypatch.setattr(SimulatedSink, "begin", begin)
    monkeypatch.setattr(_campaign, "simulate_in_time", soon)
    monkeypatch.setattr(_simulate, "simulate_in_time", soon)
    for which in (("--seeds", "1:2"), ("--seed", "1")):
        ran = run(*which, *ONE_DEVICE, "--shrink")
        assert ran.return_value == 1
        assert "seed 1: deadlines, at 0 s: still runs after 0.3 real sec" in ran.stderr
        assert "FaultPlan(" in ran.stderr
        assert "to repeat it: trio-vfio simulate --seed 1 --devices 1" in ran.stderr


def test_what_only_a_campaign_sees_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_campaign, "_left_over", lambda _: 2)
    ran = run("--seeds", "5:8", *ONE_DEVICE)
    assert ran.return_value == 1
    assert "leftovers, at 0 s: 2 sessions are alive after seeds 5 to 7" in ran.stderr


def test_faults_of_a_simulated_migration_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Of these, some drop a connection, which is worth a warning elsewhere.
    for seed in range(12):
        assert run("--seed", str(seed)).return_value == 0
    assert caplog.records == []


def test_ctrl_c_in_a_run_ends_a_campaign_in_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In a task it would come out in a group, and in a finalizer not at all.
    began: list[SimulatedSink] = []
    true_begin = SimulatedSink.begin

    async def begin(device: SimulatedSink) -> None:
        began.append(device)
        if len(began) == 60:
            signal.raise_signal(signal.SIGINT)
        await true_begin(device)

    monkeypatch.setattr(SimulatedSink, "begin", begin)
    small = ("--channels", "1", "--size", "100")
    ran = run("--seeds", "0:100000000", *ONE_DEVICE, *small, "--json")
    monkeypatch.undo()
    assert len(began) == 60
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert ran.return_value == 128 + signal.SIGINT
    assert "interrupted after 50 seeds" in ran.stderr
    said = json.loads(ran.stdout)
    assert said["interrupted"]
    draws = Draws(devices=1, channels=1, size=100, faults=False)
    assert said["digest"] == run_campaign(range(50), draws).digest
