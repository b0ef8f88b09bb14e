"""What the demo says when something is wrong. Collaboration, over real sockets."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from trio_vfio._cli._main import run_command

from ..captures_data import capture

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recording that the demo plays, to be damaged."""
    copy = tmp_path / "_demo" / "capture"
    shutil.copytree(capture("demo").directory, copy, copy_function=shutil.copyfile)

    def files(package: str) -> Path:
        assert package == "trio_vfio"
        return tmp_path

    monkeypatch.setattr("importlib.resources.files", files)
    return copy


def test_damaged_recording(recording: Path, capsys: Captured) -> None:
    """Each thing that is wrong is a line, and the table says no."""
    path = recording / "multifd1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert run_command(["demo"]) == 1
    captured = capsys.readouterr()
    cut, heard, loaded = captured.err.splitlines()
    assert "channel 1: channel ends inside the packet (at byte " in cut
    assert "the source heard 00 02 00 04" in heard
    assert "what was loaded is not what was recorded" in loaded
    assert "no" in captured.out.split()


def test_not_what_was_recorded(recording: Path, capsys: Captured) -> None:
    """The digest is compared with what somebody else has found."""
    path = recording / "expected.json"
    path.write_text(path.read_text().replace("e7c273ab", "00000000"))
    assert run_command(["demo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "what was loaded is not what was recorded" in line


def test_no_receiver(
    recording: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies without a word is noticed."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert run_command(["demo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "trio-vfio: error: the receiving process said: nothing"
