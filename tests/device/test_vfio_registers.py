"""Pure tests of what is compared of two config spaces."""

from __future__ import annotations

import struct

import pytest

from trio_vfio._device._vfio._registers import differences


def config_space(**changes: bytes) -> bytes:
    """A PCI device with an I/O BAR, a 64-bit memory BAR and 8 MSI-X vectors."""
    space = bytearray(4096)
    struct.pack_into("<HHHHI", space, 0, 0x15B3, 0x101E, 0x0006, 0x0010, 0x02000001)
    struct.pack_into("<III", space, 0x10, 0xC001, 0xFE00000C, 0x00000001)
    space[0x34] = 0x40
    struct.pack_into("<BBH", space, 0x40, 0x10, 0x60, 2)
    struct.pack_into("<BBH", space, 0x60, 0x11, 0x00, 7)
    for at, data in changes.items():
        offset = int(at.removeprefix("at_"), 16)
        space[offset : offset + len(data)] = data
    return bytes(space)


HERE = config_space()


def test_a_device_equals_itself() -> None:
    assert differences(HERE, HERE) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"at_00": b"\x34"}, "Vendor ID (0x00) is 0x1534 at the source"),
        ({"at_02": b"\x1f"}, "Device ID (0x02) is 0x101f at the source"),
        ({"at_08": b"\x02"}, "Revision ID (0x08) is 0x2 at the source"),
        ({"at_0b": b"\x03"}, "Class Code (0x09) is 0x30000 at the source"),
        ({"at_10": b"\x08"}, "Base Address Register 0 (0x10) is 0x8 at the source"),
        ({"at_14": b"\x04"}, "Base Address Register 1 (0x14) is 0x4 at the source"),
        ({"at_40": b"\x05"}, "Capability ID (0x40) is 0x5 at the source"),
        ({"at_62": b"\x0f"}, "MSI-X Table Size (0x60) is 0x10 at the source"),
        ({"at_61": b"\x00", "at_41": b"\x00"}, "MSI-X Table Size (0x60) is 0x0 at"),
    ],
)
def test_what_must_be_the_same(change: dict[str, bytes], said: str) -> None:
    (found,) = differences(config_space(**change), HERE)
    assert str(found).startswith(said)
    assert str(found).endswith(" here")


def test_a_bridge() -> None:
    found = differences(config_space(at_0e=b"\x01"), HERE)
    # What it has in place of BARs is not compared.
    assert [each.register for each in found] == ["Header Type"]


def test_no_capabilities_at_the_source() -> None:
    found = differences(config_space(at_06=b"\x00"), HERE)
    assert [each.register for each in found] == ["Status", "MSI-X Table Size"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"at_04": b"\x07\x04"}, id="Command"),
        pytest.param({"at_06": b"\x18\x02"}, id="other bits of Status"),
        pytest.param({"at_0c": b"\x10\x20"}, id="cache line, latency timer"),
        pytest.param({"at_0e": b"\x80"}, id="one function of several"),
        pytest.param({"at_11": b"\xd0"}, id="where an I/O BAR is"),
        pytest.param({"at_16": b"\x12\xfe\x0c"}, id="where a 64-bit BAR is"),
        pytest.param({"at_3c": b"\x0b"}, id="interrupt line"),
        pytest.param({"at_62": b"\x07\x80"}, id="MSI-X enabled"),
        pytest.param({"at_34": b"\x60"}, id="a capability that a VMM hides"),
        pytest.param({"at_61": b"\x80", "at_80": b"\x09"}, id="one that it adds"),
        pytest.param({"at_100": b"\xff" * 64}, id="extended config space"),
    ],
)
def test_what_may_differ(change: dict[str, bytes]) -> None:
    assert differences(config_space(**change), HERE) == []
