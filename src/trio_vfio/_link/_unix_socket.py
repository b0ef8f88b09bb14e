"""Binding a unix socket to a path where a killed process has left one.

A socket file stays when its process is killed, and bind() then says EADDRINUSE for ever.
QEMU removes whatever is there. Here a file is removed only if it is a socket that no
process has open.

Two processes that start at once may both find the dead socket. If the second removed
what it found by its path, it would remove the socket that the first has bound there
meanwhile. So the look, the removal and the bind are done by one process at a time. It
holds a name for that in the abstract namespace: the kernel frees such a name when the
process ends, however it ends, and it leaves no file. A process that finds the name taken
need not wait, because another one is about to listen.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager


def bind(sock: socket.socket, path: str) -> None:
    """Bind *sock* to *path*, in place of a dead socket if there is one.

    If this fails, *path* is as it was, or a dead socket is gone from there.

    Raises:
      OSError: if that is not possible. EADDRINUSE if a process has a socket there, and if
        there is something else than a socket; the text says which.
    """
    if _try_bind(sock, path):
        return
    with _one_at_a_time(path):
        _remove_dead(path)
        if not _try_bind(sock, path):
            # A process has found nothing there after the removal, and was first.
            raise _in_use("a process listens there")


@contextmanager
def _one_at_a_time(path: str) -> Generator[None]:
    """Keep other processes from replacing the socket at *path* during the block.

    Raises:
      OSError: EADDRINUSE if one does so.
    """
    directory = os.stat(os.path.dirname(path) or os.curdir)
    key = f"{directory.st_dev} {directory.st_ino} {os.path.basename(path)}"
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()
    with socket.socket(socket.AF_UNIX) as lock:
        if not _try_bind(lock, f"\0trio-vfio {digest}"):
            raise _in_use("another process is about to listen there")
        yield


def _try_bind(sock: socket.socket, name: str) -> bool:
    """Bind *sock*. Returns whether *name* was free."""
    try:
        sock.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _remove_dead(path: str) -> None:
    """Remove the socket at *path* if no process has it open.

    Raises:
      OSError: EADDRINUSE if one has, or if *path* is no socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _in_use("it is no socket")
    if not _is_dead(path):
        raise _in_use("a process listens there")
    os.unlink(path)


def _is_dead(path: str) -> bool:
    """Return whether no process has the socket at *path* open.

    Raises:
      OSError: if that cannot be known, as without permission to write to it.
    """
    # A datagram socket cannot be connected to one of streams: EPROTOTYPE says that
    # there is one. So this is no connection for a listener, which a QEMU would take for
    # its source, and it finds a socket that is bound and does not listen yet, too.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.EPROTOTYPE):
                raise
            return error.errno == errno.ECONNREFUSED
    return False


def _in_use(why: str) -> OSError:
    return OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}, {why}")
