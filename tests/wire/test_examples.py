"""Pure tests: single packets written out byte for byte, both ways.

The bytes were put together by hand from the layouts in QEMU's source, so they
do not share a misunderstanding with our encoders.
"""

from __future__ import annotations

import hashlib
import struct

from trio_vfio._wire._channel_decoder import ChannelDecoder
from trio_vfio._wire._config_blob import ConfigBlob
from trio_vfio._wire._main_encode import (
    END_PAYLOAD,
    SETUP_PAYLOAD,
    encode_command,
    encode_header,
)
from trio_vfio._wire._main_events import (
    Command,
    CommandType,
    Configuration,
    EndOfSections,
    SectionEnd,
    SectionType,
)
from trio_vfio._wire._multifd import (
    INITIAL_SIZE,
    InitialPacket,
    PacketFlag,
    RamPacket,
    StateFlag,
    StateHeader,
    StatePacket,
)
from trio_vfio._wire._return_path import SWITCHOVER_ACK, pong, shut
from trio_vfio._wire._vfio_section import Mark, config_blob_untrusted, encode_config

from ..streams import DEVICE, IDSTR
from .feeding import channel_events, main_events

_COMMON = bytes.fromhex("11223344 00000001 00000040")
_NAME = bytes.fromhex("303030303a30303a30342e302f7666696f") + bytes(239)


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def test_initial_packet() -> None:
    raw = bytes.fromhex("11223344 00000001 00112233445566778899aabbccddeeff 01")
    raw += bytes(39)
    packet = InitialPacket(bytes.fromhex("00112233445566778899aabbccddeeff"), 1)
    assert packet.encode() == raw
    assert InitialPacket.decode_untrusted(raw) == packet
    assert (len(raw), digest(raw)) == (INITIAL_SIZE, "04d848cba6ae56fc")


def test_device_state_packet() -> None:
    data = bytes(range(16))
    raw = _COMMON + _NAME + bytes.fromhex("00000000 0000001c 00000000 00000000")
    raw += bytes(4) + data
    header = StateHeader(IDSTR, 0, 16)
    assert header.encode() + data == raw
    assert (len(raw), digest(raw)) == (304, "22b847482788c34d")
    header = StateHeader(IDSTR, 0, 16, offset=INITIAL_SIZE)
    assert channel_events(raw, [304]) == [header, StatePacket(header, memoryview(data))]
    assert not header.is_config
    assert str(header) == "packet 0 of 0000:00:04.0/vfio"


def test_config_packet_without_a_blob() -> None:
    raw = _COMMON + _NAME + bytes.fromhex("00000000 0000001c 00000000 00000001")
    raw += bytes.fromhex("00000001 ffffffffef100002 ffffffffef100001")
    data = encode_config(b"")
    header = StateHeader(IDSTR, 1, 16, StateFlag.CONFIG)
    assert header.encode() + data == raw
    assert (len(raw), digest(raw)) == (304, "af920112ba7117f8")
    _, packet = channel_events(raw, [304])
    assert isinstance(packet, StatePacket)
    assert packet.header.is_config
    assert config_blob_untrusted(packet.data, IDSTR) == b""


def test_config_packet_of_a_pci_device() -> None:
    space = bytes.fromhex("b3151e10") + bytes(252)
    blob = ConfigBlob(2, space)
    data = encode_config(blob.encode())
    raw = StateHeader(IDSTR, 1, len(data), StateFlag.CONFIG).encode() + data
    assert (len(raw), digest(raw)) == (580, "12e12a88d63651c3")
    _, packet = channel_events(raw, [580])
    assert isinstance(packet, StatePacket)
    found = ConfigBlob.decode_untrusted(config_blob_untrusted(packet.data, IDSTR))
    assert found == blob
    assert (found.vendor_id, found.device_id) == (0x15B3, 0x101E)
    assert (found.msix_vectors, found.intx) == (0, (0, 0, 0, 0))


def test_sync_packet() -> None:
    raw = bytes.fromhex("11223344 00000001 00000001") + bytes(1332)
    assert (len(raw), digest(raw)) == (1344, "56f50ca0f057fc44")
    sync = RamPacket(PacketFlag.SYNC, 1320, INITIAL_SIZE)
    assert channel_events(raw, [1344]) == [sync]


def test_main_stream_without_ram() -> None:
    raw = b"".join(
        [
            encode_header("pc-q35-10.0"),
            encode_command(CommandType.OPEN_RETURN_PATH),
            encode_command(CommandType.PING, struct.pack("!I", 1)),
            DEVICE.encode(SectionType.START, SETUP_PAYLOAD),
            encode_command(CommandType.SWITCHOVER_START),
            DEVICE.encode(SectionType.END, END_PAYLOAD),
            DEVICE.encode(SectionType.FULL, END_PAYLOAD),
            b"\0",
        ]
    )
    assert (len(raw), digest(raw)) == (158, "aff0f796e6ebbb1f")
    start, end, full = (
        DEVICE.section(type_, offset)
        for type_, offset in [
            (SectionType.START, 38),
            (SectionType.END, 95),
            (SectionType.FULL, 113),
        ]
    )
    assert main_events([raw]) == [
        Configuration("pc-q35-10.0"),
        Command(CommandType.OPEN_RETURN_PATH, b"", 24),
        Command(CommandType.PING, b"\0\0\0\1", 29),
        start,
        SectionEnd(start),
        Command(CommandType.SWITCHOVER_START, b"", 90),
        end,
        SectionEnd(end),
        full,
        SectionEnd(full),
        EndOfSections(157),
    ]


def test_pieces_of_the_main_stream() -> None:
    start = bytes.fromhex("01 0000002a 11") + IDSTR.encode()
    start += bytes.fromhex("00000000 00000001 ffffffffef100003 ffffffffef100001")
    start += bytes.fromhex("7e 0000002a")
    assert DEVICE.start() == start
    assert DEVICE.end() == bytes.fromhex("03 0000002a ffffffffef100001 7e 0000002a")
    switchover = encode_command(CommandType.SWITCHOVER_START)
    assert switchover == bytes.fromhex("08 000b 0000")
    assert [mark.encode().hex() for mark in Mark] == [
        "ffffffffef100001",
        "ffffffffef100002",
        "ffffffffef100003",
        "ffffffffef100004",
        "ffffffffef100005",
        "ffffffffef100006",
    ]


def test_return_path() -> None:
    assert pong(1).encode() == bytes.fromhex("0002 0004 00000001")
    assert shut(0).encode() == bytes.fromhex("0001 0004 00000000")
    assert shut(1).encode() == bytes.fromhex("0001 0004 00000001")
    assert SWITCHOVER_ACK.encode() == bytes.fromhex("0007 0000")


def test_fixed_parts_of_ram_packets() -> None:
    lengths = {}
    for page_size in (4096, 8192, 16384, 65536):
        decoder = ChannelDecoder(page_size)
        decoder.buffers()[0][:24] = bytes.fromhex("1122334400000001") + bytes(16)
        (packet,) = decoder.received(24)
        assert isinstance(packet, RamPacket)
        lengths[page_size] = 24 + packet.rest
    assert lengths == {4096: 1344, 8192: 832, 16384: 576, 65536: 384}
