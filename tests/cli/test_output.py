"""What becomes of a command when nobody takes what it prints. Collaboration.

The invariant: stdout and stderr decide nothing. The migration goes on, and the exit
status is that of the migration.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing

from trio_vfio import NullSink, open_incoming
from trio_vfio.__main__ import main
from trio_vfio._cli import _list_devices, _main, _migration
from trio_vfio._cli._migration import MigrationCommand
from trio_vfio._cli._output import (
    Diagnostics,
    LossyWriter,
    Results,
    is_result_lost,
    protect_output,
)
from trio_vfio._cli._progress import show_progress
from trio_vfio._cli._trace import tracing_to

from .test_trace import EVENT, LINE

Captured = pytest.CaptureFixture[str]
FULL: Final = "/dev/full"
NO_SPACE: Final = "ENOSPC: No space left on device"
LOST: Final = "trio-vfio: error: cannot write the result to stdout: "


_opened: list[io.TextIOWrapper] = []


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back both streams after a test that has replaced them, and close others."""
    monkeypatch.setattr("sys.stdout", sys.stdout)
    monkeypatch.setattr("sys.stderr", sys.stderr)
    yield
    while _opened:
        _opened.pop().close()


def broken_pipe() -> io.TextIOWrapper:
    """Return a stream whose reader has left."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    return _unbuffered(write_end)


def full_disk() -> io.TextIOWrapper:
    return _unbuffered(os.open(FULL, os.O_WRONLY))


def closed_stream() -> io.TextIOWrapper:
    stream = full_disk()
    stream.close()
    return stream


def no_stream() -> None:
    """Return what Python has in place of a stream whose descriptor was closed."""


def _unbuffered(fd: int) -> io.TextIOWrapper:
    file = io.FileIO(fd, "wb")
    _opened.append(io.TextIOWrapper(file, write_through=True))
    return _opened[-1]


BROKEN: Final = (broken_pipe, full_disk, closed_stream, no_stream)
MakeStream = Callable[[], io.TextIOWrapper | None]


@contextmanager
def pipe_that_nobody_reads() -> Iterator[tuple[int, int]]:
    """Make a pipe that is full. Returns its ends."""
    read_end, write_end = os.pipe()
    try:
        os.set_blocking(write_end, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(write_end, bytes(4096))
        os.set_blocking(write_end, True)
        yield read_end, write_end
    finally:
        os.close(read_end)
        os.close(write_end)


def drain(fd: int) -> bytes:
    """Return what is in a pipe. It stays non-blocking."""
    os.set_blocking(fd, False)
    data = b""
    with pytest.raises(BlockingIOError):
        while piece := os.read(fd, 1 << 16):
            data += piece
    return data


# stderr


@pytest.mark.parametrize("make", BROKEN)
def test_diagnostics_that_cannot_be_written_are_dropped(make: MakeStream) -> None:
    stream = Diagnostics(make())
    assert stream.write("line\n") == 5
    stream.flush()
    assert not stream.isatty()


@pytest.mark.parametrize("make", BROKEN)
async def test_progress_goes_on_without_stderr(
    make: MakeStream,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr", Diagnostics(make()))
    async with open_incoming("tcp:127.0.0.1:0", {"a/vfio": NullSink()}) as incoming:
        with trio.move_on_after(2.5) as scope:
            await show_progress(incoming)
    assert scope.cancelled_caught


async def test_progress_goes_on_when_the_terminal_is_closed(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    with _unbuffered(theirs) as terminal:
        stderr = Diagnostics(terminal)
        assert stderr.isatty()
        monkeypatch.setattr("sys.stderr", stderr)
        async with (
            open_incoming("tcp:127.0.0.1:0", {"a/vfio": NullSink()}) as incoming,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(show_progress, incoming)
            await trio.sleep(1.1)
            assert b"a/vfio" in os.read(ours, 1 << 16)
            os.close(ours)
            await trio.sleep(1.1)
            nursery.cancel_scope.cancel()
        with pytest.raises(OSError, match=f"Errno {errno.EIO}"):
            os.write(theirs, b"this would have been raised")


def test_broken_progress_display_fails_no_migration(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The migration waits until the display has failed, and then completes."""
    failed = trio.Event()

    async def fail(_: object) -> None:
        try:
            await trio.lowlevel.checkpoint()
            raise ValueError("width must be > 0")
        finally:
            failed.set()

    monkeypatch.setattr(_migration, "show_progress", fail)

    async def work(_: object) -> None:
        await failed.wait()

    opening = open_incoming("tcp:127.0.0.1:0", {"a/vfio": NullSink()})
    MigrationCommand(opening, work, as_json=True, quiet=False).run()
    error = "no more progress is shown: ValueError: width must be > 0"
    assert capsys.readouterr().err == f"trio-vfio: error: {error}\n"


