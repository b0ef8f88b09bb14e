"""Processes: `trio-vfio simulate` as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.forms import form
from tests.mutants.mutants import Patch
from trio_vfio._cli import _simulate
from trio_vfio._cli._main import group, run_command
from trio_vfio._cli._plain import Settings
from trio_vfio._receive._reorder import ReorderQueue
from trio_vfio.testing import FaultPlan, check_orders, simulate

CAP_OFF_BY_ONE = Patch(
    ReorderQueue.admits, "<= self.max_bytes", "<= self.max_bytes + 1"
)
SMALL = ("--devices", "1", "--channels", "1", "--size", "100")
COMMAND = (sys.executable, "-m", "trio_vfio", "simulate")


def run(*arguments: str) -> Result:
    words = ["simulate", *arguments]
    return CliRunner().invoke(group, words, obj=Settings(), standalone_mode=False)


def test_a_campaign_over_processes_says_what_came_of_it(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    # Two chunks of seeds, one for each process.
    words = ("--seeds", "0:60", *SMALL, "--jobs", "2", "--report", str(report))
    ran = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True)
    assert "60 seeds" in ran.stdout
    assert "violations: 0" in ran.stdout
    assert ran.stderr == "50 of 60 seeds\n"
    written = json.loads(report.read_text())
    assert written["range"] == "0:60"
    assert written["digest"] in ran.stdout
    assert written["trio"] in ran.stdout
    again = run("--seeds", "0:60", *SMALL, "--jobs", "1", "--json")
    assert again.return_value == 0
    said = json.loads(again.stdout)
    for key in ("digest", "outcomes", "violations", "virtual_seconds", "seeds"):
        assert said[key] == written[key]


def test_one_seed_can_be_looked_at() -> None:
    shown = run("--seed", "5", "--trace")
    assert shown.return_value == 0
    result = simulate(FaultPlan.from_seed(5))
    assert len(shown.stdout.splitlines()) > len(result.events)
    assert repr(result.plan) in shown.stdout
    assert result.digest in shown.stdout
    lines = run("--seed", "5", "--trace", "--json").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert events[-1]["digest"] == result.digest
    assert [each["what"] for each in events[:-1]] == [e.what for e in result.events]


def test_a_violation_says_all_that_is_needed_to_repeat_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    CAP_OFF_BY_ONE.apply(monkeypatch)
    ran = run("--seeds", "105:110", "--jobs", "1", "--shrink")
    assert ran.return_value == 1
    assert "memory: what waits for its turn" in ran.stderr
    assert "FaultPlan(" in ran.stderr
    (command, *_) = [
        line.removeprefix("to repeat it: trio-vfio simulate ")
        for line in ran.stderr.splitlines()
        if line.startswith("to repeat it: ")
    ]
    assert command.endswith(" --trace")
    again = run(*command.split())
    assert again.return_value == 1
    assert "memory, at " in again.stderr


def test_all_orders_of_few_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a single channel, because more take time and add nothing here.
    monkeypatch.setattr(_simulate, "check_orders", partial(check_orders, channels=1))
    ran = run("--orders", "1", "--jobs", "1", "--json")
    assert ran.return_value == 0
    said = json.loads(ran.stdout)
    assert said["violations"] == []
    assert said["cases"] > said["orders"] > 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Give one of --seeds, --seed and --orders"),
        (("--seed", "1", "--seeds", "0:2"), "Give one of"),
        (("--seeds", "2:1"), "'2:1' are no seeds, as 0:10000"),
        (("--seeds", "0:9", "--trace"), "--trace goes with --seed"),
    ],
)
def test_mistakes_in_what_is_asked_for(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["simulate", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "number",
    form(
        short=[signal.SIGINT, signal.SIGHUP],
        long=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    ),
)
def test_signal_ends_it_with_what_was_done(number: signal.Signals) -> None:
    """No worker is left, as whoever has the pipe to it would know."""
    words = ("--seeds", "0:1000000", *SMALL, "--jobs", "2")
    with subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline() == "50 of 1000000 seeds\n"
            process.send_signal(number)
            out, err = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert "violations: 0" in out
    assert "interrupted after" in err
    assert "Traceback" not in err
