"""Locks that keep two runs from writing to the same place.

They are those of flock(2), on what is written itself: no file of their own, and gone
with the process that holds them, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, final

import attrs

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def lock(fd: int, path: Path) -> bool:
    """Lock the file or directory that *fd* is open on, until *fd* is closed.

    Args:
      path: its name, for the error.

    Returns: whether it is locked. Some file systems have no locks.

    Raises:
      OSError: (EBUSY) if it is locked already; names the process that has locked it,
        if that can be known.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy(fd, path) from None
    except OSError:
        return False
    return True


def busy(fd: int, path: Path) -> OSError:
    """Return the error for *path*, which somebody else is writing."""
    pid = next(_holders(os.fstat(fd)), None)
    who = "another process" if pid is None else f"process {pid}"
    if pid == os.getpid():
        who = "another migration of this process"
    advice = "wait until that has ended, or choose another place"
    return OSError(errno.EBUSY, f"{who} is writing there; {advice}", str(path))


def _holders(status: os.stat_result) -> Iterator[int]:
    """Find the processes that hold a lock of a file, as far as that can be known."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF
        _, kind, *words = line.split()
        # A line of one that waits has an arrow there.
        if kind != "FLOCK":
            continue
        pid, where = int(words[2]), words[3]
        device, _, inode = where.rpartition(":")
        # 0: in another PID namespace.
        if int(inode) != status.st_ino or pid <= 0:
            continue
        if _number(device) == status.st_dev or _has_open(pid, status):
            yield pid


def _number(device: str) -> int:
    major, minor = device.split(":")
    return os.makedev(int(major, 16), int(minor, 16))


def _has_open(pid: int, status: os.stat_result) -> bool:
    """Whether a process has that file open. False if it cannot be asked.

    Needed for btrfs and overlayfs, where stat(2) tells another device than locks do.
    """
    with suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(each.stat(), status):
                    return True
    return False


@final
@attrs.define(eq=False)
class DirectoryLock:
    """A lock of a directory. It goes with the object, at the latest."""

    is_exclusive: bool
    """False on a file system that has no locks."""
    made: bool
    """Whether the directory was made for it."""
    _close: weakref.finalize[[int], DirectoryLock] = attrs.field(init=False)
    _fd: int = attrs.field(alias="fd")

    def __attrs_post_init__(self) -> None:
        self._close = weakref.finalize(self, os.close, self._fd)

    def release(self) -> None:
        """Let others have the directory."""
        self._close()


def lock_directory(path: Path) -> DirectoryLock:
    """Lock the directory *path*. It is made if it is not there, with mode 0700.

    Raises:
      OSError: if it cannot be made. EBUSY if it is locked already.
    """
    made = not path.exists()
    while True:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, _DIRECTORY)
        try:
            is_exclusive = lock(fd, path)
            current = _is_at(fd, path)
        except BaseException:
            os.close(fd)
            raise
        if current:
            return DirectoryLock(is_exclusive, made, fd)
        # Its last holder has removed it in between.
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
