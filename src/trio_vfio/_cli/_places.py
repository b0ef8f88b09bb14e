"""What a command reads and writes: no two of its parts may share one file.

Two devices on one descriptor would mix their states; a trace or a result on that of a
device would overwrite its state. All that is known before anything is opened.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from itertools import combinations
from pathlib import Path
from typing import Final, TypeAlias

import attrs
import click

from .. import (
    FdSink,
    FdSource,
    FileSink,
    FileSource,
    StateSink,
    StateSource,
    VfioSink,
    VfioSource,
)
from .._device import snapshot_files, sysfs_path
from .._errors import device_name

_Key: TypeAlias = tuple[str | int, ...]
_STDOUT: Final = 1
_STDERR: Final = 2

_SUFFIXES: Final = (".part", ".old")
"""Of names that the manifest of a snapshot has for a while."""

_STREAMS: Final = frozenset({"descriptor", "pipe", "socket", "device"})
"""Kinds of keys of what not even two may read, for each would get a part of it."""


@attrs.frozen
class Place:
    """One part of a command, and what it reads or writes."""

    name: str
    """What messages call it."""
    writes: bool
    keys: frozenset[_Key]
    """Whatever tells that it is the same as another's: one in common is enough."""

    def conflicts(self, other: Place) -> bool:
        """Whether the two cannot go together."""
        shared = self.keys & other.keys
        if self.writes or other.writes:
            return bool(shared)
        return any(key[0] in _STREAMS for key in shared)


def device_places(
    devices: Mapping[tuple[str, int], StateSink | StateSource],
) -> list[Place]:
    """Return where the state of *devices* goes or comes from.

    Raises:
      click.UsageError: if one is a descriptor that is not open. The next file that we
        open would get its number, and the state.
    """
    return [_device(device_name(*key), device) for key, device in devices.items()]


def snapshot_place(directory: Path, *, writes: bool) -> Place:
    """Return the place of a snapshot: the files that it has, and its manifest."""
    files = snapshot_files(directory)
    if writes:
        manifest = files[0]
        files += [manifest.with_name(f"{manifest.name}{each}") for each in _SUFFIXES]
    return _files(f"the snapshot {str(directory)!r}", *files, writes=writes)


@contextmanager
def using(
    places: Sequence[Place], trace_file: str | None, address: str = ""
) -> Generator[None]:
    """Check that what a command uses goes together; then let it run.

    If a device writes to stdout, what the command says goes to stderr meanwhile.

    Args:
      places: those of its devices and snapshots.
      trace_file: the value of ``--trace``.
      address: where it listens.

    Raises:
      click.UsageError: if two of them are one file.
    """
    state = [*places, *_certificates()]
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        state.append(_files(f"the address {address!r}", path, writes=True))
    out = _stream("stdout", _STDOUT)
    on_stdout = any(("descriptor", _STDOUT) in place.keys for place in state)
    on_stdout |= any(place.writes and _same_stream(place, out) for place in state)
    said = [_stream("stderr", _STDERR)]
    if not on_stdout:
        said.append(out)
    if trace_file is not None and trace_file != "-":
        said.append(_files(f"--trace {trace_file!r}", Path(trace_file), writes=True))
    pairs = [*combinations(state, 2), *((a, b) for a in state for b in said)]
    for one, other in pairs:
        if one.conflicts(other):
            raise click.UsageError(
                f"{one.name} and {other.name} share a file or descriptor; give each"
                " its own."
            )
    with redirect_stdout(sys.stderr) if on_stdout else nullcontext():
        yield


def _same_stream(place: Place, out: Place) -> bool:
    """Whether a device's descriptor, under whatever number, is stdout."""
    is_descriptor = any(key[0] == "descriptor" for key in place.keys)
    return is_descriptor and bool(place.keys & out.keys)


def _device(name: str, device: StateSink | StateSource) -> Place:
    what = f"the device {name!r}"
    match device:
        case FileSink():
            files = [device.path, device.config_path]
            parts = [path.with_name(f"{path.name}.part") for path in files]
            return _files(what, *files, *parts, writes=True)
        case FileSource():
            return _files(what, device.path, device.config_path, writes=False)
        case FdSink():
            return _descriptor(what, device.fd, writes=True)
        case FdSource():
            return _descriptor(what, device.fd, writes=False)
        case VfioSink() | VfioSource():
            if isinstance(device.where, int):
                return _descriptor(what, device.where, writes=True)
            where = os.path.realpath(Path("/", sysfs_path(device.where)))
            return Place(what, writes=True, keys=frozenset({("device", where)}))
        case _:
            return Place(what, writes=False, keys=frozenset())


def _certificates() -> list[Place]:
    """Return the files of the options ``--tls-*``, if the command has some."""
    values = click.get_current_context().params.items()
    return [
        _files(f"--{name.replace('_', '-')}", value, writes=False)
        for name, value in values
        if name.startswith("tls_") and isinstance(value, Path)
    ]


def _files(name: str, *paths: Path, writes: bool) -> Place:
    keys = frozenset(key for path in paths for key in _path_keys(path, writes=writes))
    return Place(name, writes, keys)


def _descriptor(name: str, fd: int, *, writes: bool) -> Place:
    try:
        status = os.fstat(fd)
    except OSError:
        raise click.UsageError(f"{name}: no descriptor {fd} is open.") from None
    keys = {("descriptor", fd), *_file_keys(status, writes=writes)}
    return Place(name, writes, frozenset(keys))


def _stream(name: str, fd: int) -> Place:
    """Return the place of what we say; without keys if it is closed."""
    try:
        return _descriptor(name, fd, writes=True)
    except click.UsageError:
        return Place(name, writes=True, keys=frozenset())


def _path_keys(path: Path, *, writes: bool) -> Generator[_Key]:
    """Yield what tells that *path* is another's: its name, and its file by any name."""
    yield _name_key(path)
    # At the end of links, even if nothing is there yet.
    yield _name_key(Path(os.path.realpath(path)))
    with suppress(OSError):
        yield from _file_keys(path.stat(), writes=writes)


def _name_key(path: Path) -> _Key:
    try:
        parent = path.parent.stat()
    except OSError:
        return "name", os.path.abspath(path)
    return "name", parent.st_dev, parent.st_ino, path.name


def _file_keys(status: os.stat_result, *, writes: bool) -> Generator[_Key]:
    where = (status.st_dev, status.st_ino)
    if stat.S_ISREG(status.st_mode):
        yield "file", *where
    elif stat.S_ISFIFO(status.st_mode):
        yield "pipe", *where
    elif stat.S_ISSOCK(status.st_mode):
        # One socket may well be both stdin and stdout, as under sshd.
        yield "socket", *where, writes
    # Terminals, /dev/null and the like may be several things at once.
