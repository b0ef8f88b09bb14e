"""A kernel device on this host, from its opening to its closing.

What the two roles of a device in a migration have in common. All of it blocks, and
is for worker threads, one at a time, but for `borrowed`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

import attrs

from ._ioctl import DeviceFd, naming
from ._open import OpenDevice, VfioInterface, open_device
from ._states import MigrationFlags
from ._transitions import Transitions


@attrs.frozen
class _Open:
    """What there is while the device is open."""

    device: OpenDevice
    transitions: Transitions


@final
@attrs.define(eq=False)
class HostDevice:
    """A device that is opened when it is needed."""

    where: str | int
    through: VfioInterface | None
    flags: MigrationFlags | None = attrs.field(default=None, init=False)
    """What it can do; None if it was never open."""
    _open: _Open | None = attrs.field(default=None, init=False)
    _closing: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._open is not None

    @property
    def device(self) -> DeviceFd:
        """The device.

        Raises:
          OSError: (EBADF) if it is not open.
        """
        return self._opened.device.device

    @property
    def transitions(self) -> Transitions:
        """Its states.

        Raises:
          OSError: (EBADF) if it is not open.
        """
        return self._opened.transitions

    def open(self) -> None:
        """Open it, if it is not open. If this fails, it is closed.

        Raises:
          ValueError: if it cannot be a device.
          OSError: if it cannot be opened, or cannot be migrated (ENOTTY).
        """
        if self.is_open:
            return
        opened = open_device(self.where, self.through)
        try:
            self.flags = migration_flags(opened.device)
        except BaseException:
            opened.close()
            raise
        self._open = _Open(opened, Transitions(opened.device, self.flags))

    @contextmanager
    def prepare(self, undo: Callable[[], None]) -> Generator[Transitions]:
        """Open it for a block that makes it ready.

        If either fails, *undo* is called, where there is something to undo, and the
        device is closed.
        """
        self.open()
        try:
            yield self.transitions
        except OSError as error:
            text = f"{error.strerror}"
            try:
                undo()
            except OSError as second:
                if f"{second.strerror}" not in text:
                    text += f"; {second.strerror}"
            self.close()
            raise OSError(error.errno, text) from error

    @contextmanager
    def borrowed(self) -> Generator[DeviceFd]:
        """Have the device for a call beside another one, which may close it.

        The descriptor is one more, so that it cannot be another file's meanwhile.

        Raises:
          OSError: (EBADF) if it is not open.
        """
        with self._closing:
            fd = os.dup(self.device.fd)
        try:
            yield DeviceFd(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close it, as it is, with its data_fd; do nothing if it is not open."""
        with self._closing:
            opened, self._open = self._open, None
        if opened is not None:
            opened.transitions.close_data_fd()
            opened.device.close()

    @property
    def _opened(self) -> _Open:
        if self._open is None:
            raise OSError(errno.EBADF, "the device is not open", str(self.where))
        return self._open


def migration_flags(device: DeviceFd) -> MigrationFlags:
    """Return what *device* can do.

    Raises:
      OSError: (ENOTTY) if it cannot be migrated.
    """
    hint = {errno.ENOTTY: "its driver does not support migration"}
    with naming("the device cannot be migrated", hint):
        flags = device.migration_flags()
    if MigrationFlags.STOP_COPY not in flags:
        text = f"its driver offers no migration by STOP_COPY, but {flags!r}"
        raise OSError(errno.ENOTTY, text)
    return flags
