"""What the demo says when something is wrong. Collaboration, over real sockets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trio_vfio._cli import _demo
from trio_vfio._cli._main import run_command

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def small_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong with much goes wrong with little."""
    monkeypatch.setattr(_demo, "_SIZE", 1 << 20)
    monkeypatch.setattr(_demo, "_PRECOPY", 1 << 18)


def test_all_is_well(capsys: Captured) -> None:
    assert run_command(["demo"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count(" yes ") == 4


def test_not_what_was_sent(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """What both sides say is compared with what really is there."""
    monkeypatch.setattr(_demo._Device, "loaded", lambda device: device.sha256[::-1])
    assert run_command(["demo"]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line == "trio-vfio: error: what was loaded is not what was sent"
    assert captured.out.count(" no ") == 4


def test_no_receiver(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies without a word is noticed."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert run_command(["demo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "trio-vfio: error: receive: it died without a word"


def test_a_source_that_fails(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both sides say what they know of it."""

    def closed(idstr: str, stack: object) -> _demo._Device:
        there = os.memfd_create(idstr)
        directory = os.open(tmp_path, os.O_RDONLY)
        return _demo._Device(idstr, directory, there, "")

    monkeypatch.setattr(_demo._Device, "make", closed)
    assert run_command(["demo"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("send: 0000:00:04.0/vfio: " in line for line in lines)
    assert any(": EISDIR: " in line for line in lines)
    assert any("receive: main: " in line for line in lines)


DIES = """\
#!/bin/sh
case "$*" in *" send "*) exit 1; esac
exec {python} "$@"
"""


def test_a_source_that_dies_before_it_connects(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The destination, which would wait for ever, is ended."""
    python = tmp_path / "python"
    python.write_text(DIES.format(python=sys.executable))
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(_demo, "_LEFT_ALONE", 0.1)
    assert run_command(["demo"]) == 1
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == "trio-vfio: error: send: it died without a word"


INTERRUPTS = """\
#!/bin/sh
echo $$ >> {pids}
case "$*" in *" {name} "*) kill -INT $PPID; esac
exec {python} "$@"
"""


@pytest.mark.parametrize("name", ["receive", "send"])
def test_demo_cancelled(
    name: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No process is left, whichever was just about to start."""
    python, pids = tmp_path / "python", tmp_path / "pids"
    python.write_text(INTERRUPTS.format(pids=pids, name=name, python=sys.executable))
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    assert run_command(["demo"]) == 130
    error = "trio-vfio: error: cancelled by SIGINT\n"
    assert capsys.readouterr().err == error
    started = pids.read_text().split()
    assert len(started) == {"receive": 1, "send": 2}[name]
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
