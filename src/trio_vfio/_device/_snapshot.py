"""A directory that keeps all devices of one migration."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, final

import attrs
import trio

from .._errors import device_name
from .._result import DeviceResult, DeviceState, MigrationResult
from ._file import FileSink
from ._file_source import FileSource
from ._files import (
    FileId,
    beside,
    check_replaceable,
    remove_own,
    sync_directory,
    write_file,
)
from ._locks import DirectoryLock, lock_directory
from ._manifest import MANIFEST, Entry, encode_manifest, read_manifest
from ._snapshot_files import OURS, files_of, remove_left
from ._worker import Worker

# Cut off long before the 255 bytes that a file system takes, to leave room for
# the hash and the suffixes.
_MAX_SLUG: Final = 80
_HASH_DIGITS: Final = 16

_GRACE: Final = 10.0
"""Seconds that a block may take to end which is cancelled."""


def data_name(idstr: str, instance_id: int, run: str = "") -> str:
    """Return the name of the file for the data of a device.

    The source chose *idstr*, so it may hold separators and dots, and may differ
    from another in its last byte only. The first part of the name is for people
    to read; it is the hash that tells devices apart.

    Args:
      run: tells this run from others, where another has the usual name.
    """
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", idstr).strip("-.")[:_MAX_SLUG]
    key = f"{idstr}\0{instance_id}".encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(key).hexdigest()[:_HASH_DIGITS]
    return f"{slug or 'device'}-{digest}{run and '-'}{run}.data"


@final
@attrs.define(eq=False)
class SnapshotDirectory:
    """Keeps each device of a migration in files, and says in a manifest what they are.

    It is a callable that makes devices, the form in which `open_incoming` takes
    devices that it does not know; `write_manifest` completes the snapshot. One
    object is for one migration.

    The first device's `begin` makes the directory, if it is not there, with mode
    0700. An earlier snapshot in it stays whole until this one is: no two runs give
    their files the same names, the manifest is replaced in one step, and only then
    the earlier files are removed. So if there is a manifest, it describes a whole
    snapshot, whenever a run fails, is killed or loses power; and for a while both
    need room. An `abort` of any device removes the manifest of this snapshot.
    Data that no manifest names, as a run leaves it that is killed, is removed when
    the next one begins.

    From the first `begin` until `write_manifest`, or until every device that began
    is aborted, the directory is locked: a second run fails in `begin`. `locked`
    locks it for longer. Where another run has completed a snapshot since, an
    `abort` leaves that alone.

    `sources` is the way back: it reads the manifest of a snapshot that is there.
    """

    path: Path = attrs.field(converter=Path, on_setattr=attrs.setters.frozen)
    """The directory."""

    _run: str = attrs.field(factory=lambda: secrets.token_hex(4), init=False)
    _devices: dict[tuple[str, int], FileSink] = attrs.field(
        factory=dict[tuple[str, int], FileSink], init=False
    )
    # Devices begin and abort in several threads at once, also while another
    # writes the manifest. Guards what follows, and the manifest itself.
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _held: DirectoryLock | None = attrs.field(default=None, init=False)
    _in_block: bool = attrs.field(default=False, init=False)
    """Whether the directory stays locked until a block ends."""
    _begun: set[Path] = attrs.field(factory=set[Path], init=False)
    """Data of devices that began and are not aborted."""
    _aborted: bool = attrs.field(default=False, init=False)
    _written: FileId | None = attrs.field(default=None, init=False)
    """The manifest, once it is written."""
    _replaced: frozenset[str] = attrs.field(default=frozenset[str](), init=False)
    """Files of the earlier snapshot that are to be removed."""

    def __call__(self, idstr: str, instance_id: int) -> FileSink:
        """Return the device that keeps the state of *idstr*.

        Only looks whether a file has its usual name, and makes nothing.

        Raises:
          ValueError: if it was asked for before.
        """
        key = (idstr, instance_id)
        if key in self._devices:
            what = device_name(*key)
            raise ValueError(f"{what}: already in the snapshot {self.path}")
        path = self.path / data_name(*key)
        if path.exists() or beside(path, ".config").exists():
            path = self.path / data_name(*key, self._run)
        device = FileSink(
            path,
            before_open=lambda: self._prepare(path),
            before_remove=lambda: self._discard(path),
        )
        self._devices[key] = device
        return device

    @asynccontextmanager
    async def locked(self) -> AsyncGenerator[None]:
        """Keep other runs out of the directory while the block runs.

        To be entered before there is a source, so that a run that cannot have the
        directory fails before it has taken anything. The earlier snapshot then
        comes back even if a device is aborted after `write_manifest`; it goes when
        the block ends.

        The directory is made, and removed again if no device begins. If cancelled
        while the block is entered, nothing has changed.

        Raises:
          OSError: if it cannot be made. EBUSY if another run is writing to it; the
            text says which process, if that can be known.
        """
        await Worker().run(self._enter)
        try:
            yield
        finally:
            with trio.move_on_after(_GRACE, shield=True):
                await Worker().run(self._leave)

    async def write_manifest(self, result: MigrationResult) -> None:
        """Write the manifest, once every device of the snapshot has finished.

        Fits as `open_incoming`'s ``before_shut``. Devices that did not come from
        here are left out. Digests are null if the session made none.

        If this fails, or is cancelled before it began, there is no manifest but that
        of the earlier snapshot.

        Raises:
          ValueError: if a device is not complete: then there is no whole
            snapshot to describe.
          OSError: if it cannot be written. ECANCELED if a device was aborted.
        """
        entries: list[Entry] = []
        for device in result.devices:
            sink = self._devices.get((device.idstr, device.instance_id))
            if sink is None:
                continue
            if device.status != DeviceState.COMPLETED:
                what = device_name(device.idstr, device.instance_id)
                raise ValueError(f"no whole snapshot: {what} is {device.status}")
            entries.append(_entry(sink.path.name, device))
        await Worker().run(self._write_manifest, entries)

    async def sources(self) -> dict[tuple[str, int], FileSource]:
        """Return sources of the devices of a whole snapshot, as its manifest has them.

        They are in its order, by idstr and instance. Only the manifest is read:
        each source checks in `begin` whether its files have the sizes, and later
        whether they have the digests, that it says.

        The snapshot may be anybody's: no file outside of the directory is opened,
        also not by a symbolic link in it.

        Raises:
          OSError: if there is no manifest, or it cannot be read.
          ValueError: if it is larger than 1 MiB, of an unknown format, or
            wrong in any other way; says where it is and what is wrong.
        """
        entries = await Worker().run(read_manifest, self.path)
        return {
            (entry.idstr, entry.instance_id): _source(self.path, entry)
            for entry in entries
        }

    # What follows runs in worker threads.

    @property
    def _manifest(self) -> Path:
        return self.path / MANIFEST

    @property
    def _earlier_manifest(self) -> Path:
        """Where the manifest of the earlier snapshot is until the block ends."""
        return beside(self._manifest, ".old")

    def _enter(self) -> None:
        with self._lock:
            self._hold()
            self._in_block = True

    def _leave(self) -> None:
        with self._lock:
            self._in_block = False
            try:
                self._remove_earlier()
                if self._held is not None and self._held.made and not self._devices:
                    # Not empty: somebody else has put something there.
                    with suppress(OSError):
                        self.path.rmdir()
            finally:
                self._let_go()

    def _prepare(self, data: Path) -> None:
        with self._lock:
            self._hold()
            if data.exists():
                if not self._begun:
                    self._let_go()
                raise OSError(errno.EEXIST, "another run has made it since", str(data))
            self._begun.add(data)

    def _hold(self) -> None:
        """Lock the directory, if it is not locked, and tidy it."""
        if self._held is not None:
            return
        held = lock_directory(self.path)
        try:
            check_replaceable(self._manifest)
            if held.is_exclusive and self._written is None:
                remove_left(self.path)
        except BaseException:
            held.release()
            raise
        self._held = held

    def _let_go(self) -> None:
        if self._held is not None and not self._in_block:
            self._held.release()
            self._held = None

    def _write_manifest(self, entries: list[Entry]) -> None:
        with self._lock:
            if self._aborted:
                raise OSError(errno.ECANCELED, "a device of the snapshot was aborted")
            # A migration may well be complete without a device.
            self._hold()
            try:
                self._replace_manifest(entries)
            except BaseException:
                self._take_back()
                if not self._begun:
                    self._let_go()
                raise
            if not self._in_block:
                self._remove_earlier()
            self._let_go()

    def _replace_manifest(self, entries: list[Entry]) -> None:
        text = encode_manifest(entries)
        new = {name for each in entries for name in (each.data, each.config) if name}
        replaced = frozenset(files_of(self.path) or ()) - new
        self._keep_earlier()
        part = beside(self._manifest, ".part")
        try:
            write_file(part, text)
            written = FileId.of(part.lstat())
            part.replace(self._manifest)
        except BaseException:
            for path in (part, self._earlier_manifest):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        self._written = written
        self._replaced = replaced
        sync_directory(self.path)

    def _keep_earlier(self) -> None:
        """Give the earlier manifest a second name, by which it can come back."""
        self._earlier_manifest.unlink(missing_ok=True)
        try:
            os.link(self._manifest, self._earlier_manifest, follow_symlinks=False)
        except FileNotFoundError:
            pass
        except OSError:
            # A file system without hard links.
            write_file(self._earlier_manifest, self._manifest.read_bytes())

    def _discard(self, data: Path) -> None:
        with self._lock:
            self._aborted = True
            try:
                self._take_back()
            finally:
                self._begun.discard(data)
                if not self._begun:
                    self._let_go()

    def _take_back(self) -> None:
        """Remove our manifest; the earlier one comes back, if its files are there."""
        own, self._written = self._written, None
        if own is None:
            return
        self._replaced = frozenset()
        if self._held is not None and own.is_at(self._manifest):
            with suppress(FileNotFoundError):
                self._earlier_manifest.replace(self._manifest)
        remove_own(self._manifest, own)
        sync_directory(self.path)

    def _remove_earlier(self) -> None:
        """Remove what this snapshot has replaced. The next run does where this fails."""
        if self._written is None:
            return
        with suppress(OSError):
            self._earlier_manifest.unlink(missing_ok=True)
        for name in self._replaced:
            if OURS.fullmatch(name):
                with suppress(OSError):
                    (self.path / name).unlink(missing_ok=True)
        self._replaced = frozenset()


def _entry(name: str, device: DeviceResult) -> Entry:
    has_config = device.config_bytes is not None
    return Entry(
        idstr=device.idstr,
        instance_id=device.instance_id,
        data=name,
        config=f"{name}.config" if has_config else None,
        data_bytes=device.data_bytes,
        sha256=device.sha256,
        config_bytes=device.config_bytes,
        config_sha256=device.config_sha256,
    )


def _source(directory: Path, entry: Entry) -> FileSource:
    return FileSource(
        directory / entry.data,
        size=entry.data_bytes,
        sha256=entry.sha256,
        config_size=entry.config_bytes or 0,
        config_sha256=entry.config_sha256,
        follow_links=False,
    )
