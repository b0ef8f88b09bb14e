"""A source that is a file: its data, and its config blob beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Final, final

import attrs
import trio

from ._expected import Expected
from ._files import beside, open_regular, read_at_most
from ._port import Buffers, Pending
from ._precopy import PreCopy
from ._reading import read_all, read_buffers
from ._worker import Worker

# What a destination takes: ours, and QEMU's is far below it.
MAX_CONFIG: Final = 1024 * 1024


@final
@attrs.define(eq=False)
class FileSource:
    """A source of raw data in *path* and a config blob in *path*.config.

    That is how a `FileSink` leaves them. Without a config file the blob is
    empty. A file that differs from what is said of it fails the migration before
    the destination can accept any of it: by its size in `begin`, the config in
    `begin` too, and the data where it ends, before the config goes out.

    Args:
      path: where the data is.
      precopy_bytes: how much of the data may be read before `stop`. A file that
        has less ends early.
      size: how many bytes of data there must be; None if that is not known.
      sha256: the SHA-256 they must have, in hex; None if that is not known.
      config_size: as *size*, for the config; 0 if there must be none.
      config_sha256: as *sha256*, for the config.
      follow_links: whether the files may be symbolic links.

    Raises:
      ValueError: if *precopy_bytes* is negative.
    """

    path: Path = attrs.field(converter=Path, on_setattr=attrs.setters.frozen)
    """Where the data is."""
    precopy_bytes: int = attrs.field(
        default=0,
        kw_only=True,
        validator=attrs.validators.ge(0),
        on_setattr=attrs.setters.frozen,
    )
    """How much of the data may be read before `stop`."""
    _size: int | None = attrs.field(alias="size", default=None, kw_only=True)
    _sha256: str | None = attrs.field(alias="sha256", default=None, kw_only=True)
    _config_size: int | None = attrs.field(
        alias="config_size", default=None, kw_only=True
    )
    _config_sha256: str | None = attrs.field(
        alias="config_sha256", default=None, kw_only=True
    )
    _follow_links: bool = attrs.field(alias="follow_links", default=True, kw_only=True)

    _precopy: PreCopy = attrs.field(init=False)
    _worker: Worker = attrs.field(factory=Worker, init=False)
    _file: BufferedReader | None = attrs.field(default=None, init=False)
    _expected: Expected = attrs.field(init=False)
    _rest: int = attrs.field(default=0, init=False)
    _config: bytes = attrs.field(default=b"", init=False)

    def __attrs_post_init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Forget all that was read."""
        self._precopy = PreCopy(self.precopy_bytes)
        self._expected = Expected("data", self.path, self._size, self._sha256)

    @property
    def config_path(self) -> Path:
        """Where the config blob is, if there is one."""
        return beside(self.path, ".config")

    async def begin(self) -> bool:
        """Open the data file, and read the config file.

        After a migration that has failed, or any other, this starts afresh.

        If this fails or is cancelled, no file is open.

        Raises:
          OSError: if a file cannot be opened or read. EIO if the size of the
            data, or the config, is not what it must be.
          ValueError: if the config is larger than 1 MiB.

        Returns: whether there is anything to read before `stop`.
        """
        await self._worker.restart()
        await self._worker.run(self._open)
        return self.precopy_bytes > 0

    async def pending(self) -> Pending:
        """Return what is left of *precopy_bytes* and of the file."""
        await trio.lowlevel.checkpoint()
        return Pending(
            initial_bytes=min(self._precopy.left, self._rest),
            stop_copy_bytes=self._rest,
        )

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        """Read the next data into *buffers*, in a worker thread.

        Before `stop`, not beyond *precopy_bytes*: where they end, so does the
        list. If this fails, is cancelled or aborted, what was read in the call is
        gone, and the source good for nothing but `abort`.

        Raises:
          OSError: if a read fails; the text says how much of the buffer was
            read. EIO where the data ends, if it is not what it must be.
            ECANCELED if the source was aborted.
        """
        allowed = self._precopy.allowed(buffers)
        if not allowed:
            await trio.lowlevel.checkpoint()
            return []
        counts = await self._worker.run(self._read, allowed)
        self._precopy.read(counts)
        self._rest = max(0, self._rest - sum(counts))
        return counts

    async def read_all(self, buffers: Buffers) -> None:
        """Read to the end of the data, in one worker thread.

        Leaves the same as `read_into` if it fails, is cancelled or aborted.

        Raises:
          OSError: as by `read_into`.
        """
        await self._worker.run(self._read_all, buffers)

    async def stop(self) -> None:
        """Let everything be read from now on, to the end of the file.

        If cancelled, nothing has changed.
        """
        await trio.lowlevel.checkpoint()
        self._precopy.stop()

    async def config(self) -> bytes:
        """Return the config blob as it was at `begin`."""
        await trio.lowlevel.checkpoint()
        return self._config

    async def finish(self) -> None:
        """Close the file. If cancelled, it is closed or not."""
        await self._worker.run(self._close)

    async def abort(self) -> None:
        """End a call that is under way, and close the file.

        Nothing was changed, so the migration can be tried again, also with this
        source. If cancelled, the call ends all the same, but the file may stay
        open.
        """
        self._worker.stop()
        # Not before: the thread would go on with a descriptor that may by then
        # be another file's.
        await self._worker.wait_idle()
        await self._worker.run_abort(self._close)

    # What follows runs in worker threads.

    def _open(self) -> None:
        self._close()
        self._forget()
        self._config = self._read_config()
        file = open_regular(self.path, follow_links=self._follow_links)
        try:
            self._rest = os.fstat(file.fileno()).st_size
            self._expected.check_size(self._rest)
        except BaseException:
            file.close()
            raise
        self._file = file

    def _read_config(self) -> bytes:
        path = self.config_path
        try:
            blob = read_at_most(path, MAX_CONFIG, follow_links=self._follow_links)
        except FileNotFoundError:
            blob = b""
        expected = Expected("config", path, self._config_size, self._config_sha256)
        expected.feed(blob)
        expected.check_whole()
        return blob

    def _read(self, buffers: Sequence[memoryview]) -> list[int]:
        counts = read_buffers(self._fileno(), buffers, self._worker.check)
        for buffer, count in zip(buffers, counts, strict=False):
            self._worker.check()
            self._expected.feed(buffer[:count])
        if counts and counts[-1] == 0:
            self._expected.check_whole()
        return counts

    def _read_all(self, buffers: Buffers) -> None:
        feed = self._expected.feed
        if read_all(self._fileno(), buffers, self._worker.check, feed):
            self._expected.check_whole()

    def _fileno(self) -> int:
        if self._file is None:
            raise ValueError(f"{self.path}: read before begin")
        # The descriptor of a file that was closed raises ValueError, too.
        return self._file.fileno()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
