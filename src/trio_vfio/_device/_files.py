"""Files as devices write them: private, whole, durable, their own; and as they read."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, suppress
from io import BufferedReader
from pathlib import Path
from typing import Final

import attrs

from ._locks import busy, lock

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

# O_NONBLOCK: to open a FIFO is to wait until it has a writer.
_READ: Final = os.O_NONBLOCK | os.O_NOCTTY

_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)


def beside(path: Path, suffix: str) -> Path:
    """Return the path of the file that is called as *path* with *suffix*."""
    return path.with_name(path.name + suffix)


def create(path: Path) -> int:
    """Open *path* for writing as a new file that only its owner may read.

    A file that is there is removed: a guest's memory must neither get the mode
    of what another program left behind, nor go wherever a link of it points.
    """
    path.unlink(missing_ok=True)
    return os.open(path, _CREATE, 0o600)


def claim(path: Path) -> int:
    """Open *path* as `create` does, and keep other runs from it until that is closed.

    Raises:
      OSError: if it cannot be made. EBUSY if another run has it.
    """
    with ExitStack() as stack:
        # Left by a process that was killed, or another run is writing it.
        if path.is_file() and not path.is_symlink():
            with suppress(FileNotFoundError, PermissionError):
                left = os.open(path, _READ | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, left)
                lock(left, path)
        fd = create(path)
        try:
            lock(fd, path)
            if not FileId.of(os.fstat(fd)).is_at(path):
                raise busy(fd, path)
        except BaseException:
            os.close(fd)
            raise
    return fd


@attrs.frozen
class FileId:
    """What tells a file from one that gets its name or its inode after it."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileId:
        """Return that of the file with this status, which is not written any more."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def is_at(self, path: Path) -> bool:
        """Whether *path* is the name of this file."""
        try:
            return FileId.of(path.lstat()) == self
        except FileNotFoundError:
            return False


def remove_own(path: Path, own: FileId) -> None:
    """Remove *path* if it is still the file *own*, not one that was made since.

    Raises:
      OSError: if it cannot be removed.
    """
    if not own.is_at(path):
        return
    # Between the look and the removal another run may place its file. So the file is
    # removed under a name that nobody else uses, or gets its own back.
    taken = beside(path, f".{own.inode:x}.gone")
    try:
        path.rename(taken)
    except FileNotFoundError:
        return
    if not own.is_at(taken):
        with suppress(FileExistsError):
            os.link(taken, path, follow_symlinks=False)
    taken.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Check that a file may take the place of what *path* is, if that is there.

    Raises:
      OSError: (EINVAL, EISDIR) if that is neither a file nor a link to one.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    for is_kind, name in _KINDS:
        if is_kind(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise _not_a_file(path, number, name)
    if _is_link_to_descriptor(path):
        raise _not_a_file(path, errno.EINVAL, "a link to an open descriptor")


def _not_a_file(path: Path, number: int, kind: str) -> OSError:
    advice = "name a file in it"
    if number != errno.EISDIR:
        advice = "use fd:N with an open descriptor, or null: to drop the state"
    return OSError(number, f"{kind}, which no file may replace; {advice}", str(path))


def _is_link_to_descriptor(path: Path) -> bool:
    """Whether *path* is, by way of links, one of ``/proc/PID/fd``; as /dev/stdout."""
    for _ in range(40):
        parent = path.parent.resolve()
        if parent.parts[:2] == ("/", "proc"):
            return True
        if not path.is_symlink():
            return False
        path = parent / path.readlink()
    return False


def write_file(path: Path, data: bytes) -> None:
    """Write *data* to *path* as a new file, and see it on disk.

    If this fails, the file is removed.
    """
    try:
        with os.fdopen(create(path), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """See on disk what was made, renamed and removed in the directory *path*."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: Path, *, follow_links: bool = True) -> BufferedReader:
    """Open *path* for reading.

    Args:
      follow_links: whether *path* may be a symbolic link.

    Raises:
      OSError: if it cannot be opened. EINVAL if it is neither a file nor a
        directory; ELOOP if it is a link and must not be.
    """
    no_links = 0 if follow_links else os.O_NOFOLLOW

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | _READ | no_links)

    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", opener=opener))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        stack.pop_all()
        return file


def read_at_most(path: Path, limit: int, *, follow_links: bool = True) -> bytes:
    """Return what is in *path*.

    Raises:
      OSError: if it cannot be opened or read, as `open_regular`.
      ValueError: if it holds more than *limit* bytes. Memory is taken for no
        more than that.
    """
    with open_regular(path, follow_links=follow_links) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: larger than {limit} bytes")
    return data