def test_diagnostics_wait_for_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log collector hangs. It is waited for once; later it hears what is missing."""
    polls: list[float] = []
    poll = select.poll

    class Poll:
        def __init__(self) -> None:
            self.real: select.poll = poll()
            self.register = self.real.register

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            polls.append(milliseconds)
            return self.real.poll(0)

    monkeypatch.setattr(select, "poll", Poll)
    with pipe_that_nobody_reads() as (read_end, write_end):
        writer = LossyWriter(write_end)
        for _ in range(3):
            writer.write(b"dropped\n")
        assert polls == [100, 0, 0]
        drain(read_end)
        writer.write(b"taken\n")
        expected = b"\ntrio-vfio: dropped 24 bytes: nobody read them\ntaken\n"
        assert drain(read_end) == expected


def test_slow_reader_costs_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    waits: list[float] = []

    class Poll:
        def register(self, *_: object) -> None:
            pass

        def poll(self, milliseconds: float) -> list[int]:
            nonlocal now
            now += milliseconds / 1000
            waits.append(round(milliseconds))
            return [1]

    monkeypatch.setattr(select, "poll", Poll)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    writer = LossyWriter(os.open(os.devnull, os.O_WRONLY))
    for _ in range(3):
        writer.write(b"line\n")
        now += 0.5
    os.close(writer.fd)
    assert waits == [100, 50, 50]


def test_trace_waits_for_no_reader(capsys: Captured, tmp_path: Path) -> None:
    fifo = tmp_path / "trace"
    os.mkfifo(fifo)
    read_end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with tracing_to(str(fifo)) as hook:
            assert hook is not None
            for _ in range(2 * (1 << 16) // len(LINE)):
                hook(EVENT)
            taken = drain(read_end)
            hook(EVENT)
            assert drain(read_end).endswith(f"nobody read them\n{LINE}\n".encode())
        assert taken.startswith(f"{LINE}\n".encode())
    finally:
        os.close(read_end)
    assert capsys.readouterr() == ("", "")


def test_trace_file_that_fails_when_it_is_closed(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """NFS may find only then that a disk is full. The migration is complete by then."""

    class OnNfs(io.FileIO):
        def close(self) -> None:
            super().close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = str(tmp_path / "trace")
    file = OnNfs(path, "w")
    monkeypatch.setattr("builtins.open", lambda *_, **__: file)
    with tracing_to(path):
        pass
    error = f"trio-vfio: error: cannot write {path!r}: {NO_SPACE}\n"
    assert capsys.readouterr().err == error


def test_all_that_writes_to_stderr_is_protected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here the logging of a library, which prints a traceback if that fails."""
    monkeypatch.setattr("sys.stderr", closed_stream())
    protect_output()
    logger = logging.getLogger("a library of somebody's")
    logger.propagate = False
    logger.warning("nobody hears this")


def shell(command: str) -> list[str]:
    """Return how to run *command*, one of ours with redirections."""
    return ["/bin/bash", "-c", f"{sys.executable} -m trio_vfio {command}"]


STDERRS: Final = ("2>/dev/full", "2>&-", "2> >(exit 0)")


@pytest.mark.parametrize("stderr", STDERRS)
async def test_stderr_decides_nothing(stderr: str, tmp_path: Path) -> None:
    """Both sides of a migration, which trace each event to it."""
    path, snapshot = tmp_path / "socket", tmp_path / "snapshot"
    common = f"--trace - --json {stderr}"
    async with trio.open_nursery() as nursery:
        statuses: dict[str, int] = {}

        async def run(name: str, options: str) -> None:
            ran = await trio.run_process(
                shell(f"{name} unix:{path} {options} {common}"),
                capture_stdout=True,
                check=False,
            )
            statuses[name] = ran.returncode
            assert json.loads(ran.stdout)["status"] == "completed"

        nursery.start_soon(run, "receive", f"--into {snapshot}")
        while not path.exists():  # noqa: ASYNC110
            await trio.sleep(0.005)
        await run("send", "--device a/vfio=null:1MiB")
    assert statuses == {"send": 0, "receive": 0}


