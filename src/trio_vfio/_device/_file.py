"""A device that is a file: its data, and its config blob beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, final

import attrs

from ._files import beside, create, sync_directory, write_file
from ._worker import Worker
from ._writing import write_buffers

# In place of a descriptor. System calls refuse it.
_CLOSED: Final = -1


@final
@attrs.define(eq=False)
class FileSink:
    """A sink that keeps raw data in *path* and the config blob in *path*.config.

    Both are written under names that end in ``.part`` and get their own in
    `finish`, where they replace earlier files of these names. All files are
    made with mode 0600. A *path* is for one device and one migration at a time.

    Args:
      path: where the data goes. Its directory must be there at `begin`.
      before_open: called in a worker thread, in `begin`, before anything is
        opened; what it raises fails `begin`.
      before_remove: called in a worker thread, in `abort`, before any file is
        removed; what it raises fails `abort`, but the files are removed.
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
    _has_config: bool = attrs.field(default=False, init=False)
    _placed: list[Path] = attrs.field(factory=list[Path], init=False)

    @property
    def config_path(self) -> Path:
        """Where the config blob is after `finish`, if one came."""
        return beside(self.path, ".config")

    async def begin(self) -> None:
        """Open the data file under its temporary name.

        After a migration that has failed, or any other, this starts afresh. If this
        fails or is cancelled, there is no such file.

        Raises:
          OSError: if it cannot be made.
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

        After `finish` the files are removed under their own names. Earlier files
        that they had replaced do not come back.

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
        self._has_config = False
        self._placed.clear()
        # Left by a process that was killed; nobody else would remove it if no
        # config blob comes this time.
        self._config_part.unlink(missing_ok=True)
        self._fd = create(self._data_part)

    def _write_config(self, blob: bytes) -> None:
        write_file(self._config_part, blob)
        self._has_config = True

    def _place(self) -> None:
        # Success makes the source drop its guest. This may then be the only
        # copy, which must not be lost to a power failure.
        os.fsync(self._fd)
        self._close()
        # The data comes last: a new data file has its config.
        if self._has_config:
            self._rename(self._config_part, self.config_path)
        else:
            self.config_path.unlink(missing_ok=True)
        self._rename(self._data_part, self.path)
        sync_directory(self.path.parent)

    def _rename(self, part: Path, final_path: Path) -> None:
        part.replace(final_path)
        self._placed.append(final_path)

    def _close(self) -> None:
        if self._fd != _CLOSED:
            fd, self._fd = self._fd, _CLOSED
            os.close(fd)

    def _remove(self) -> None:
        with ExitStack() as stack:
            for path in (self._data_part, self._config_part, *self._placed):
                stack.callback(path.unlink, missing_ok=True)
            stack.callback(self._close)
            if self._before_remove is not None:
                stack.callback(self._before_remove)
