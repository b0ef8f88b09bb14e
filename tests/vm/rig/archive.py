"""What the VM finds in its root directory: archives that its kernel unpacks.

Several, one behind the other in one file, are an initramfs. The VM then needs no disks,
and its kernel neither drivers nor file systems for any.

Linux: Documentation/driver-api/early-userspace/buffer-format.rst
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO


def make_archive(to: Path, folders: Mapping[str, Path]) -> None:
    """Write an archive.

    Args:
      to: its file.
      folders: what is to be in it. The keys say where in the VM: ``project/src``, or
        nothing for the root directory itself.
    """
    with to.open("wb") as out:
        for where, folder in folders.items():
            for parent in reversed(Path(where).parents[:-1]):
                _write_entry(out, str(parent), stat.S_IFDIR | 0o755, b"")
            if where:
                _write_file(out, where, folder)
            for path in _walk(folder):
                _write_file(out, str(Path(where) / path.relative_to(folder)), path)
        _write_entry(out, "TRAILER!!!", 0, b"")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all in *folder*, each directory before what is in it."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _write_file(out: BinaryIO, name: str, path: Path) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        _write_entry(out, name, mode, os.fsencode(path.readlink()))
    else:
        _write_entry(out, name, mode, path.read_bytes() if stat.S_ISREG(mode) else b"")


def _write_entry(out: BinaryIO, name: str, mode: int, data: bytes) -> None:
    encoded = os.fsencode(name) + b"\0"
    numbers = [0] * 13
    numbers[1], numbers[4], numbers[6], numbers[11] = mode, 1, len(data), len(encoded)
    out.write(b"070701" + b"".join(b"%08x" % number for number in numbers))
    # Both are followed by zeros up to a multiple of four; a header has 110 bytes.
    out.write(encoded + bytes(-(110 + len(encoded)) % 4))
    out.write(data + bytes(-len(data) % 4))
