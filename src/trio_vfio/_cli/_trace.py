"""The option ``--trace``: what happens in a migration, as lines in a file.

They are those of ``qemu -trace -msg timestamp=on``, ``PID@SECONDS.MICROSECONDS:``
before each, so that ``sort -t@ -k2`` lays the logs of both ends side by side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from io import FileIO
from typing import Any, TypeVar, final

import attrs
import click

from .. import TraceEvent
from .._errors import describe
from ._output import LossyWriter
from ._plain import plain, show_error

_F = TypeVar("_F", bound=Callable[..., Any])
_STDERR = "-"


def trace_option(command: _F) -> _F:
    """Give *command* the option ``--trace``, for `tracing_to`."""
    return click.option(
        "--trace",
        "trace_file",
        metavar="FILE",
        help="Write what happens to FILE (- for stderr), as lines of qemu -trace.",
    )(command)


@contextmanager
def tracing_to(name: str | None) -> Generator[Callable[[TraceEvent], None] | None]:
    """Open the file *name*, to be written while the block runs.

    Each line is written at once, so that all are there however the block ends.
    If one cannot be written, that is said once, and the migration goes on. Lines that
    the reader of a pipe does not take in time are dropped.

    Returns: the hook that writes an event; None if there is no file.

    Raises:
      click.UsageError: if it cannot be written to.
    """
    if name is None:
        yield None
        return
    if name == _STDERR:
        yield lambda event: click.echo(line(event), err=True)
        return
    try:
        file = open(name, "wb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise click.UsageError(f"cannot write {name!r}: {describe(error)}") from error
    writer = _Writer(name, file, LossyWriter(file.fileno()))
    try:
        yield writer.write
    finally:
        writer.close()


def line(event: TraceEvent) -> str:
    """Return the line that QEMU would print for *event*, with its time."""
    seconds, microseconds = divmod(int(event.time * 1_000_000), 1_000_000)
    return f"{os.getpid()}@{seconds}.{microseconds:06}:{plain(str(event))}"


@final
@attrs.define(eq=False)
class _Writer:
    name: str
    file: FileIO
    writer: LossyWriter
    _failed: bool = attrs.field(default=False, init=False)

    def write(self, event: TraceEvent) -> None:
        if self._failed:
            return
        try:
            self.writer.write(f"{line(event)}\n".encode())
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        try:
            self.file.close()
        except OSError as error:
            # Some file systems, as NFS, say only now that a disk is full.
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            show_error(f"cannot write {self.name!r}: {describe(error)}")
        self._failed = True
