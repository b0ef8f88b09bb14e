"""The option ``--trace``: where its lines go. Pure."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from trio_vfio import TraceEvent
from trio_vfio._cli._trace import line, tracing_to

Captured = pytest.CaptureFixture[str]

EVENT = TraceEvent("multifd_recv_thread_start", (2,), 1750000000.000042)
LINE = f"{os.getpid()}@1750000000.000042:multifd_recv_thread_start 2"


def test_a_line_has_the_time_as_in_qemu() -> None:
    assert line(EVENT) == LINE


def test_an_event_is_one_line_whatever_it_says() -> None:
    event = TraceEvent("migrate_error", ("a\nb\x1b[31m",))
    assert line(event).endswith(r":migrate_error error=a\nb\x1b[31m")


def test_without_a_file_there_is_no_hook() -> None:
    with tracing_to(None) as hook:
        assert hook is None


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with pytest.raises(ZeroDivisionError), tracing_to(str(path)) as hook:
        assert hook is not None
        hook(EVENT)
        assert path.read_text() == f"{LINE}\n"
        hook(EVENT)
        raise ZeroDivisionError
    assert path.read_text() == f"{LINE}\n" * 2


def test_to_stderr(capsys: Captured) -> None:
    with tracing_to("-") as hook:
        assert hook is not None
        hook(EVENT)
    assert capsys.readouterr() == ("", f"{LINE}\n")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = str(tmp_path / "no" / "trace")
    with pytest.raises(click.UsageError, match="ENOENT"), tracing_to(path):
        pass


def test_a_full_disk_is_said_once_and_stops_nothing(capsys: Captured) -> None:
    with tracing_to("/dev/full") as hook:
        assert hook is not None
        hook(EVENT)
        hook(EVENT)
    error = "cannot write '/dev/full': ENOSPC: No space left on device"
    assert capsys.readouterr() == ("", f"trio-vfio: error: {error}\n")
