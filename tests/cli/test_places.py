"""No two parts of a command share a file. Pure, but for files; and collaboration."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from trio_vfio._cli._main import run_command

from .processes import running

Captured = pytest.CaptureFixture[str]


@pytest.fixture(name="here")
def make_here(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Make a directory with a device, a snapshot and links, and work there."""
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(b"state of a")
    Path("a.config").write_bytes(b"config of a")
    assert run_command(["save", "file:a", "--into=snapshot", "--quiet"]) == 0
    capsys.readouterr()
    (data,) = Path("snapshot").glob("*.data")
    Path("data").symlink_to(data)
    Path("hard").hardlink_to("a")
    Path("soft").symlink_to("a")
    Path("new").symlink_to("nothing")
    Path("dir").symlink_to(".")
    Path("other").mkdir()
    left = Path("other", f"x-{'0' * 16}.data")
    left.write_bytes(b"of a run that was killed")
    return tmp_path


@pytest.fixture(name="opened")
def make_opened() -> Generator[Callable[[str, int], int]]:
    """Open files, by number, and close them again."""
    with ExitStack() as stack:

        def opened(path: str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
            fd = os.open(path, flags)
            stack.callback(os.close, fd)
            return fd

        yield opened


def everything(directory: Path) -> dict[str, str]:
    """Return what is in all files."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


RECEIVE = ["receive", "tcp:127.0.0.1:0"]
SEND = ["send", "tcp:127.0.0.1:9"]


def check_refused(here: Path, capsys: Captured, arguments: list[str]) -> str:
    """Check that nothing is done but to say why, in one line."""
    before = everything(here)
    assert run_command([*arguments, "--quiet"]) == 2
    assert everything(here) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "one", "other"),
    [
        # Two devices in one place.
        ([*RECEIVE, "--device=a/vfio=file:x", "--device=b/vfio=file:x"], "a/v", "b/v"),
        ([*RECEIVE, "--device=a/vfio=file:x", "--device=b/vfio=file:./x"], "a/", "b/"),
        ([*RECEIVE, "--device=a/vfio=file:x", "--device=b/vfio=file:dir/x"], "a", "b"),
        (
            [*RECEIVE, "--device=a/vfio=file:x", "--device=b/vfio=file:x.config"],
            "'a/vfio'",
            "'b/vfio'",
        ),
        (
            [*RECEIVE, "--device=a/vfio=file:x.part", "--device=b/vfio=file:x"],
            "'a/vfio'",
            "'b/vfio'",
        ),
        ([*RECEIVE, "--device=a/vfio=file:a", "--device=b/vfio=file:hard"], "a", "b"),
        ([*RECEIVE, "--device=a/vfio=file:a", "--device=b/vfio=file:soft"], "a", "b"),
        (
            [*RECEIVE, "--device=a/vfio=file:new", "--device=b/vfio=file:nothing"],
            "'a/vfio'",
            "'b/vfio'",
        ),
        (
            [*RECEIVE, "--device=a/vfio=file:no/x", "--device=b/vfio=file:no/x"],
            "'a/vfio'",
            "'b/vfio'",
        ),
        (
            [
                *RECEIVE,
                "--device=a/vfio=vfio:01:00.0",
                "--device=b/vfio=vfio:0000:01:00.0,cdev",
            ],
            "'a/vfio'",
            "'b/vfio'",
        ),
        (
            [*SEND, "--device=a/vfio=vfio:01:00.0", "--device=b/vfio=vfio:01:00.0"],
            "'a/vfio'",
            "'b/vfio'",
        ),
        # A device that is an input besides.
        (["load", "snapshot", "file:data"], "the snapshot 'snapshot'", "'DEV'"),
        (["load", "snapshot", "file:snapshot/manifest.json"], "snapshot", "DEV"),
        (["save", "file:data", "--into=snapshot"], "'vfio'", "'snapshot'"),
        (["save", "file:other/x-0000000000000000.data", "--into=other"], "'v", "'oth"),
        (["receive", "unix:x", "--device=a/vfio=file:x"], "'a/vfio'", "'unix:x'"),
        # The trace.
        (["save", "file:a", "--into=new-one", "--trace=a"], "'vfio'", "--trace 'a'"),
        (["save", "file:a", "--into=new-one", "--trace=hard"], "'vfio'", "--trace 'h"),
        (["save", "file:a", "--into=new-one", "--trace=soft"], "'vfio'", "--trace 's"),
        (["save", "file:a", "--into=new-one", "--trace=a.config"], "'vfio'", "--trace"),
        (["save", "null:", "--into=s", "--trace=s/manifest.json"], "'s'", "--trace"),
        (["load", "snapshot", "file:x", "--trace=x"], "'DEV'", "--trace 'x'"),
        (["load", "snapshot", "null:", "--trace=data"], "'snapshot'", "--trace 'data'"),
        ([*SEND, "--from=snapshot", "--trace=data"], "'snapshot'", "--trace 'data'"),
        ([*SEND, "--device=a/vfio=file:a", "--trace=a"], "'a/vfio'", "--trace 'a'"),
        ([*RECEIVE, "--device=a/vfio=file:x", "--trace=x.part"], "'a/v", "--trace"),
        ([*RECEIVE, "--into=snapshot", "--trace=data"], "'snapshot'", "--trace 'data'"),
    ],
)
def test_one_file_for_two_parts_is_refused(
    here: Path, capsys: Captured, arguments: list[str], one: str, other: str
) -> None:
    line = check_refused(here, capsys, arguments)
    assert " share a file or descriptor; give each its own" in line
    assert one in line
    assert other in line


def test_certificate_is_an_input(here: Path, capsys: Captured) -> None:
    """A trace must not overwrite it."""
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path("ca")
    cert.cert_chain_pems[0].write_to_path("cert")
    cert.private_key_pem.write_to_path("key")
    tls = ["--tls-ca=ca", "--tls-cert=cert", "--tls-key=key"]
    for name in "ca", "cert", "key":
        for command in [*RECEIVE, "--into=s"], [*SEND, "--from=snapshot"]:
            line = check_refused(here, capsys, [*command, *tls, f"--trace={name}"])
            assert "--tls-" in line


@pytest.mark.parametrize("command", [RECEIVE, SEND])
def test_one_descriptor_for_two_devices_is_refused(
    here: Path, capsys: Captured, command: list[str]
) -> None:
    """Also a duplicate of it, where that can be known."""
    read_end, write_end = os.pipe()
    again = os.dup(write_end)
    one, other = socket.socketpair()
    for a, b in [
        (write_end, write_end),
        (write_end, again),
        (read_end, write_end),
        (one.fileno(), one.fileno()),
    ]:
        arguments = [f"--device=a/vfio=fd:{a}", f"--device=b/vfio=fd:{b}"]
        line = check_refused(here, capsys, [*command, *arguments])
        assert "'a/vfio'" in line
        assert "'b/vfio'" in line
    for sock in one, other:
        sock.close()
    for fd in read_end, write_end, again:
        os.close(fd)


def test_descriptor_of_a_file_is_that_file(
    here: Path, capsys: Captured, opened: Callable[[str, int], int]
) -> None:
    fd, again = opened("a", os.O_RDWR), opened("hard", os.O_RDWR)
    data = opened("data", os.O_RDWR)
    for arguments in (
        [*RECEIVE, f"--device=a/vfio=fd:{fd}", "--device=b/vfio=file:soft"],
        [*RECEIVE, f"--device=a/vfio=fd:{fd}", f"--device=b/vfio=fd:{again}"],
        ["save", f"fd:{fd}", "--into=s", "--trace=a"],
        ["load", "snapshot", f"fd:{data}"],
    ):
        assert "share a file" in check_refused(here, capsys, arguments)


def test_descriptor_that_is_not_open_is_refused(here: Path, capsys: Captured) -> None:
    """Else the next file that is opened has its number, as that of the trace."""
    fd = os.open("a", os.O_RDONLY)
    os.close(fd)
    for arguments in (
        ["load", "snapshot", f"fd:{fd}", "--trace=t"],
        [*SEND, f"--device=vfio=vfio:fd:{fd}"],
    ):
        line = check_refused(here, capsys, arguments)
        assert f"no descriptor {fd} is open" in line


def test_source_files_and_dev_null_may_be_shared(
    here: Path, capsys: Captured, opened: Callable[[str, int], int]
) -> None:
    """Files that are only read; what takes everything and keeps nothing."""
    null = [opened("/dev/null", os.O_RDWR) for _ in range(2)]
    for arguments in (
        [*SEND, "--device=a/vfio=file:a", "--device=b/vfio=file:soft"],
        [*SEND, *(f"--device={n}/vfio=fd:{fd}" for n, fd in enumerate(null))],
        [*SEND, "--device=a/vfio=null:", "--device=b/vfio=null:"],
    ):
        # Nobody listens there.
        assert run_command([*arguments, "--quiet"]) == 1
        assert "ECONNREFUSED" in capsys.readouterr().err


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trio_vfio", *arguments]


@pytest.mark.parametrize(("number", "as_json"), [(1, False), (3, True)])
def test_load_to_stdout_says_the_result_on_stderr(
    here: Path, number: int, as_json: bool
) -> None:
    """Under whatever number it is the device's: a file, or a pipe."""
    more = ["--json"] if as_json else []
    command = command_line("load", "snapshot", f"fd:{number}", "--quiet", *more)
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 3>&1', "sh", *command],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == b"state of a"
    if as_json:
        assert json.loads(done.stderr)["status"] == "completed"
    else:
        assert b"completed after " in done.stderr
    with Path("out").open("wb") as file:
        subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" 3>&1', "sh", *command],
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )
    assert Path("out").read_bytes() == b"state of a"


