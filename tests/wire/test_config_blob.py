"""Pure tests: configs of vfio-pci devices, taken apart."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire._config_blob import ConfigBlob, msix_vectors
from trio_vfio.testing.strategies import changed, changes, garbage

from ..strategies import config_blobs

DISPLAY = bytes.fromhex("0519") + b"VFIOPCIDevice/VFIODisplay" + bytes([0, 0, 0, 1])
DISPLAY += bytes(28)


def config_space(
    *capabilities: tuple[int, int, int], size: int = 4096, first: int | None = None
) -> bytearray:
    """Make a config space with *capabilities*: where, id, and where to go on."""
    space = bytearray(size)
    struct.pack_into("<HHHH", space, 0, 0x15B3, 0x101E, 0x0406, 0x0010)
    if first is None and capabilities:
        first = capabilities[0][0]
    space[0x34] = first or 0
    for at, id_, following in capabilities:
        space[at : at + 2] = bytes([id_, following])
    return space


def with_vectors(vectors: int, size: int = 4096) -> bytearray:
    space = config_space((0x40, 0x10, 0x9C), (0x9C, 0x11, 0), size=size)
    struct.pack_into("<H", space, 0x9C + 2, 0xC000 | (vectors - 1))
    return space


@pytest.mark.parametrize("size", [256, 4096])
@pytest.mark.parametrize("rest", [b"", DISPLAY])
def test_without_msix(size: int, rest: bytes) -> None:
    space = bytes(config_space(size=size))
    raw = b"\0\0\0\2" + space + b"\0\0\0\1" + bytes(12) + rest
    blob = ConfigBlob.decode_untrusted(raw)
    assert blob == ConfigBlob(2, space, (1, 0, 0, 0), rest=rest)
    assert (blob.vendor_id, blob.device_id) == (0x15B3, 0x101E)
    assert blob.msix_vectors == 0
    assert blob.encode() == raw


@pytest.mark.parametrize("size", [256, 4096])
@pytest.mark.parametrize("rest", [b"", DISPLAY])
@pytest.mark.parametrize("vectors", [1, 7, 8, 9, 64, 237, 238, 239, 240, 2048])
def test_with_msix(size: int, rest: bytes, vectors: int) -> None:
    """Also with as many vectors as are about as long as a large config space."""
    space = bytes(with_vectors(vectors, size))
    table = bytes(range(16)) * vectors
    pending = b"\xaa" * -(-vectors // 8)
    raw = b"\0\0\0\0" + space + bytes(16) + table + pending + rest
    blob = ConfigBlob.decode_untrusted(raw)
    assert blob == ConfigBlob(0, space, (0, 0, 0, 0), table, pending, rest)
    assert blob.msix_vectors == vectors
    assert blob.encode() == raw


def test_repr_is_short() -> None:
    blob = ConfigBlob(2, bytes(4096), msix_table=bytes(160), msix_pending=b"\0\0")
    assert len(repr(blob)) < 200


@pytest.mark.parametrize(
    ("space", "vectors"),
    [
        (config_space(), 0),
        (config_space((0x40, 0x11, 0)), 1),
        (config_space((0xFC, 0x11, 0)), 1),
        (config_space((0x40, 0x01, 0x50), (0x50, 0x05, 0x60), (0x60, 0x11, 0)), 1),
        # The low bits of a pointer are reserved,
        (config_space((0x40, 0x01, 0x53), (0x50, 0x11, 0), first=0x41), 1),
        # and before 40 there are no capabilities.
        (config_space((0x30, 0x11, 0)), 0),
        (config_space((0x40, 0x01, 0x3C), (0x3C, 0x11, 0)), 0),
        # Circles end.
        (config_space((0x40, 0x01, 0x40)), 0),
        (config_space((0x40, 0x01, 0x50), (0x50, 0x05, 0x40)), 0),
        (config_space((0x40, 0xFF, 0xFF), (0xFC, 0xFF, 0xFF)), 0),
    ],
)
def test_walk_through_capabilities(space: bytearray, vectors: int) -> None:
    assert msix_vectors(bytes(space)) == vectors
    space[0x06] = 0  # The bit that says that there is a list.
    assert msix_vectors(bytes(space)) == 0


def blob_of(**changes: Any) -> bytes:
    parts = {
        "version": 2,
        "space": bytes(config_space()),
        "intx": bytes(16),
        "behind": b"",
        **changes,
    }
    version = struct.pack("!I", parts["version"])
    return bytes(version + parts["space"] + parts["intx"] + parts["behind"])


def misfit(length: int, vectors: int) -> str:
    return (
        f"config blob of {length} bytes, which fits no config space"
        f" with {vectors} MSI-X vectors"
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "config blob of 0 bytes"),
        (blob_of()[:275], "config blob of 275 bytes"),
        (blob_of(version=3), "config blob of unknown version 3"),
        (blob_of(version=0xFFFF_FFFF), "config blob of unknown version 4294967295"),
        (blob_of()[:-1], misfit(4115, 0)),
        (blob_of(behind=b"\5"), misfit(4117, 0)),
        (blob_of(space=bytes(255 * 2)), misfit(530, 0)),
        (blob_of(space=bytes(with_vectors(33))), misfit(4116, 33)),
        (
            blob_of(intx=bytes(7) + b"\2" + bytes(8)),
            "config blob with INTx state 00000000 00000002 00000000 00000000",
        ),
        (
            blob_of(behind=DISPLAY.replace(b"Display", b"Dismays")),
            "config blob with "
            + repr(DISPLAY[:31].replace(b"Display", b"Dismays"))
            + " behind its end",
        ),
        (
            blob_of(behind=DISPLAY[:30] + b"\2" + bytes(28)),
            f"config blob with {DISPLAY[:30] + bytes([2])!r} behind its end",
        ),
    ],
)
def test_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(PeerProtocolError) as caught:
        ConfigBlob.decode_untrusted(raw)
    assert caught.value.reason == reason


@given(config_blobs())
def test_round_trip(blob: ConfigBlob) -> None:
    raw = blob.encode()
    assert ConfigBlob.decode_untrusted(raw) == blob
    assert blob.msix_vectors * 16 == len(blob.msix_table)


@given(
    garbage() | st.binary(min_size=276, max_size=276).map(lambda raw: b"\0\0\0" + raw)
)
def test_garbage(raw: bytes) -> None:
    try:
        blob = ConfigBlob.decode_untrusted(raw)
    except PeerProtocolError:
        return
    assert blob.encode() == raw


@given(config_blobs(), changes())
def test_changed_blobs(blob: ConfigBlob, where: list[tuple[float, int]]) -> None:
    """They are refused, or taken apart without loss."""
    raw = changed(blob.encode(), where)
    try:
        found = ConfigBlob.decode_untrusted(raw)
    except PeerProtocolError:
        return
    assert found.encode() == raw


@given(st.binary(min_size=256, max_size=256))
def test_walk_through_anything_ends(space: bytes) -> None:
    listed = bytearray(space)
    listed[0x06] |= 0x10
    assert 0 <= msix_vectors(bytes(listed)) <= 2048


@pytest.mark.parametrize("size", [64, 255, 256, 4096])
def test_built_from_registers(size: int) -> None:
    """As long as QEMU's own, whatever the hardware has; it takes no other."""
    space = bytes(config_space()[:size])
    blob = ConfigBlob.build(space)
    assert blob.config_space == space.ljust(4096, b"\0")
    assert len(blob.encode()) == 4 + 4096 + 16
    assert ConfigBlob.decode_untrusted(blob.encode()) == blob


@pytest.mark.parametrize("vectors", [1, 9, 2048])
def test_built_with_room_for_interrupts(vectors: int) -> None:
    blob = ConfigBlob.build(bytes(with_vectors(vectors)))
    assert len(blob.msix_table) == 16 * vectors
    assert len(blob.msix_pending) == -(-vectors // 8)
    assert ConfigBlob.decode_untrusted(blob.encode()) == blob


@pytest.mark.parametrize("size", [0, 63, 4097])
def test_not_built_from_anything(size: int) -> None:
    with pytest.raises(ValueError, match=f"a config space of {size} bytes"):
        ConfigBlob.build(bytes(size))