# stdout


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (broken_pipe, "EPIPE: Broken pipe"),
        (full_disk, NO_SPACE),
        (closed_stream, "ValueError: I/O operation on closed file."),
        (no_stream, "EBADF: Bad file descriptor"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_lost_result_leaves_the_status(  # noqa: PLR0917 (fixtures)
    make: MakeStream,
    reason: str,
    options: list[str],
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    into = str(tmp_path / "snapshot")
    arguments = ["save", "null:1000", "--into", into, "-q", *options]
    monkeypatch.setattr(sys, "argv", ["trio-vfio", *arguments])
    monkeypatch.setattr("sys.stdout", make())
    assert main() == 0
    assert capsys.readouterr().err == f"{LOST}{reason}\n"


def test_lost_result_of_a_failure_leaves_the_status(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ["load", str(tmp_path), "null:", "-q"]
    monkeypatch.setattr(sys, "argv", ["trio-vfio", *arguments])
    monkeypatch.setattr("sys.stdout", full_disk())
    assert main() == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1] == LOST + NO_SPACE
    assert len(errors) == 2


def test_devices_that_cannot_be_shown_are_a_failure(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing else that the command is for."""
    monkeypatch.setattr(sys, "argv", ["trio-vfio", "devices"])
    monkeypatch.setattr("sys.stdout", full_disk())
    assert main() == 1
    assert is_result_lost()
    assert capsys.readouterr().err == f"{LOST}{NO_SPACE}\n"


def test_result_waits_for_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where somebody else has made the descriptor non-blocking."""
    polls = []
    with pipe_that_nobody_reads() as (read_end, write_end):
        os.set_blocking(write_end, False)

        class Poll:
            def register(self, fd: int, events: int) -> None:
                assert (fd, events) == (write_end, select.POLLOUT)

            def poll(self) -> None:
                polls.append(drain(read_end))

        monkeypatch.setattr(select, "poll", Poll)
        with open(write_end, "w", closefd=False) as stream:
            results = Results(stream)
            results.write("the result\n")
        assert drain(read_end) == b"the result\n"
        assert (len(polls), results.error) == (1, None)


def test_result_is_written_in_any_encoding() -> None:
    raw = io.BytesIO()
    results = Results(io.TextIOWrapper(raw, "ascii", errors="backslashreplace"))
    results.write("M\u00fcller")
    assert (raw.getvalue(), results.error) == (rb"M\xfcller", None)
    read_end, write_end = os.pipe()
    with open(write_end, "w", encoding="ascii") as stream:
        Results(stream).write("M\u00fcller")
        assert drain(read_end) == rb"M\xfcller"
    os.close(read_end)


def test_stream_in_memory_has_no_descriptor() -> None:
    with pytest.raises(OSError, match=f"Errno {errno.EBADF}"):
        Results(io.StringIO()).fileno()


def test_broken_pipe_of_a_device_is_no_lost_result(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Click would end the process without a word."""

    async def fail() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe", "the device")

    monkeypatch.setattr(_list_devices, "kernel_devices", fail)
    assert _main.run_command(["devices"]) == 1
    error = "EPIPE: Broken pipe: the device"
    assert capsys.readouterr() == ("", f"trio-vfio: error: {error}\n")


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">/dev/full", f"{LOST}{NO_SPACE}\n"),
        (">&-", f"{LOST}EBADF: Bad file descriptor\n"),
        ("2>/dev/full >/dev/full", ""),
        ("<&- >&- 2>&-", ""),
    ],
)
def test_exit_of_python_leaves_the_status(
    redirection: str, said: str, tmp_path: Path
) -> None:
    """Python flushes its streams then, and would make it 120.

    A descriptor that was closed is none of the device's files.
    """
    into = tmp_path / "snapshot"
    how = "--trace -" if "2>" in redirection else "--quiet"
    ran = subprocess.run(
        shell(f"save null:1000 --into {into} {how} {redirection}"),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, said)
    (data,) = into.glob("*.data")
    assert data.read_bytes() == bytes(1000)


def test_closed_descriptor_is_no_device(tmp_path: Path) -> None:
    """It is refused before anything is read or written."""
    into = tmp_path / "snapshot"
    command = shell(f"save fd:0 --into {into} -q <&-")
    ran = subprocess.run(command, capture_output=True, check=False)
    assert ran.returncode == 1
    assert b"begin: EBADF: Bad file descriptor" in ran.stderr


async def test_signal_still_ends_a_command_whose_stderr_is_stuck(
    tmp_path: Path,
) -> None:
    with pipe_that_nobody_reads() as (_, write_end):
        arguments = [f"unix:{tmp_path / 'socket'}", f"--into={tmp_path}", "--json"]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "trio_vfio", "receive", *arguments],
            stdout=subprocess.PIPE,
            stderr=write_end,
        )
        while not (tmp_path / "socket").exists():  # noqa: ASYNC110
            await trio.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        async with process.stdout:
            stdout = b"".join([data async for data in process.stdout])
        await process.wait()
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(stdout)["status"] == "cancelled"
