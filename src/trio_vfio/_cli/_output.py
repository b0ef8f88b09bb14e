"""Standard output and standard error, which never decide how a command ends.

Nobody knows what becomes of the two while a command runs: a log collector dies, a disk
is full, a reader leaves or stops reading. `protect_output` puts streams of ours in
their places, and so covers all that writes: tables and progress, errors, the logging
and warnings of every library, tracebacks.

Both write straight to the descriptor. Python's own streams keep what they could not
write, try it again when the process exits, and replace the exit status by 120 if that
fails once more.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import time
from contextlib import suppress
from typing import Final, TextIO, cast, final

import attrs

from .._errors import describe

_PIECE: Final = select.PIPE_BUF
"""Bytes that a pipe takes without a wait if poll() says that it takes anything."""

_PATIENCE: Final = 0.1
"""Seconds that diagnostics wait at most for their reader. The migration waits, too."""

_REFILL: Final = 0.1
"""Share of the time that diagnostics may wait in the long run."""


@final
@attrs.define(eq=False)
class LossyWriter:
    """Writes diagnostics to a descriptor, and drops what is not taken in time.

    A slow reader costs the migration a tenth of its time. A reader that has stopped
    costs it `_PATIENCE` once; if it reads on, it is told how much is missing.
    """

    fd: int
    _is_stuck: bool = attrs.field(default=False, init=False)
    """Whether the last write was not taken. The next one does not wait."""
    _patience: float = attrs.field(default=_PATIENCE, init=False)
    _waited_at: float = attrs.field(default=0.0, init=False)
    _dropped: int = attrs.field(default=0, init=False)
    """Bytes since the last that were taken."""

    def write(self, data: bytes) -> None:
        """Write *data*, as much of it as is taken.

        Raises:
          OSError: if a write fails. What is left of *data* is dropped.
        """
        left = memoryview(data)
        while left:
            if not self._is_ready():
                self._dropped += len(left)
                return
            if self._dropped:
                text = f"\ntrio-vfio: dropped {self._dropped} bytes: nobody read them\n"
                self._dropped = 0
                # Short, so that it goes whole or not at all.
                os.write(self.fd, text.encode())
                continue
            left = left[os.write(self.fd, left[:_PIECE]) :]

    def _is_ready(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        began = time.monotonic()
        refill = (began - self._waited_at) * _REFILL
        self._patience = min(_PATIENCE, self._patience + refill)
        # A broken pipe is ready, too: its write fails.
        ready = poll.poll(0 if self._is_stuck else self._patience * 1000)
        self._waited_at = time.monotonic()
        self._patience = max(0.0, self._patience - (self._waited_at - began))
        self._is_stuck = not ready
        return not self._is_stuck


@attrs.define(eq=False)
class _Stream:
    """What a text stream has that others ask for, and a descriptor if there is one."""

    stream: TextIO | None
    """Python's own; None if the descriptor was closed when Python started."""
    fd: int | None = attrs.field(init=False)
    encoding: str = attrs.field(init=False)
    errors: str = attrs.field(default="backslashreplace", init=False)
    closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.fd = None
        if self.stream is not None:
            # Streams in memory have none.
            with suppress(OSError, ValueError):
                self.fd = self.stream.fileno()

    def fileno(self) -> int:
        if self.fd is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.fd

    def isatty(self) -> bool:
        return self.fd is not None and os.isatty(self.fd)

    def flush(self) -> None:
        """Do nothing: all is written already."""

    def _write_to_stream(self, text: str) -> None:
        if self.stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.stream.write(text)
        self.stream.flush()


@final
@attrs.define(eq=False)
class Diagnostics(_Stream):
    """Stands in for stderr: what cannot be written is dropped."""

    _writer: LossyWriter | None = attrs.field(default=None, init=False)

    def write(self, text: str) -> int:
        """Write *text*, or drop it. Waits for no reader. Raises nothing."""
        data = text.encode(self.encoding, self.errors)
        with suppress(OSError, ValueError):
            if self.fd is None:
                self._write_to_stream(text)
            else:
                if self._writer is None:
                    self._writer = LossyWriter(self.fd)
                self._writer.write(data)
        return len(text)


@final
@attrs.define(eq=False)
class Results(_Stream):
    """Stands in for stdout: keeps the first error, and drops what comes after it."""

    error: Exception | None = attrs.field(default=None, init=False)
    """Why the result, or the rest of it, could not be written."""

    def write(self, text: str) -> int:
        """Write *text*, or keep in `error` why that is not possible. Raises nothing.

        Waits for the reader: the migration has ended when its result is printed.
        """
        data = text.encode(self.encoding, self.errors)
        if self.error is None:
            try:
                if self.fd is None:
                    self._write_to_stream(text)
                else:
                    _write_all(self.fd, data)
            except (OSError, ValueError) as error:
                self.error = error
        return len(text)


def protect_output() -> Results:
    """Replace `sys.stdout` and `sys.stderr` for the rest of the process.

    A descriptor 0, 1 or 2 that is closed is occupied. Otherwise the next file or
    connection would get its number, and with it all that is meant for stderr.

    Returns: what stands in for stdout; see `report_lost_result`.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free. Whoever reads, writes or lends it gets
            # EBADF, as before.
            os.set_inheritable(os.open(os.devnull, os.O_PATH), True)  # noqa: FBT003
    results = Results(sys.stdout)
    sys.stdout = cast("TextIO", results)
    sys.stderr = cast("TextIO", Diagnostics(sys.stderr))
    return results


def report_lost_result(results: Results) -> None:
    """Say on stderr why the result could not be written, if it could not."""
    if results.error is not None:
        reason = describe(results.error)
        sys.stderr.write(
            f"trio-vfio: error: cannot write the result to stdout: {reason}\n"
        )


def is_result_lost() -> bool:
    """Whether something that was printed on stdout could not be written.

    That is for commands that have nothing else to do than to print it. The exit
    status of any other command says what became of its work.
    """
    return getattr(sys.stdout, "error", None) is not None


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            # Whoever shares the descriptor with us has made it non-blocking.
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
