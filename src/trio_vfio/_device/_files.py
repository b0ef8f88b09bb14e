"""Files as devices write them: private, whole, and durable; and as they read them."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, suppress
from io import BufferedReader
from pathlib import Path
from typing import Final

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

# O_NONBLOCK: to open a FIFO is to wait until it has a writer.
_READ: Final = os.O_NONBLOCK | os.O_NOCTTY


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
