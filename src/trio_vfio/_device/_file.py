"""A device that is a file: its data, and its config blob beside it."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, final

import attrs
import trio

from ._files import (
    FileId,
    beside,
    check_replaceable,
    claim,
    remove_own,
    sync_directory,
    write_file,
)
from ._worker import Worker
from ._writing import write_buffers

# In place of a descriptor. System calls refuse it.
_CLOSED: Final = -1

_GRACE: Final = 10.0
"""Seconds that a block may take to end which is cancelled."""


@final
@attrs.define(eq=False)
class FileSink:
    """A sink that keeps raw data in *path* and the config blob in *path*.config.

    Both are written under names that end in ``.part`` and get their own in
    `finish`, where they replace earlier files of these names. All files are
    made with mode 0600. A *path* is for one device and one migration at a time:
    the data is locked while it is written, and a second `begin` fails.

    Only regular files, and links, are replaced. For a device node, a FIFO or a
    socket there is `FdSink`.

    Args:
      path: where the data goes. Its directory must be there at `begin`.
      before_open: called in a worker thread, in `begin`, before anything is
        opened; what it raises fails `begin`.
      before_remove: called in a worker thread, in `abort`, before any file is
        removed, and in a `begin` that fails after *before_open*; what it raises
        fails `abort`, but the files are removed.
    """

    path: Path = attrs.field(converter=Path, on_setattr=attrs.setters.frozen)
    """Where the data is after `finish`."""
    _before_open: Callable[[], None] | None = attrs.field(
        default=None, alias="before_open", kw_only=True
    )
    _before_remove: Callable[[], None] | None = attrs.field(
        default=None, alias="before_remove", kw_only=True
    )

    precopy: bool | None = attrs.field(default=None, init=False)
    """Always None: a file takes data whenever it comes."""
    _worker: Worker = attrs.field(factory=Worker, init=False)
    _fd: int = attrs.field(default=_CLOSED, init=False)
    _config: FileId | None = attrs.field(default=None, init=False)
    """The config file, once it is written."""
    _placed: dict[Path, FileId] = attrs.field(factory=dict[Path, FileId], init=False)
    _keeps: bool = attrs.field(default=False, init=False)
    """Whether files that are replaced are kept until a block ends."""
    _earlier: dict[Path, Path] = attrs.field(factory=dict[Path, Path], init=False)
    """Where they are meanwhile, by their names."""

    @property
    def config_path(self) -> Path:
        """Where the config blob is after `finish`, if one came."""
        return beside(self.path, ".config")

    @asynccontextmanager
    async def keeping_earlier(self) -> AsyncGenerator[None]:
        """Keep the files that `finish` replaces, for `abort` to bring back.

        A migration may fail after this device has finished, by another device. The
        files are kept until the block ends, so put the whole migration into it. They
        get a second name that ends in ``.old``; where a file system has no hard
        links, they are not kept. If the block is cancelled, its end is the same.
        """
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            with trio.move_on_after(_GRACE, shield=True):
                await self._worker.run_abort(self._drop_earlier)

    async def begin(self) -> None:
        """Open the data file under its temporary name.

        After a migration that has failed, or any other, this starts afresh. If this
        fails or is cancelled, there is no such file.

        Raises:
          OSError: if it cannot be made. EBUSY if another run is writing it; EINVAL
            or EISDIR if what is there is no file.
        """
        await self._worker.restart()
        await self._worker.run(self._open)

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Append all of *buffers* to the data file, in a worker thread.

        If this fails or is cancelled, part of them may be in the file.

        Raises:
          OSError: if a write fails; the text says how much of the buffer was
            written. ECANCELED if the device was aborted.
        """
        await self._worker.run(write_buffers, self._fd, buffers, self._worker.check)

    async def load_config(self, blob: bytes) -> None:
        """Write *blob* to the config file under its temporary name.

        If this fails, or is cancelled before it began, there is no such file.

        Raises:
          OSError: if it cannot be made or written.
        """
        await self._worker.run(self._write_config, blob)

    async def finish(self) -> None:
        """See both files on disk and give them their names.

        Without a config blob, an earlier config file is removed. If this fails,
        some of that may be done: `abort` undoes it. If cancelled, all of it is
        done or nothing.

        Raises:
          OSError: if a file cannot be written out or renamed.
        """
        await self._worker.run(self._place)

    async def abort(self) -> None:
        """End a call that is under way, and remove every file of this device.

        After `finish` the files are removed under their own names, unless another
        run has replaced them since. Earlier files that they had replaced come back
        only in a block of `keeping_earlier`.

        If cancelled, the call ends all the same, but files may stay.

        Raises:
          OSError: if a file cannot be removed; the others are.
        """
        self._worker.stop()
        # Not before: the thread would go on with a descriptor that may by then
        # be another file's.
        await self._worker.wait_idle()
        await self._worker.run_abort(self._remove)

    # What follows runs in worker threads.

    @property
    def _data_part(self) -> Path:
        return beside(self.path, ".part")

    @property
    def _config_part(self) -> Path:
        return beside(self.config_path, ".part")

    def _open(self) -> None:
        if self._before_open is not None:
            self._before_open()
        # Of another migration: no concern of this one's `finish` and `abort`.
        self._close()
        self._config = None
        self._placed.clear()
        try:
            self._create()
        except BaseException:
            if self._before_remove is not None:
                self._before_remove()
            raise

    def _create(self) -> None:
        for path in (self.path, self.config_path, self._data_part, self._config_part):
            check_replaceable(path)
        self._fd = claim(self._data_part)
        # Left by a process that was killed; nobody else would remove it if no
        # config blob comes this time.
        self._config_part.unlink(missing_ok=True)

    def _write_config(self, blob: bytes) -> None:
        write_file(self._config_part, blob)
        self._config = FileId.of(self._config_part.lstat())

    def _place(self) -> None:
        # Success makes the source drop its guest. This may then be the only
        # copy, which must not be lost to a power failure.
        os.fsync(self._fd)
        data = FileId.of(os.fstat(self._fd))
        # The data comes last: a new data file has its config.
        if self._config is not None:
            self._rename(self._config_part, self.config_path, self._config)
        else:
            self._keep(self.config_path)
            self.config_path.unlink(missing_ok=True)
        self._rename(self._data_part, self.path, data)
        # Locked until here: from now on another run may have the temporary name.
        self._close()
        sync_directory(self.path.parent)

    def _rename(self, part: Path, final_path: Path, own: FileId) -> None:
        check_replaceable(final_path)
        self._keep(final_path)
        part.replace(final_path)
        self._placed[final_path] = own

    def _keep(self, path: Path) -> None:
        if self._keeps:
            kept = beside(path, f".{secrets.token_hex(4)}.old")
            with suppress(OSError):
                os.link(path, kept, follow_symlinks=False)
                self._earlier[path] = kept

    def _bring_back(self) -> None:
        for path, kept in self._earlier.items():
            # Unless another run has put something there since.
            with suppress(FileExistsError):
                os.link(kept, path, follow_symlinks=False)
        if self._earlier:
            sync_directory(self.path.parent)
        self._drop_earlier()

    def _drop_earlier(self) -> None:
        while self._earlier:
            _, kept = self._earlier.popitem()
            kept.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd != _CLOSED:
            fd, self._fd = self._fd, _CLOSED
            os.close(fd)

    def _remove(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._bring_back)
            for path, own in self._placed.items():
                stack.callback(remove_own, path, own)
            # Closed after the others, for until then no other run has these names.
            stack.callback(self._close)
            if self._fd != _CLOSED:
                for path in (self._data_part, self._config_part):
                    stack.callback(path.unlink, missing_ok=True)
            if self._before_remove is not None:
                stack.callback(self._before_remove)
