"""A VFIO device of the kernel's, as a sink.

QEMU: ``vfio_load_setup``, ``vfio_load_buffer``, ``vfio_load_cleanup`` and
``vfio_vmstate_change`` in hw/vfio/migration.c. Kernel: linux/vfio.h.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, Protocol, final

import attrs
import trio

from .._wire._config_blob import ConfigBlob
from ._on_host import OnHost
from ._vfio._registers import differences
from ._vfio._states import MigrationFlags, MigrationState
from ._writing import write_buffers

# What a state can be written into without a reset before.
_CLEAN: Final = frozenset(
    {MigrationState.RUNNING, MigrationState.RUNNING_P2P, MigrationState.STOP}
)

# A mediated device may have a little less than the standard says.
_LEAST_CONFIG_SPACE: Final = 256


@final
@attrs.define(eq=False)
class VfioSink(OnHost):
    """A sink that is a VFIO device of this host.

    All data goes to the device, whose driver judges it in `finish`. The config blob
    is compared with the device's own registers and kept in `config`; it is not
    applied, for interrupts and bus mastering are the business of whoever owns the
    guest.

    After `finish` the device stands still (STOP) and stays open. `run`, or
    `run_devices` for several, lets it work; `aclose`, or the end of an ``async with``
    block, closes it. A PCI device is reset when it is closed, and so loses its state:
    hand on its descriptor (`fileno`) before, or give the descriptor of a device that
    you keep open. That stays yours to close.

    Every ioctl, read and write is made in a worker thread.

    Args:
      where: a PCI address (``0000:01:00.1``), the UUID of a mediated device, the
        path ``/dev/vfio/devices/vfioN``, or the descriptor of an open device.
      through: ``"cdev"`` (with iommufd) or ``"group"`` (with a container); None:
        the first of these that the host offers. One process can open only one
        device of a group by way of the group.
      check_config: whether registers that differ from the source's, and must not,
        fail the migration. A QEMU compares more of them.
    """

    check_config: bool = attrs.field(default=True, kw_only=True)
    """Whether registers that differ from the source's fail the migration."""

    config: ConfigBlob | None = attrs.field(default=None, init=False)
    """The config of the source's device, once it has come."""

    @property
    def precopy(self) -> bool | None:
        """Whether the device takes data before switchover; None before it is open."""
        flags = self._host.flags
        return None if flags is None else MigrationFlags.PRE_COPY in flags

    async def begin(self) -> None:
        """Open the device, if it is not open, and make it ready (RESUMING).

        One that was left with state, or has failed, is reset first, so a migration that
        has failed can be tried again with this sink. If this fails,
        the device runs and is closed, or the text says that it is lost. If cancelled
        before it began, nothing has changed.

        Raises:
          ValueError: if it cannot be a device.
          OSError: if it cannot be opened or made ready.
        """
        await self._worker.restart()
        await self._worker.run(self._begin)

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Write all of *buffers* to the device.

        If this fails, or is cancelled, part of them has been written. The device is
        good for nothing but `abort` then, whatever its driver says later.

        Raises:
          OSError: if the device refuses a write, or accepts nothing of it; the text
            says how much of the buffer it took. ECANCELED if it was aborted, EBADF if
            it was not begun.
        """
        await self._worker.run(self._write, buffers)

    async def load_config(self, blob: bytes) -> None:
        """Compare *blob* with the device's registers, and keep it in `config`.

        An empty one, of a source that knows none, is not compared. If this fails or
        is cancelled, the device has not changed.

        Raises:
          PeerProtocolError: if it is not the config of a PCI device.
          OSError: (EINVAL) if the source's device was another one: names each
            register, with where it is in the config space. EIO, EBADF or another if
            those of this device cannot be read.
        """
        await self._worker.run(self._load_config, blob)

    async def finish(self) -> None:
        """Let the driver judge the state as a whole (RESUMING to STOP).

        If this fails, the device is as the text says, for `abort` to reset. If
        cancelled, it is done or not.

        Raises:
          OSError: if the driver refuses the state.
        """
        await self._worker.run(self._finish)

    async def run_p2p(self) -> None:
        """Let the device work and answer others, after `finish` (RUNNING_P2P).

        It begins no access to another itself. A device that has no such state stands
        still as before. Failure and cancellation are as for `run`, which comes next.

        Raises:
          OSError: if the device refuses, or is not open.
        """
        await self._worker.run(self._run, MigrationState.RUNNING_P2P)

    async def run(self) -> None:
        """Let the device work, after `finish` (RUNNING).

        If this fails, the text says in which state the device is. If cancelled
        before it began, nothing has changed.

        Raises:
          OSError: if the device refuses, or is not open.
        """
        await self._worker.run(self._run, MigrationState.RUNNING)

    async def abort(self) -> None:
        """Reset the device, so that it runs and has no state, and close it.

        A call that is under way ends where it looks next; one that is stuck in the
        kernel is ended by the reset, if by anything. If cancelled, the call ends all
        the same, but the device may not be reset.

        Raises:
          OSError: if it cannot be reset: the device is lost, in the state that the
            text names.
        """
        self._worker.stop()
        if not self._worker.is_idle:
            # What it does not reach is done below.
            with suppress(OSError):
                await self._worker.run_abort(self._reset)
            await self._worker.wait_idle()
        await self._worker.run_abort(self._discard)

    # What follows runs in worker threads.

    def _begin(self) -> None:
        self.config = None
        with self._host.prepare(undo=self._undo) as transitions:
            if self._host.device.state() not in _CLEAN:
                transitions.discard()
            transitions.to(MigrationState.RESUMING)

    def _undo(self) -> None:
        self._host.transitions.discard()

    def _write(self, buffers: Iterator[memoryview]) -> None:
        data_fd = self._host.transitions.data_fd
        write_buffers(data_fd, buffers, self._worker.check)

    def _load_config(self, blob: bytes) -> None:
        device = self._host.device
        if not blob or not device.is_pci():
            return
        config = ConfigBlob.decode_untrusted(blob)
        here = device.config_space().ljust(_LEAST_CONFIG_SPACE, b"\0")
        found = differences(config.config_space, here)
        if found and self.check_config:
            text = "; ".join(map(str, found))
            raise OSError(errno.EINVAL, f"the source's device is another one: {text}")
        self.config = config

    def _finish(self) -> None:
        self._host.transitions.to(MigrationState.STOP)

    def _run(self, state: MigrationState) -> None:
        transitions = self._host.transitions
        if not transitions.can(state):
            return
        try:
            transitions.to(state)
        except OSError as error:
            # No session is there any more to say which device it was.
            text, where = error.strerror, str(self._where)
            raise OSError(error.errno, text, where) from error

    def _reset(self) -> None:
        with self._host.borrowed() as device:
            device.reset()

    def _discard(self) -> None:
        if not self._host.is_open:
            return
        try:
            self._host.transitions.discard()
        finally:
            self._host.close()


class SupportsRun(Protocol):
    """A device that can be let work in two steps, as `VfioSink`."""

    async def run_p2p(self) -> None:
        """Work and answer other devices, but begin no access to one."""
        ...

    async def run(self) -> None:
        """Work."""
        ...


async def run_devices(devices: Iterable[SupportsRun]) -> None:
    """Let several devices work that may access each other, after their `finish`.

    None of them begins an access to another before all can answer: first all go to
    RUNNING_P2P, if they have it, and then all to RUNNING. Those that are not reached,
    because one fails or because of a cancel, stay where they are.

    QEMU: ``vfio_vmstate_change_prepare`` and ``vfio_vmstate_change``.

    Raises:
      ExceptionGroup: of what each raises that refuses: an `OSError`.
    """
    together = tuple(devices)
    async with trio.open_nursery() as nursery:
        for device in together:
            nursery.start_soon(device.run_p2p)
    async with trio.open_nursery() as nursery:
        for device in together:
            nursery.start_soon(device.run)
