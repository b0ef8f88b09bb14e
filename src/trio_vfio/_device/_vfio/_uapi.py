"""The kernel's interface: numbers and layouts of linux/vfio.h and linux/iommufd.h.

Only what is used here, under the kernel's names; no call is made. A test compares
all of it with the headers, where there are some.
"""

from __future__ import annotations

import platform
import struct
from typing import Final, final

import attrs

# _IO(';', n): no size is coded in, and no direction; but on some machines that, too,
# has a number.
_SAYS_NO_DIRECTION: Final = ("alpha", "mips", "ppc", "sparc")
_IO: Final = 0x3B00 | (platform.machine().startswith(_SAYS_NO_DIRECTION) << 29)
_BASE: Final = _IO + 100

# On a container.
VFIO_GET_API_VERSION: Final = _BASE
VFIO_CHECK_EXTENSION: Final = _BASE + 1
VFIO_SET_IOMMU: Final = _BASE + 2

# On a group.
VFIO_GROUP_GET_STATUS: Final = _BASE + 3
VFIO_GROUP_SET_CONTAINER: Final = _BASE + 4
VFIO_GROUP_GET_DEVICE_FD: Final = _BASE + 6

# On a device.
VFIO_DEVICE_GET_INFO: Final = _BASE + 7
VFIO_DEVICE_GET_REGION_INFO: Final = _BASE + 8
VFIO_DEVICE_RESET: Final = _BASE + 11
VFIO_DEVICE_FEATURE: Final = _BASE + 17
VFIO_DEVICE_BIND_IOMMUFD: Final = _BASE + 18
VFIO_DEVICE_ATTACH_IOMMUFD_PT: Final = _BASE + 19

# On a data_fd.
VFIO_MIG_GET_PRECOPY_INFO: Final = _BASE + 21

# On /dev/iommu.
IOMMU_IOAS_ALLOC: Final = _IO + 0x81

VFIO_API_VERSION: Final = 0

# Kinds of IOMMU, for VFIO_CHECK_EXTENSION and VFIO_SET_IOMMU.
VFIO_TYPE1_IOMMU: Final = 1
VFIO_TYPE1v2_IOMMU: Final = 3
VFIO_NOIOMMU_IOMMU: Final = 8

VFIO_GROUP_FLAGS_VIABLE: Final = 1 << 0

VFIO_DEVICE_FLAGS_PCI: Final = 1 << 1

VFIO_PCI_CONFIG_REGION_INDEX: Final = 7

# How a feature is asked for, and which.
VFIO_DEVICE_FEATURE_GET: Final = 1 << 16
VFIO_DEVICE_FEATURE_SET: Final = 1 << 17
VFIO_DEVICE_FEATURE_MIGRATION: Final = 1
VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: Final = 2
VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: Final = 9

VFIO_MIGRATION_STOP_COPY: Final = 1 << 0
VFIO_MIGRATION_P2P: Final = 1 << 1
VFIO_MIGRATION_PRE_COPY: Final = 1 << 2

VFIO_DEVICE_STATE_ERROR: Final = 0
VFIO_DEVICE_STATE_STOP: Final = 1
VFIO_DEVICE_STATE_RUNNING: Final = 2
VFIO_DEVICE_STATE_STOP_COPY: Final = 3
VFIO_DEVICE_STATE_RESUMING: Final = 4
VFIO_DEVICE_STATE_RUNNING_P2P: Final = 5
VFIO_DEVICE_STATE_PRE_COPY: Final = 6
VFIO_DEVICE_STATE_PRE_COPY_P2P: Final = 7


@final
@attrs.frozen
class Layout:
    """The beginning of a struct of the kernel's, up to the last field that we need."""

    name: str
    """As the kernel calls it."""
    _format: str = attrs.field(alias="format")
    """Of its fields, for `struct`."""
    _fields: str = attrs.field(alias="fields")
    """Their names; the first of most is the size of the whole."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of its fields, in order."""
        return tuple(self._fields.split())

    @property
    def size(self) -> int:
        """How many bytes that is; the kernel's may go on."""
        return struct.calcsize(f"={self._format}")

    def offset(self, field: str) -> int:
        """Return where *field* begins, in bytes."""
        index = self.fields.index(field)
        return struct.calcsize(f"={self._format[:index]}")

    def encode(self, **values: int) -> bytearray:
        """Return it with these *values*; its size is known, and all else is zero."""
        if self.fields[0] in ("argsz", "size"):
            values.setdefault(self.fields[0], self.size)
        numbers = [values.pop(field, 0) for field in self.fields]
        assert not values
        return bytearray(struct.pack(f"={self._format}", *numbers))

    def decode(self, raw: bytes | bytearray | memoryview) -> dict[str, int]:
        """Return the values at the beginning of *raw*, by the names of the fields."""
        numbers = struct.unpack_from(f"={self._format}", raw)
        return dict(zip(self.fields, numbers, strict=True))


GROUP_STATUS: Final = Layout("vfio_group_status", "II", "argsz flags")
DEVICE_INFO: Final = Layout(
    "vfio_device_info", "IIIII", "argsz flags num_regions num_irqs cap_offset"
)
REGION_INFO: Final = Layout(
    "vfio_region_info", "IIIIQQ", "argsz flags index cap_offset size offset"
)
BIND_IOMMUFD: Final = Layout(
    "vfio_device_bind_iommufd", "IIiI", "argsz flags iommufd out_devid"
)
ATTACH_IOMMUFD_PT: Final = Layout(
    "vfio_device_attach_iommufd_pt", "III", "argsz flags pt_id"
)
IOAS_ALLOC: Final = Layout("iommu_ioas_alloc", "III", "size flags out_ioas_id")
PRECOPY_INFO: Final = Layout(
    "vfio_precopy_info", "IIQQ", "argsz flags initial_bytes dirty_bytes"
)

# What follows the header of VFIO_DEVICE_FEATURE.
FEATURE: Final = Layout("vfio_device_feature", "II", "argsz flags")
FEATURE_MIGRATION: Final = Layout("vfio_device_feature_migration", "Q", "flags")
FEATURE_MIG_STATE: Final = Layout(
    "vfio_device_feature_mig_state", "Ii", "device_state data_fd"
)
FEATURE_DATA_SIZE: Final = Layout(
    "vfio_device_feature_mig_data_size", "Q", "stop_copy_length"
)


def encode_feature(flags: int, data: bytes | bytearray) -> bytearray:
    """Return the argument of VFIO_DEVICE_FEATURE.

    Args:
      flags: the number of the feature, and what to do with it.
      data: what belongs to the feature.
    """
    return FEATURE.encode(argsz=FEATURE.size + len(data), flags=flags) + data
