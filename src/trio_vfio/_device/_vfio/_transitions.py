"""Takes a device from state to state, and keeps the data_fd that belongs to it.

All of it blocks, and is for worker threads, one at a time.

QEMU: ``vfio_migration_set_state`` and ``vfio_migration_set_state_or_reset`` in
hw/vfio/migration.c.
"""

from __future__ import annotations

import errno
import os
from typing import final

import attrs

from ._ioctl import DeviceFd
from ._states import (
    MigrationFlags,
    MigrationState,
    has,
    keeps_data_fd,
    opens_data_fd,
    path,
)


@final
@attrs.define(eq=False)
class Transitions:
    """The states of one device that is migrated.

    A data_fd is kept exactly as long as it is good: a read from one that the kernel
    has disabled would fail, and one that was closed may be another file's.
    """

    device: DeviceFd
    flags: MigrationFlags
    _data_fd: int | None = attrs.field(default=None, init=False)

    @property
    def data_fd(self) -> int:
        """What its state is read from or written to. It is non-blocking.

        Raises:
          OSError: (EBADF) if it is in no state that has one.
        """
        if self._data_fd is None:
            raise OSError(errno.EBADF, "the device is in no state that has a data_fd")
        return self._data_fd

    def can(self, state: MigrationState) -> bool:
        """Whether the device has *state*."""
        return has(self.flags, state)

    def to(self, target: MigrationState) -> None:
        """Go to *target*; do nothing if that is where the device is.

        If it fails there is no data_fd any more.

        Raises:
          OSError: if the device does not get there; the text says where it is.
        """
        try:
            self._go(target)
        except OSError as error:
            self.close_data_fd()
            raise OSError(error.errno, self._and_now(error)) from error

    def restore(self, state: MigrationState) -> None:
        """Go back to *state*, as if nothing had been.

        Raises:
          OSError: if that cannot be. The device was reset then, so that it runs, but
            has lost its state; or is lost itself. The text says which.
        """
        try:
            self.to(state)
        except OSError as error:
            text = f"{error.strerror}; {self._reset_to_run()}"
            raise OSError(error.errno, text) from error
        finally:
            self.close_data_fd()

    def discard(self) -> None:
        """Drop whatever state the device was given: reset it, so that it runs.

        Raises:
          OSError: if it cannot be reset; it is lost then, and the text says so.
        """
        self.close_data_fd()
        try:
            self.device.reset()
        except OSError as error:
            text = f"{self._and_now(error)} and lost"
            raise OSError(error.errno, text) from error
        if (state := self.device.state()) is not MigrationState.RUNNING:
            text = f"the device is in {state.name} after its reset, and lost"
            raise OSError(errno.EIO, text)

    def close_data_fd(self) -> None:
        """Close the data_fd, if there is one."""
        fd, self._data_fd = self._data_fd, None
        if fd is not None:
            os.close(fd)

    def _go(self, target: MigrationState) -> None:
        start = self.device.state()
        try:
            steps = path(start, target, self.flags)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        if not steps:
            return
        data_fd = self.device.set_state(target)
        if not keeps_data_fd(start, steps):
            self.close_data_fd()
        self._take(data_fd, target, wanted=opens_data_fd(start, steps))

    def _take(self, fd: int | None, target: MigrationState, *, wanted: bool) -> None:
        """Keep the data_fd that came with *target*."""
        if (fd is not None) is not wanted:
            if fd is not None:
                os.close(fd)
            what = "no data_fd" if wanted else "a data_fd that does not belong to it"
            raise OSError(errno.EPROTO, f"{target.name} came with {what}")
        if fd is not None:
            # A thread inside of a blocking call could not be told to leave.
            os.set_blocking(fd, False)
            self._data_fd = fd

    def _reset_to_run(self) -> str:
        try:
            self.discard()
        except OSError as error:
            return f"{error.strerror}"
        return "the device was reset, and has lost its state"

    def _and_now(self, error: OSError) -> str:
        """Say what failed, and in which state the device is."""
        try:
            state = self.device.state().name
        except OSError as second:
            state = f"an unknown state ({second.strerror})"
        return f"{error.strerror}; the device is in {state}"
