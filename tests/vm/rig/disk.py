"""Disks of the VM."""

from __future__ import annotations

from pathlib import Path

from .host import commands

_MIB = 1 << 20


def make_disk(disk: Path, folder: Path, log: Path, *, spare: int) -> None:
    """Make *disk* of the files in *folder*, with room for *spare* MiB more.

    Raises:
      RigError: if that fails.
    """
    paths = list(folder.rglob("*"))
    # Each file takes whole blocks, an inode and a place in its directory.
    size = sum(path.lstat().st_size + 8192 for path in paths)
    size += size // 8 + spare * _MIB
    with disk.open("wb") as file:
        file.truncate(-(-size // _MIB) * _MIB)
    commands.run(
        (
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext2",
            "-m",
            "0",
            "-i",
            "8192",
            "-d",
            folder,
            disk,
        ),
        log,
        failure=f"cannot make {disk.name}",
    )
