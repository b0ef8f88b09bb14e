"""A directory that keeps all devices of one migration."""

from __future__ import annotations

import errno
import hashlib
import re
import threading
from pathlib import Path
from typing import Final, final

import attrs

from .._errors import device_name
from .._result import DeviceResult, DeviceState, MigrationResult
from ._file import FileSink
from ._file_source import FileSource
from ._files import sync_directory, write_file
from ._manifest import MANIFEST, Entry, encode_manifest, read_manifest
from ._worker import Worker

# Cut off long before the 255 bytes that a file system takes, to leave room for
# the hash and the suffixes.
_MAX_SLUG: Final = 80
_HASH_DIGITS: Final = 16


def data_name(idstr: str, instance_id: int) -> str:
    """Return the name of the file for the data of a device.

    The source chose *idstr*, so it may hold separators and dots, and may differ
    from another in its last byte only. The first part of the name is for people
    to read; it is the hash that tells devices apart.
    """
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", idstr).strip("-.")[:_MAX_SLUG]
    key = f"{idstr}\0{instance_id}".encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(key).hexdigest()[:_HASH_DIGITS]
    return f"{slug or 'device'}-{digest}.data"


@final
@attrs.define(eq=False)
class SnapshotDirectory:
    """Keeps each device of a migration in files, and says in a manifest what they are.

    It is a callable that makes devices, the form in which `open_incoming` takes
    devices that it does not know; `write_manifest` completes the snapshot. One
    object is for one migration.

    The first device's `begin` makes the directory, if it is not there, with mode
    0700, and removes the manifest of an earlier snapshot in it; an `abort` of any
    device removes the manifest of this one. So if there is a manifest, it
    describes a whole snapshot. Data of an earlier one is replaced device by
    device; files of devices that did not come again stay.

    `sources` is the way back: it reads the manifest of a snapshot that is there.
    """

    path: Path = attrs.field(converter=Path, on_setattr=attrs.setters.frozen)
    """The directory."""

    _devices: dict[str, FileSink] = attrs.field(factory=dict[str, FileSink], init=False)
    # Devices begin and abort in several threads at once, also while another
    # writes the manifest. Guards what follows, and the manifest itself.
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _prepared: bool = attrs.field(default=False, init=False)
    _aborted: bool = attrs.field(default=False, init=False)

    def __call__(self, idstr: str, instance_id: int) -> FileSink:
        """Return the device that keeps the state of *idstr*. Does no I/O.

        Raises:
          ValueError: if it was asked for before.
        """
        name = data_name(idstr, instance_id)
        if name in self._devices:
            what = device_name(idstr, instance_id)
            raise ValueError(f"{what}: already in the snapshot {self.path}")
        device = FileSink(
            self.path / name, before_open=self._prepare, before_remove=self._discard
        )
        self._devices[name] = device
        return device

    async def write_manifest(self, result: MigrationResult) -> None:
        """Write the manifest, once every device of the snapshot has finished.

        Fits as `open_incoming`'s ``before_shut``. Devices that did not come from
        here are left out. Digests are null if the session made none.

        If this fails, or is cancelled before it began, there is no manifest.

        Raises:
          ValueError: if a device is not complete: then there is no whole
            snapshot to describe.
          OSError: if it cannot be written. ECANCELED if a device was aborted.
        """
        entries: list[Entry] = []
        for device in result.devices:
            name = data_name(device.idstr, device.instance_id)
            if name not in self._devices:
                continue
            if device.status != DeviceState.COMPLETED:
                what = device_name(device.idstr, device.instance_id)
                raise ValueError(f"no whole snapshot: {what} is {device.status}")
            entries.append(_entry(name, device))
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

    def _prepare(self) -> None:
        with self._lock:
            if self._prepared:
                return
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.path / MANIFEST).unlink(missing_ok=True)
            sync_directory(self.path)
            self._prepared = True

    def _write_manifest(self, entries: list[Entry]) -> None:
        # A migration may well be complete without a device.
        self._prepare()
        part = self.path / f"{MANIFEST}.part"
        with self._lock:
            if self._aborted:
                raise OSError(errno.ECANCELED, "a device of the snapshot was aborted")
            try:
                write_file(part, encode_manifest(entries))
                part.replace(self.path / MANIFEST)
                sync_directory(self.path)
            except BaseException:
                self._remove_manifest()
                raise

    def _discard(self) -> None:
        with self._lock:
            self._aborted = True
            self._remove_manifest()

    def _remove_manifest(self) -> None:
        for name in (f"{MANIFEST}.part", MANIFEST):
            (self.path / name).unlink(missing_ok=True)


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
