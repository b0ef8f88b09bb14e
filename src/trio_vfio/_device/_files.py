"""Files as devices write them: private, whole, and durable."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


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
