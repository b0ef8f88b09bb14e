"""The calls of an open VFIO device. All of them may block: they are for worker threads.

An error names the call, as the kernel calls it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final, final

import attrs

from . import _uapi
from ._states import MigrationFlags, MigrationState

_GET: Final = _uapi.VFIO_DEVICE_FEATURE_GET
_SET: Final = _uapi.VFIO_DEVICE_FEATURE_SET

# Beyond that no config space goes.
_MAX_CONFIG_SPACE: Final = 4096

_NO_HINTS: Final[Mapping[int, str]] = MappingProxyType({})


@contextmanager
def naming(call: str, hints: Mapping[int, str] = _NO_HINTS) -> Generator[None]:
    """Let an `OSError` of the block say that it was *call* that failed.

    Args:
      hints: what else to say, by errno.
    """
    try:
        yield
    except OSError as error:
        text = error.strerror or str(error)
        if hint := hints.get(error.errno or 0):
            text += f" ({hint})"
        raise OSError(error.errno, f"{call}: {text}") from error


@attrs.frozen
class PrecopyInfo:
    """What can be read before the device stops, in bytes; both are guesses."""

    initial_bytes: int
    dirty_bytes: int


@final
@attrs.frozen
class DeviceFd:
    """An open VFIO device, by its descriptor."""

    fd: int

    def is_pci(self) -> bool:
        """Return whether it has a PCI config space (VFIO_DEVICE_GET_INFO).

        Raises:
          OSError: if it is no VFIO device.
        """
        raw = _uapi.DEVICE_INFO.encode()
        self._ioctl("VFIO_DEVICE_GET_INFO", _uapi.VFIO_DEVICE_GET_INFO, raw)
        flags = _uapi.DEVICE_INFO.decode(raw)["flags"]
        return bool(flags & _uapi.VFIO_DEVICE_FLAGS_PCI)

    def config_space(self) -> bytes:
        """Return the PCI config space as the guest sees it, up to 4096 bytes.

        Raises:
          OSError: if it cannot be read.
        """
        raw = _uapi.REGION_INFO.encode(index=_uapi.VFIO_PCI_CONFIG_REGION_INDEX)
        call = "VFIO_DEVICE_GET_REGION_INFO"
        self._ioctl(call, _uapi.VFIO_DEVICE_GET_REGION_INFO, raw)
        region = _uapi.REGION_INFO.decode(raw)
        size = min(region["size"], _MAX_CONFIG_SPACE)
        space = b""
        with naming("read of the config space"):
            while len(space) < size:
                at = region["offset"] + len(space)
                piece = os.pread(self.fd, size - len(space), at)
                if not piece:
                    text = f"it ends after {len(space)} of {size} bytes"
                    raise OSError(errno.EIO, text)
                space += piece
        return space

    def migration_flags(self) -> MigrationFlags:
        """Return how it can be migrated (VFIO_DEVICE_FEATURE_MIGRATION).

        Raises:
          OSError: ENOTTY if it cannot be.
        """
        layout = _uapi.FEATURE_MIGRATION
        number = _GET | _uapi.VFIO_DEVICE_FEATURE_MIGRATION
        raw = self._feature("MIGRATION", number, layout.encode())
        return MigrationFlags(layout.decode(raw)["flags"] & _KNOWN_FLAGS)

    def state(self) -> MigrationState:
        """Return the state it is in.

        Raises:
          OSError: if it does not say, or says what is no state.
        """
        layout = _uapi.FEATURE_MIG_STATE
        number = _GET | _uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
        raw = self._feature("MIG_DEVICE_STATE", number, layout.encode())
        found = layout.decode(raw)["device_state"]
        try:
            return MigrationState(found)
        except ValueError:
            text = f"the device is in an unknown state {found}"
            raise OSError(errno.EPROTO, text) from None

    def set_state(self, state: MigrationState) -> int | None:
        """Let it go to *state*, which may take several steps.

        Returns: a new data_fd, if one of them gave one.

        Raises:
          OSError: if it does not get there. It may then be anywhere on the way.
        """
        layout = _uapi.FEATURE_MIG_STATE
        number = _SET | _uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
        data = layout.encode(device_state=state, data_fd=-1)
        raw = self._feature(f"MIG_DEVICE_STATE to {state.name}", number, data)
        fd = layout.decode(raw)["data_fd"]
        return fd if fd >= 0 else None

    def stop_copy_bytes(self) -> int | None:
        """Return how much state it estimates to have; None if it cannot say."""
        layout = _uapi.FEATURE_DATA_SIZE
        number = _GET | _uapi.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
        try:
            raw = self._feature("MIG_DATA_SIZE", number, layout.encode())
        except OSError:
            # Drivers need not have it, and what they say is a guess in any case.
            return None
        return layout.decode(raw)["stop_copy_length"]

    def reset(self) -> None:
        """Reset it: it forgets its state and runs (VFIO_DEVICE_RESET).

        Not every driver that can do it says so beforehand, so it is tried.

        Raises:
          OSError: if it cannot be reset.
        """
        with naming("VFIO_DEVICE_RESET"):
            fcntl.ioctl(self.fd, _uapi.VFIO_DEVICE_RESET)

    def _feature(self, name: str, flags: int, data: bytearray) -> bytearray:
        request = _uapi.encode_feature(flags, data)
        call = f"VFIO_DEVICE_FEATURE_{name}"
        self._ioctl(call, _uapi.VFIO_DEVICE_FEATURE, request)
        return request[_uapi.FEATURE.size :]

    def _ioctl(self, call: str, number: int, argument: bytearray) -> None:
        with naming(call):
            fcntl.ioctl(self.fd, number, argument)


_KNOWN_FLAGS: Final = sum(MigrationFlags)


def precopy_info(data_fd: int) -> PrecopyInfo:
    """Return what can be read before the device stops (VFIO_MIG_GET_PRECOPY_INFO).

    Raises:
      OSError: if *data_fd* is of no device in PRE_COPY or PRE_COPY_P2P.
    """
    layout = _uapi.PRECOPY_INFO
    raw = layout.encode()
    with naming("VFIO_MIG_GET_PRECOPY_INFO"):
        fcntl.ioctl(data_fd, _uapi.VFIO_MIG_GET_PRECOPY_INFO, raw)
    info = layout.decode(raw)
    return PrecopyInfo(info["initial_bytes"], info["dirty_bytes"])
