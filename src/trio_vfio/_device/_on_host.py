"""What a device of this host is in both of its roles: opened, and closed again."""

from __future__ import annotations

import attrs
import trio

from ._vfio._host import HostDevice
from ._vfio._open import VfioInterface
from ._worker import Worker


@attrs.define(eq=False)
class OnHost(trio.abc.AsyncResource):
    """A VFIO device of this host, which is opened when it is needed."""

    _where: str | int = attrs.field(alias="where")
    _through: VfioInterface | None = attrs.field(
        default=None, kw_only=True, alias="through"
    )

    _host: HostDevice = attrs.field(init=False)
    _worker: Worker = attrs.field(factory=Worker, init=False)

    def __attrs_post_init__(self) -> None:
        self._host = HostDevice(self._where, self._through)

    @property
    def where(self) -> str | int:
        """Which device it is, as it was given."""
        return self._where

    def fileno(self) -> int:
        """Return the device's descriptor, for whoever runs it after the migration.

        Raises:
          OSError: (EBADF) if it is not open.
        """
        return self._host.device.fd

    async def open(self) -> None:
        """Open the device now, and not only in `begin`.

        A PCI device is reset by that. If this fails, the device is closed. If
        cancelled, it is open or not.

        Raises:
          ValueError: if it cannot be a device.
          OSError: if it cannot be opened; ENOTTY if its driver does not support
            migration.
        """
        await self._worker.run(self._host.open)

    async def aclose(self) -> None:
        """Close the device as it is, if it is open.

        If cancelled, it is closed all the same.
        """
        with trio.CancelScope(shield=True):
            await self._worker.wait_idle()
            await self._worker.run_abort(self._host.close)
        await trio.lowlevel.checkpoint_if_cancelled()
