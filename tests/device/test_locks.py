"""Contract: who has a lock, and directories that go while they are locked."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from trio_vfio._device import _files, _locks
from trio_vfio._device._locks import lock, lock_directory


def locks_are(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """Let /proc/locks say *text*, or be missing."""

    def read_text(path: Path, encoding: str) -> str:
        assert (str(path), encoding) == ("/proc/locks", "ascii")
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read_text)


def refusal(path: Path) -> str:
    """Return what a second lock of *path* says."""
    first, second = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    try:
        assert lock(first, path)
        with pytest.raises(OSError, match="is writing there; wait until") as raised:
            lock(second, path)
        assert raised.value.errno == errno.EBUSY
        return str(raised.value.strerror)
    finally:
        os.close(first)
        os.close(second)


def test_holder_of_a_lock_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith("another migration of this process is")


@pytest.mark.parametrize(
    ("line", "who"),
    [
        (None, "another process"),
        ("", "another process"),
        ("1: POSIX  ADVISORY  WRITE {pid} {device}:{inode} 0 EOF\n", "another process"),
        ("1: FLOCK  ADVISORY  WRITE 4711 {device}:{inode} 0 EOF\n", "process 4711"),
        ("1: FLOCK  ADVISORY  WRITE 4711 {device}:1 0 EOF\n", "another process"),
        # Of another PID namespace.
        ("1: FLOCK  ADVISORY  WRITE 0 {device}:{inode} 0 EOF\n", "another process"),
        ("1: FLOCK  ADVISORY  WRITE -1 {device}:{inode} 0 EOF\n", "another process"),
        # Another waits for it.
        (
            "1: -> FLOCK  ADVISORY  WRITE 1 {device}:{inode} 0 EOF\n"
            "2: FLOCK  ADVISORY  WRITE 4711 {device}:{inode} 0 EOF\n",
            "process 4711",
        ),
        # On overlayfs the device differs, so it must have the directory open.
        (
            "1: FLOCK  ADVISORY  WRITE 4194304 00:ff:{inode} 0 EOF\n"
            "2: FLOCK  ADVISORY  WRITE {child} 00:ff:{inode} 0 EOF\n"
            "3: FLOCK  ADVISORY  WRITE {pid} 00:ff:{inode} 0 EOF\n",
            "another migration of this process",
        ),
    ],
)
def test_holder_is_named_as_far_as_it_can_be_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str | None, who: str
) -> None:
    status = tmp_path.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    # It has nothing of ours open.
    child = os.posix_spawn(
        sys.executable, [sys.executable, "-c", "input()"], {}, setpgroup=0
    )
    try:
        if line is not None:
            line = line.format(
                pid=os.getpid(), child=child, device=device, inode=status.st_ino
            )
        locks_are(monkeypatch, line)
        assert refusal(tmp_path).startswith(f"{who} is")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.parametrize("again", [False, True])
def test_directory_that_its_last_holder_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    path = tmp_path / "snapshot"
    locked: list[int] = []

    def lock_late(fd: int, where: Path) -> bool:
        if not locked:
            path.rmdir()
            if again:
                path.mkdir(mode=0o700)
        locked.append(fd)
        return lock(fd, where)

    monkeypatch.setattr(_locks, "lock", lock_late)
    held = lock_directory(path)
    assert len(locked) == 2
    assert held.made
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    held.release()
    held.release()


def test_file_that_another_run_takes_meanwhile_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"

    def lock_late(fd: int, where: Path) -> bool:
        where.unlink()
        where.write_bytes(b"another's")
        return lock(fd, where)

    monkeypatch.setattr(_files, "lock", lock_late)
    with pytest.raises(OSError, match="is writing there"):
        _files.claim(path)
    assert path.read_bytes() == b"another's"


def test_file_that_goes_before_it_is_removed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"own")
    own = _files.FileId.of(path.lstat())
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        self.unlink()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    _files.remove_own(path, own)
    assert os.listdir(tmp_path) == []


def test_links_that_do_not_end_replace_nothing(tmp_path: Path) -> None:
    path = tmp_path / "loop"
    path.symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links") as raised:
        _files.check_replaceable(path)
    assert raised.value.errno == errno.ELOOP