def test_socket_may_be_stdin_and_stdout(here: Path) -> None:
    """As sshd gives it: what is read there and what is written do not mix."""
    ours, theirs = socket.socketpair()

    def run(*arguments: str) -> None:
        command = command_line(*arguments, "--quiet")
        fd = theirs.fileno()
        subprocess.run(command, stdin=fd, stdout=fd, check=True, timeout=60)

    with ours, theirs:
        run("load", "snapshot", "fd:1")
        assert ours.recv(100) == b"state of a"
        ours.sendall(b"state of b")
        ours.shutdown(socket.SHUT_WR)
        run("save", "fd:0", "--into=s")
        assert b"completed after " in ours.recv(1000)
    (data,) = Path("s").glob("*.data")
    assert data.read_bytes() == b"state of b"


def test_devices_on_stderr_are_refused(here: Path) -> None:
    """There errors and progress go; and whatever else is the same file."""
    for redirection in "2>err", "2>&1", ">err 2>&1":
        fd = 2 if redirection == "2>err" else 1
        command = command_line("load", "snapshot", f"fd:{fd}", "--quiet")
        line = f'exec "$@" {redirection}'
        done = subprocess.run(
            ["/bin/sh", "-c", line, "sh", *command],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 2
        said = done.stdout or Path("err").read_bytes()
        assert b"stderr share a file" in said
        assert b"state of a" not in said


def test_file_that_is_stdout_is_refused(here: Path) -> None:
    with Path("out").open("wb") as file:
        done = subprocess.run(
            command_line("load", "snapshot", "file:out", "--quiet"),
            stdout=file,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert b"the device 'DEV' and stdout share a file" in done.stderr


def test_stderr_that_is_closed_is_no_place(here: Path) -> None:
    """Nor a mistake. Its number may be no device's."""
    line = 'exec "$@" 2>&-'
    command = command_line("load", "snapshot", "null:", "--quiet")
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *command],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert b"completed after " in done.stdout


async def test_receive_to_stdout_says_the_result_on_stderr(here: Path) -> None:
    arguments = ["tcp:127.0.0.1:0", "--device=a/vfio=fd:1", "--quiet", "--json"]
    async with running("receive", *arguments) as there:
        address = await there.address()
        async with running("send", address, "--device=a/vfio=file:a", "-q") as source:
            pass
    assert (source.process.returncode, there.process.returncode) == (0, 0)
    assert there.stdout == b"state of a"
    assert json.loads(there.lines[-1])["status"] == "completed"
