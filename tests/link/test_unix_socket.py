"""Collaboration: a unix socket where another process has left one.

The invariants: of those that listen at one path at most one is found there, and it can
be reached; a file that is no socket is never removed.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from trio_vfio._link import _unix_socket
from trio_vfio._link._address import UnixAddress, connect, listening

TAKEN: Final = "Address already in use, a process listens there"
KILLED: Final = """
import os, signal, socket, sys
socket.socket(socket.AF_UNIX, getattr(socket, sys.argv[2])).bind(sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


def leave_dead(path: str, kind: str = "SOCK_STREAM") -> None:
    """Leave at *path* what a killed process leaves."""
    ran = subprocess.run([sys.executable, "-c", KILLED, path, kind], check=False)
    assert ran.returncode < 0
    assert os.path.exists(path)


def is_socket(path: str) -> bool:
    return Path(path).is_socket()


async def check_refused(path: str, text: str) -> None:
    address = UnixAddress(path)
    with pytest.raises(OSError, match=re.escape(text)) as info:
        async with listening(address):
            pass
    error = info.value
    assert (error.errno, error.filename) == (errno.EADDRINUSE, str(address))


async def check_reached(path: str) -> None:
    address = UnixAddress(path)
    async with listening(address) as (listener,):
        assert os.stat(path).st_mode & 0o777 == 0o600
        async with await connect(address) as here, await listener.accept() as there:
            await here.send_all(b"x")
            assert await there.receive_some() == b"x"
    assert not is_socket(path)


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
async def test_dead_socket_is_replaced(kind: str, path: str) -> None:
    leave_dead(path, kind)
    await check_reached(path)


async def test_dead_socket_is_replaced_at_a_relative_path(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_dead(path)
    monkeypatch.chdir(os.path.dirname(path))
    await check_reached("socket")


async def test_live_socket_is_refused_and_not_disturbed(path: str) -> None:
    """Its process sees no connection, which a QEMU would take for its source."""
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(path)
        live.listen(0)
        live.setblocking(False)
        await check_refused(path, TAKEN)
        with pytest.raises(BlockingIOError):
            live.accept()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


async def test_socket_that_does_not_listen_yet_is_refused(path: str) -> None:
    """Its process is between bind() and listen()."""
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(path)
        await check_refused(path, TAKEN)
        live.listen()


async def test_datagram_socket_is_refused(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
        live.bind(path)
        await check_refused(path, TAKEN)
    assert is_socket(path)


def _file(path: str) -> None:
    Path(path).write_text("precious")


def _link_to_dead(path: str) -> None:
    leave_dead(f"{path}.target")
    os.symlink(f"{path}.target", path)


@pytest.mark.parametrize("make", [_file, os.mkdir, os.mkfifo, _link_to_dead])
async def test_file_that_is_no_socket_is_refused_and_stays(
    make: Callable[[str], None], path: str
) -> None:
    make(path)
    before = os.lstat(path)
    await check_refused(path, "Address already in use, it is no socket")
    assert os.path.samestat(os.lstat(path), before)


async def test_two_that_start_at_once_do_not_remove_each_other(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes when the first has found the dead socket."""
    leave_dead(path)
    unlink = os.unlink
    refused = []

    def start_another(victim: str) -> None:
        monkeypatch.undo()
        with socket.socket(socket.AF_UNIX) as second:
            with pytest.raises(OSError, match="another process is about to listen"):
                _unix_socket.bind(second, path)
            refused.append(second)
        unlink(victim)

    monkeypatch.setattr(os, "unlink", start_another)
    await check_reached(path)
    assert refused


async def test_socket_that_is_made_after_the_removal_is_not_removed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process finds nothing there, and so does not look for a dead one."""
    leave_dead(path)
    unlink = os.unlink
    with socket.socket(socket.AF_UNIX) as other:

        def bind_another(victim: str) -> None:
            unlink(victim)
            other.bind(path)
            other.listen()

        monkeypatch.setattr(os, "unlink", bind_another)
        await check_refused(path, TAKEN)
        monkeypatch.undo()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


async def test_socket_that_is_removed_meanwhile_is_no_hindrance(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends has removed it between our first bind() and our look."""
    leave_dead(path)
    lstat = os.lstat

    def remove(victim: str) -> os.stat_result:
        os.unlink(victim)
        return lstat(victim)

    monkeypatch.setattr(os, "lstat", remove)
    await check_reached(path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
async def test_what_cannot_be_known_is_not_removed(
    number: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a socket of another user's."""
    leave_dead(path)

    class Probe(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", Probe)
    with pytest.raises(OSError, match=os.strerror(number)) as info:
        async with listening(UnixAddress(path)):
            pass
    assert info.value.filename == f"unix:{path}"
    monkeypatch.undo()
    await check_reached(path)


async def test_path_that_cannot_be_bound_is_an_error_as_it_is(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="No such file"):
        async with listening(UnixAddress(f"{path}/socket")):
            pass
