"""The command in this process: arguments, errors, exit status. Pure."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import trio

from trio_vfio import DeviceError, MigrationFailed, MigrationResult, SessionState
from trio_vfio.__main__ import main
from trio_vfio._cli import _inspect, _main, _receive
from trio_vfio._cli._main import run_command
from trio_vfio._cli._plain import plain

from ..capture.build import channel, config_packet, main_stream, write_capture
from ..captures_data import CAPTURES, CaptureFiles

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_capture(tmp_path / "capture", main_stream(), {0: [config_packet(0)]})


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "Missing command (see trio-vfio --help)"),
        (["fly"], "No such command 'fly' (see trio-vfio --help)"),
        (["inspect"], "Missing argument 'CAPTURE' (see trio-vfio inspect --help)"),
        (["inspect", "/no/such"], "Directory '/no/such' does not exist"),
        (["inspect", "/no\x1b[31m"], r"Directory '/no\x1b[31m' does not exist"),
        (["inspect", "{tmp}"], "holds neither main.bin nor channels"),
        (["inspect", "--page-size", "4k", "/"], "'4k' is no size, as 4096 or 4KiB"),
        (
            ["inspect", "--page-size", "5KiB", "/"],
            "is no power of 2 from 1KiB to 64KiB",
        ),
        (["receive"], "Missing argument 'ADDRESS'"),
        (["receive", "tcp::0"], "give either --device, once or more, or --into"),
        (["receive", "tcp::0", "--into", "d", "--device", "a=null:"], "give either"),
        (
            ["receive", "tcp::0", *["--device", "a=null:"] * 2],
            "two --device of one name",
        ),
        (["receive", "tcp::0", "--device", "a"], "'a' is not IDSTR=DEV"),
        (["receive", "tcp::0", "--device", "=null:"], "'=null:' is not IDSTR=DEV"),
        (["receive", "tcp::0", "--device", "a=null"], "'a=null' is not IDSTR=DEV"),
        (["receive", "tcp::0", "--device", "a=file:"], "'file:' is no device"),
        (
            ["receive", "tcp::0", "--device", "a=vfio:x"],
            "'vfio:x' is no device; known are vfio:DEVICE[,cdev|,group], file:PATH,"
            " fd:N and null:",
        ),
        (
            ["receive", "tcp::0", "--into", "d", "--silence", "0"],
            "not in the range x>0",
        ),
        (["receive", "tcp::0", "--into", "d", "--silence", "nan"], "is no duration"),
        (
            ["receive", "tcp::0", "--into", "d", "--trace", "{tmp}"],
            "cannot write '{tmp}': EISDIR: Is a directory",
        ),
        (
            ["receive", "tcp::0", "--into", "d", "--page-size", "5KiB"],
            "is no power of 2 from 1KiB to 64KiB",
        ),
        (["receive", "udp::0", "--into", "d"], "is not tcp:HOST:PORT or unix:PATH"),
        (["receive", "tcp:::0", "--into", "d"], "an IPv6 host goes in brackets"),
        (["receive", "tcp::0", "--device", "a/vfio=fd:x"], "'fd:x' is no device"),
        (["send", "tcp::0"], "give either --device, once or more, or --from"),
        (["send", "tcp::0", "--from", "{tmp}", "--device", "a/vfio=null:"], "either"),
        (["send", "tcp::0", "--from", "/no/such"], "'/no/such' does not exist"),
        (
            ["send", "tcp::0", *["--device", "a/vfio=null:"] * 2],
            "two --device of one name",
        ),
        (["send", "tcp::0", "--device", "a=null:"], "'a' is no VFIO device's idstr"),
        (["send", "tcp::0", "--device", "a/vfio=null:x"], "'x' is no size"),
        (
            ["send", "tcp::0", "--device", "a/vfio=fd:-1"],
            "'fd:-1' is no device; known are vfio:DEVICE[,cdev|,group], file:PATH,"
            " fd:N, null: and null:SIZE",
        ),
        (["send", "udp:x", "--device", "a/vfio=null:"], "is not tcp:HOST:PORT or"),
        (["send", "tcp::0", "--channels", "0"], "not in the range 1<=x<=255"),
        (
            ["send", "tcp::0", "--device", "a/vfio=null:", "--machine", ""],
            "'' is no machine type",
        ),
    ],
)
def test_usage_errors(
    arguments: list[str], error: str, tmp_path: Path, capsys: Captured
) -> None:
    """A mistake of the user's is one line, and status 2."""
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert run_command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("trio-vfio: error: ")
    assert captured.err.count("\n") == 1
    assert error.replace("{tmp}", str(tmp_path)) in captured.err


