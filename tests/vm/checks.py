"""Devices with something in them, and whether it has come where it should."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs

from trio_vfio import MigrationResult

from .mtty import Mtty
from .qemu import idstr

Mttys = Callable[..., list[Mtty]]
"""What the fixture of that name is: `mtty.create`."""

PAD_KIB: Final = 4096
PAD_BUFFERS: Final = 5
"""How many it takes, of at most 1 MiB each, with what else a device has to give when
the guest stands still."""

PRECOPY_BYTES: Final = 24
"""What an mtty gives while the guest runs."""
CONFIG_BYTES: Final = 4 + 4096 + 16
"""Of a PCIe device without MSI-X: version, config space, INTx."""

_REGISTERS: Final = bytes([0x05, 0x1B, 0x0B, 0xA1])


def make_devices(
    mttys: Mttys, count: int = 1, *, ports: int = 1, pad_kib: int = 0
) -> list[Mtty]:
    """Make devices whose registers differ from a new one's, and from each other's."""
    devices = mttys(count=count, ports=ports, pad_kib=pad_kib)
    for number, device in enumerate(devices):
        device.set_registers(registers(number, ports))
    return devices


def registers(number: int = 0, ports: int = 1) -> bytes:
    """Return what `make_devices` has put into the device with that number."""
    return b"".join(
        _REGISTERS[:-1] + bytes([_REGISTERS[-1] + 16 * port + number])
        for port in range(ports)
    )


def check_received(
    result: MigrationResult | Mapping[str, Any],
    devices: Sequence[Mtty],
    *,
    transfer: str = "multifd",
    buffers: int = 1,
) -> None:
    """Assert that *result* is about just the state which *devices* still have.

    Args:
      result: of a session, or of the command.
      devices: of the source; nobody has them open any more.
      transfer: how their state is to have come.
      buffers: in how many pieces each.
    """
    if isinstance(result, MigrationResult):
        result = attrs.asdict(result)
    assert (result["status"], result["errors"]) == (
        "completed",
        type(result["errors"])(),
    )
    for number, (found, device) in enumerate(
        zip(result["devices"], devices, strict=True)
    ):
        state = device.saved()
        assert device.registers() == registers(number, device.ports)
        wanted = {
            "idstr": idstr(number),
            "instance_id": 0,
            "status": "completed",
            "transfer": transfer,
            "precopy_bytes": PRECOPY_BYTES,
            "data_bytes": len(state),
            "buffers": buffers,
            "sha256": hashlib.sha256(state).hexdigest(),
            "config_bytes": CONFIG_BYTES,
        }
        assert {key: found[key] for key in wanted} == wanted
