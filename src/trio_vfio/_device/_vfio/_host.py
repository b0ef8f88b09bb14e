"""A kernel device on this host, from its opening to its closing.

What the two roles of a device in a migration have in common. All of it blocks, and
is for worker threads, one at a time.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

import attrs

from ._ioctl import DeviceFd, naming
from ._open import OpenDevice, Through, open_device
from ._states import MigrationFlags
from ._transitions import Transitions


@final
@attrs.define(eq=False)
class HostDevice:
    """A device that is opened when it is needed."""

    where: str | int
    through: Through | None
    _opened: OpenDevice | None = attrs.field(default=None, init=False)
    _transitions: Transitions | None = attrs.field(default=None, init=False)

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._opened is not None

    @property
    def device(self) -> DeviceFd:
        """The device, which is open.

        Raises:
          OSError: (EBADF) if it is not.
        """
        if self._opened is None:
            raise OSError(errno.EBADF, "the device is not open", str(self.where))
        return self._opened.device

    @property
    def transitions(self) -> Transitions:
        """Its states.

        Raises:
          OSError: (EBADF) if it is not open.
        """
        if self._transitions is None:
            raise OSError(errno.EBADF, "the device is not open", str(self.where))
        return self._transitions

    @property
    def flags(self) -> MigrationFlags | None:
        """What it can do; None if it was never open."""
        return None if self._transitions is None else self._transitions.flags

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
            flags = migration_flags(opened.device)
        except BaseException:
            opened.close()
            raise
        self._opened = opened
        self._transitions = Transitions(opened.device, flags)

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

    def close(self) -> None:
        """Close it, as it is, with its data_fd; do nothing if it is not open."""
        opened, self._opened = self._opened, None
        if opened is not None:
            self.transitions.close_data_fd()
            opened.close()


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