def test_receive_page_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the session's."""
    sizes: list[int | None] = []

    def look(*_: object, page_size: int | None, **__: object) -> None:
        sizes.append(page_size)
        raise OSError("that is all")

    monkeypatch.setattr(_receive, "open_incoming", look)
    for options in [], ["--page-size=64KiB"]:
        assert run_command(["receive", "tcp::0", "--into=d", *options]) == 1
    assert sizes == [None, 65536]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["receive", "--help"], ["send", "-h"]]
)
def test_help(arguments: list[str], capsys: Captured) -> None:
    assert run_command(arguments) == 0
    assert "Usage: trio-vfio" in capsys.readouterr().out


def test_version(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments of the process are those of the command."""
    monkeypatch.setattr(sys, "argv", ["trio-vfio", "--version"])
    assert main() == 0
    assert re.fullmatch(r"trio-vfio \S.*\n", capsys.readouterr().out)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from trio_vfio._cli._version import version

    def not_found(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", not_found)
    assert version() == "(not installed)"


def _forget_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("trio_vfio._cli"):
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("missing", ["click", "rich.text"])
def test_extra_missing(
    missing: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its extra the command says in one line how to get it."""
    _forget_command(monkeypatch)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main() == 1
    assert capsys.readouterr().err == (
        "trio-vfio: error: the command needs more packages:"
        " pip install 'trio-vfio[cli]'\n"
    )


def test_something_else_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the extra would not bring is not blamed on it."""
    _forget_command(monkeypatch)
    monkeypatch.setitem(sys.modules, "trio_vfio._cli._faults", None)
    with pytest.raises(ModuleNotFoundError):
        main()


@click.command()
def _fail() -> None:
    """Stand in for a command that fails."""
    raise _failure


_failure: BaseException = RuntimeError()


def _run_failing(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> int:
    monkeypatch.setattr(f"{__name__}._failure", failure)
    monkeypatch.setitem(_main.group.commands, "fail", _fail)
    return run_command([*arguments, "fail"])


def test_one_line_for_each_fault(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the faults are made of, a line is a line."""
    faults = [
        DeviceError("a\x1b[1m/vfio", 0, "write", "ENOSPC", idx=3, offset=7),
        DeviceError("[red]b/vfio", 1, "begin", "line\nbreak"),
    ]
    result = MigrationResult(SessionState.FAILED, (), (), (), None, 0.0)
    failure = ExceptionGroup("", [MigrationFailed(faults, result), OSError(2, "gone")])
    assert _run_failing(failure, monkeypatch) == 1
    assert capsys.readouterr().err.splitlines() == [
        r"trio-vfio: error: a\x1b[1m/vfio: write of buffer 3 at byte 7: ENOSPC",
        r"trio-vfio: error: [red]b/vfio (instance 1): begin: line\nbreak",
        "trio-vfio: error: ENOENT: gone",
    ]


def test_no_traceback_unless_wanted(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for a fault of ours."""
    failure = AssertionError("not\nthis")
    assert _run_failing(failure, monkeypatch) == 1
    assert capsys.readouterr().err == "trio-vfio: error: AssertionError: not this\n"
    assert _run_failing(failure, monkeypatch, "--traceback") == 1
    assert "Traceback" in capsys.readouterr().err


def test_fault_of_the_arguments_machinery(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run_failing(click.FileError("x", "broken"), monkeypatch) == 1
    assert _run_failing(click.UsageError("so"), monkeypatch) == 2
    assert capsys.readouterr().err.splitlines() == [
        "trio-vfio: error: Could not open file 'x': broken",
        "trio-vfio: error: so (see trio-vfio fail --help)",
    ]


def test_interrupted_early(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before there is anything to cancel is Ctrl-C all the same."""
    assert _run_failing(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize("files", CAPTURES, ids=lambda files: files.name)
def test_inspect_json(files: CaptureFiles, capsys: Captured) -> None:
    """One object with everything; the exit status says whether all is well."""
    status = run_command(["inspect", "--json", str(files.directory)])
    captured = capsys.readouterr()
    report: dict[str, Any] = json.loads(captured.out)
    assert status == (0 if report["status"] == "complete" else 1)
    expected = files.expected
    assert report["status"] == expected["status"]
    assert report["reason"] == expected.get("reason", report["reason"])
    assert len(captured.err.splitlines()) == len(report["errors"])
    assert (report["reason"] is None) == (report["errors"] == [])
    packet_fields = "channel idstr instance_id idx flags bytes offset"
    for packet in report["packets"]:
        assert list(packet) == packet_fields.split()
    for record in report["main"]:
        assert set(record) >= {"kind", "section_id", "idstr", "instance_id", "offset"}
    commands = [each for each in report["main"] if each["kind"] == "command"]
    starts = [
        each["offset"] for each in commands if each["command"] == "SWITCHOVER_START"
    ]
    assert starts == [report["switchover_start"]] * len(starts)


def test_inspect_tables(capture: Path, capsys: Captured) -> None:
    """Everything in the JSON that a reader needs is in the tables."""
    assert run_command(["inspect", str(capture)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for text in (
        "0000:00:04.0/vfio",
        "SWITCHOVER_START",
        "vmdescription",
        "complete: ",
    ):
        assert text in captured.out


def test_markup_is_not_interpreted(tmp_path: Path, capsys: Captured) -> None:
    """The peer chooses idstrs; on a terminal they are plain text."""
    idstr = "[bold red]:boom:[/]{x}/vfio"
    packets = {0: [config_packet(0, idstr=idstr)]}
    capture = write_capture(tmp_path, main_stream(idstr=idstr), packets)
    assert run_command(["inspect", str(capture)]) == 0
    assert capsys.readouterr().out.count(idstr) >= 3


def test_inspect_damaged(capture: Path, capsys: Captured) -> None:
    (capture / "multifd0.bin").write_bytes(channel(0, [config_packet(0)])[:-1])
    assert run_command(["inspect", str(capture)]) == 1
    captured = capsys.readouterr()
    assert "cut: " in captured.out
    assert captured.err.splitlines() == [
        "trio-vfio: error: multifd0.bin: channel ends inside the packet at offset 64",
        "trio-vfio: error: 0000:00:04.0/vfio: no config",
    ]


def test_inspect_page_size(capture: Path, capsys: Captured) -> None:
    assert run_command(["inspect", "--page-size", "64KiB", str(capture)]) == 0
    assert "complete" in capsys.readouterr().out


def test_inspect_extract(capture: Path, tmp_path: Path, capsys: Captured) -> None:
    into = tmp_path / "snapshot"
    assert run_command(["inspect", str(capture), "--extract", str(into)]) == 0
    assert (into / "manifest.json").exists()
    assert capsys.readouterr().err == ""


def test_extract_cancelled(
    capture: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is there all the same."""

    async def stopped(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep_forever()

    monkeypatch.setattr(_inspect, "extract", stopped)
    assert run_command(["inspect", str(capture), "--json", "--extract", "x"]) == 143
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "complete"
    assert captured.err == "trio-vfio: error: extraction cancelled by SIGTERM\n"


def test_extract_where_nothing_can_be_written(capture: Path, capsys: Captured) -> None:
    (capture / "file").touch()
    into = str(capture / "file" / "snapshot")
    assert run_command(["inspect", str(capture), "--extract", into]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("trio-vfio: error: ENOTDIR: Not a directory")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [b]text[/b]", "plain [b]text[/b]"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\rc\x9b", r"a\nb\rc\x9b"),
        ("\u202eright to left", r"\u202eright to left"),
        ("\udcff", r"\udcff"),
        ("M\u00fcller", "M\u00fcller"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_interrupt_during_imports_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupts:
        """A finder of modules that Ctrl-C reaches."""

        def find_spec(self, name: str, *_: object) -> None:
            signal.raise_signal(signal.SIGINT)

    _forget_command(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [Interrupts(), *sys.meta_path])
    assert main() == 130


LATE = """
import atexit, os, signal, sys
from trio_vfio.__main__ import main

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})

last = Last()  # deleted when Python has put back the default action of signals
atexit.register(signal.raise_signal, signal.{name})
sys.exit(main())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_during_shutdown_does_not_change_the_status(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LATE.format(name=name), "fly"],
        capture_output=True,
        text=True,
        check=False,
    )
    error = "trio-vfio: error: No such command 'fly' (see trio-vfio --help)\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", error)
