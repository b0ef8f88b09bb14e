"""A VFIO device of the kernel's, as a source.

QEMU: ``vfio_save_setup``, ``vfio_state_pending_exact``, ``vfio_vmstate_change`` and
``vfio_save_cleanup`` in hw/vfio/migration.c. Kernel: linux/vfio.h.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, final

import attrs

from .._wire._config_blob import ConfigBlob
from ._on_host import OnHost
from ._port import Buffers, Pending
from ._reading import read_all, read_buffers
from ._vfio._ioctl import precopy_info
from ._vfio._states import MigrationState

_S = MigrationState

# What somebody has left behind, and why that cannot be saved.
_NO_STATE: Final = {
    _S.RESUMING: "somebody left it with a part of a state",
    _S.ERROR: "it has failed",
}

_STANDS_STILL: Final = frozenset({_S.STOP, _S.STOP_COPY})


@final
@attrs.define(eq=False)
class VfioSource(OnHost):
    """A source that is a VFIO device of this host.

    A device that runs gives data while it does (PRE_COPY), if its driver can do
    that. A device that already stands still is saved as it stands, and stands still
    again if that fails. A PCI device is reset when it is opened: one with a state
    worth saving is open already, and given by its descriptor.

    The config blob is built from the device's registers, in the form in which a QEMU
    takes it (tried with a device that has no capabilities); empty for a device that
    is not a PCI device.

    `finish` and `abort` close the device; so does `aclose`, or the end of an ``async
    with`` block, as it is. Several devices go back to work one by one.

    Every ioctl and read is made in a worker thread.

    Args:
      where: a PCI address (``0000:01:00.1``), the UUID of a mediated device, the
        path ``/dev/vfio/devices/vfioN``, or the descriptor of an open device, which
        stays its owner's to close.
      through: ``"cdev"`` (with iommufd) or ``"group"`` (with a container); None:
        the first of these that the host offers. One process can open only one
        device of a group by way of the group.
      precopy: whether it gives data while it runs, if its driver can do that.
      run_on: whether the device goes on, in `finish`, as it was before: for a copy
        of its state, and not for a migration.
    """

    _precopy: bool = attrs.field(default=True, kw_only=True, alias="precopy")
    _run_on: bool = attrs.field(default=False, kw_only=True, alias="run_on")

    _was: MigrationState | None = attrs.field(default=None, init=False)
    """The state to go back to; None while it is not known."""

    async def begin(self) -> bool:
        """Open the device, if it is not open, and begin to save it (PRE_COPY).

        A migration that has failed can be tried again with this source.

        If this fails, the device is as it was, and closed, or the text says what
        became of it. If cancelled before it began, nothing has changed.

        Raises:
          ValueError: if it cannot be a device.
          OSError: if it cannot be opened, or refuses. EBUSY if it is in a state that
            cannot be saved, which only a reset ends.

        Returns: whether it gives data before `stop`.
        """
        await self._worker.restart()
        return await self._worker.run(self._begin)

    async def pending(self) -> Pending:
        """Ask the driver how much there is to read.

        Raises:
          OSError: if it does not say what there is before `stop`.
        """
        return await self._worker.run(self._pending)

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        """Read the next data of the device into *buffers*.

        Before `stop`, the list ends where there is no more for now. If this fails, is
        cancelled or aborted, what was read in the call is gone.

        Raises:
          OSError: if a read fails; the text says how much of the buffer was read.
            ECANCELED if the source was aborted.
        """
        return await self._worker.run(self._read, buffers)

    async def read_all(self, buffers: Buffers) -> None:
        """Read to the end of the data, in one worker thread.

        Leaves the same as `read_into` if it fails, is cancelled or aborted.

        Raises:
          OSError: as by `read_into`.
        """
        await self._worker.run(self._read_all, buffers)

    async def stop_p2p(self) -> None:
        """Keep the device from accessing others, if it can be kept (PRE_COPY_P2P).

        If this fails, there is no data any more, and the text says in which state the
        device is. If cancelled, it is done or not.

        Raises:
          OSError: if the device refuses.
        """
        await self._worker.run(self._stop_p2p)

    async def stop(self) -> None:
        """Make the device stand still, to be read to the end (STOP_COPY).

        If this fails, there is no data any more, and the text says in which state the
        device is. If cancelled, it is done or not.

        Raises:
          OSError: if the device refuses.
        """
        await self._worker.run(self._stop)

    async def config(self) -> bytes:
        """Build the config blob from the registers as they stand.

        Raises:
          OSError: if they cannot be read, or are no PCI device's (EPROTO).
        """
        return await self._worker.run(self._config)

    async def finish(self) -> None:
        """Let go of the device, which stands still (STOP), and close it.

        One that is to run on is as it was before. If this fails, the device is closed,
        and the text says what became of it. If cancelled, it is done or not.

        Raises:
          OSError: if the device refuses; it was reset then.
        """
        await self._worker.run(self._leave, self._was if self._run_on else _S.STOP)

    async def abort(self) -> None:
        """Let the device go on as it was before `begin`, and close it.

        A call that is under way ends where it looks next; one that is stuck in the
        kernel is ended by the change of state, if by anything. If cancelled, the call
        ends all the same, but the device may not go on.

        Raises:
          OSError: if the device refuses. Then it was reset, so that it runs, but has
            lost its state; or is lost altogether. The text says which.
        """
        self._worker.stop()
        if not self._worker.is_idle:
            # What it does not reach is done below.
            with suppress(OSError):
                await self._worker.run_abort(self._interrupt)
            await self._worker.wait_idle()
        await self._worker.run_abort(self._leave, self._was)

    # What follows runs in worker threads.

    def _begin(self) -> bool:
        with self._host.prepare(undo=self._undo) as transitions:
            state = self._host.device.state()
            if (why := _NO_STATE.get(state)) is not None:
                text = f"the device is in {state.name}: {why}; only a reset ends that"
                raise OSError(errno.EBUSY, text)
            self._was = _S.STOP if state in _STANDS_STILL else _S.RUNNING
            transitions.to(self._was)
            precopy = (
                self._precopy
                and self._was is _S.RUNNING
                and transitions.can(_S.PRE_COPY)
            )
            if precopy:
                transitions.to(_S.PRE_COPY)
            return precopy

    def _undo(self) -> None:
        if self._was is not None:
            self._host.transitions.restore(self._was)

    def _pending(self) -> Pending:
        stop_copy_bytes = self._host.device.stop_copy_bytes()
        if not self._gives_early():
            return Pending(stop_copy_bytes=stop_copy_bytes)
        info = precopy_info(self._host.transitions.data_fd)
        return Pending(
            initial_bytes=info.initial_bytes,
            dirty_bytes=info.dirty_bytes,
            stop_copy_bytes=stop_copy_bytes,
        )

    def _gives_early(self) -> bool:
        return self._host.device.state() in (_S.PRE_COPY, _S.PRE_COPY_P2P)

    def _read(self, buffers: Sequence[memoryview]) -> list[int]:
        data_fd = self._host.transitions.data_fd
        return read_buffers(data_fd, buffers, self._worker.check)

    def _read_all(self, buffers: Buffers) -> None:
        read_all(self._host.transitions.data_fd, buffers, self._worker.check)

    def _stop_p2p(self) -> None:
        transitions = self._host.transitions
        state = _S.PRE_COPY_P2P if self._gives_early() else _S.RUNNING_P2P
        if self._was is _S.RUNNING and transitions.can(state):
            transitions.to(state)

    def _stop(self) -> None:
        self._host.transitions.to(_S.STOP_COPY)

    def _config(self) -> bytes:
        device = self._host.device
        if not device.is_pci():
            return b""
        try:
            return ConfigBlob.build(device.config_space()).encode()
        except ValueError as error:
            raise OSError(errno.EPROTO, str(error)) from error

    def _interrupt(self) -> None:
        if self._was is not None:
            with self._host.borrowed() as device:
                device.set_state(self._was)

    def _leave(self, state: MigrationState | None) -> None:
        try:
            if self._host.is_open and state is not None:
                self._host.transitions.restore(state)
        finally:
            self._host.close()
