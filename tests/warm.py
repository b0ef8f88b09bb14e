"""Python processes that need not import any more.

To import what the command and the examples need takes most of the time of a short test,
and seconds where processors are emulated. Here a process imports it once and waits. A
command of a test is forked from it: as a child of ours, with the arguments, environment,
directory and descriptors that it would have had, and as the main module of its process.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

_PR_SET_CHILD_SUBREAPER: Final = 36
_MODULE: Final = "trio_vfio"
_SCRIPTS: Final = Path(__file__).parents[1] / "examples"
_SUBCOMMANDS: Final = ("_main", "_devices", "_load", "_receive", "_save", "_send")
_PYTHON: Final = sys.executable
"""As it was before any test replaced it."""
_IMPORTED: Final = (
    *(f"{_MODULE}._cli.{name}" for name in _SUBCOMMANDS),
    *("argparse", "asyncio", "qemu.qmp", "tempfile"),
)
_MESSAGE: Final = 1 << 17
_MOST_FDS: Final = 64
_ABOVE: Final = 512
"""Higher numbers than a test's descriptors have."""


@contextmanager
def warm_processes() -> Generator[type[subprocess.Popen[Any]]]:
    """Return what to replace `subprocess.Popen` with, while the block runs.

    It starts the command and the examples in this way, if Python is given ``-W error``
    and has its usual environment, and everything else as ever.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Orphans become our children, and what is forked for us is one.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    words = ("-W", "error", "-m", __name__, str(there.fileno()))
    server = subprocess.Popen(
        (_PYTHON, *words),
        cwd=_SCRIPTS.parent,
        pass_fds=[there.fileno()],
        # As to a pipe, Python writes to it in blocks.
        stdout=subprocess.DEVNULL,
    )
    python = _of_python(os.environ)
    with here, server:
        there.close()
        lock = threading.Lock()

        class Popen(subprocess.Popen[Any]):
            def _execute_child(self, args: Any, *options: Any) -> None:
                program = _program(args)
                executable, preexec, _, pass_fds, directory, env, *_ = options
                if env is None:
                    env = os.environ
                is_usual = executable is preexec is None and _of_python(env) == python
                if program is None or not is_usual:
                    super()._execute_child(args, *options)  # type: ignore[misc]
                    return
                pipes = options[9:15]
                stdin, _, _, stdout, _, stderr = pipes
                fds = {
                    number: number if pipe == -1 else pipe
                    for number, pipe in enumerate((stdin, stdout, stderr))
                } | {fd: fd for fd in pass_fds}
                request = {
                    "program": program,
                    "fds": list(fds),
                    "directory": str(directory or os.getcwd()),
                    "env": dict(env),
                }
                with lock:
                    socket.send_fds(
                        here, [json.dumps(request).encode()], [*fds.values()]
                    )
                    self.pid = int(here.recv(_MESSAGE))
                self._child_created = True
                self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

        try:
            yield Popen
        finally:
            here.close()
            server.wait()


def _of_python(env: Mapping[str, str]) -> dict[str, str]:
    """Return what Python reads when it starts, before any of our code runs."""
    return {name: env[name] for name in env if name.startswith("PYTHON")}


def _program(args: object) -> list[str] | None:
    """Return ``-u`` or nothing, then ``-m`` and module, or script, then arguments.

    Returns: None for a command that is not one of those that are known here.
    """
    if not isinstance(args, Sequence) or args[0] != _PYTHON:
        return None
    words = [str(each) for each in args[1:]]
    unbuffered = words[:1] if words[:1] == ["-u"] else []
    del words[: len(unbuffered)]
    if words[:2] != ["-W", "error"]:
        return None
    del words[:2]
    if words[:2] == ["-m", _MODULE] or Path(*words[:1]).parent == _SCRIPTS:
        return unbuffered + words
    return None


def _serve(requests: socket.socket) -> None:
    """Fork what is asked for, and answer with its number, until nobody asks."""
    while True:
        message, fds, _, _ = socket.recv_fds(requests, _MESSAGE, _MOST_FDS)
        if not message:
            requests.close()
            return
        reader, writer = os.pipe()
        between = os.fork()
        if not between:
            child = os.fork()
            if not child:
                requests.detach()
                _run(json.loads(message), fds)
            os.write(writer, b"%d" % child)
            os._exit(0)
        # It is nobody's child now, and whoever has asked takes it.
        os.waitpid(between, 0)
        requests.send(os.read(reader, 100))
        for fd in (reader, writer, *fds):
            os.close(fd)


def _run(request: dict[str, Any], received: list[int]) -> NoReturn:
    """Be the program that is asked for."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _ABOVE) for fd in received]
    os.closerange(0, _ABOVE)
    for fd, number in zip(high, request["fds"], strict=True):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["env"])
    # Nobody who only waits is to be interrupted, but this one is to be.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = request["program"]
    if program[0] == "-u":
        del program[0]
        assert isinstance(sys.stdout, io.TextIOWrapper)
        sys.stdout.reconfigure(line_buffering=True)
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")
    sys.exit()


def _import() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    # No page of it need be copied because objects are looked at.
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import()
    _serve(socket.socket(fileno=int(sys.argv[1])))
