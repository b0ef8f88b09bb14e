"""Pure tests: what real QEMUs sent, against what an independent reader found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pytest

from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire._channel_decoder import ChannelDecoder, ChannelEvent
from trio_vfio._wire._config_blob import ConfigBlob
from trio_vfio._wire._idstr import is_vfio
from trio_vfio._wire._main_decoder import MainDecoder
from trio_vfio._wire._main_events import (
    Command,
    CommandType,
    Configuration,
    Description,
    DeviceConfig,
    DeviceData,
    EndOfSections,
    MainEvent,
    Section,
    SectionType,
)
from trio_vfio._wire._multifd import (
    INITIAL_SIZE,
    STATE_HEADER_SIZE,
    InitialPacket,
    RamPacket,
    StatePacket,
)
from trio_vfio._wire._return_path import (
    SWITCHOVER_ACK,
    ReturnPathDecoder,
    pong,
    shut,
)
from trio_vfio._wire._vfio_section import config_blob_untrusted

from ..captures_data import CAPTURES, COMPLETE, PADDED, CaptureFiles, capture
from .feeding import (
    channel_events,
    cut,
    drain,
    feed_channel,
    main_events,
    room,
    state_packets,
)

every_complete = pytest.mark.parametrize(
    "capture", COMPLETE, ids=[each.name for each in COMPLETE]
)
with_return_path = [each for each in CAPTURES if each.return_path]


def test_the_captures_are_there() -> None:
    assert len(CAPTURES) >= 11
    assert len(COMPLETE) >= 9


@every_complete
def test_main_stream(capture: CaptureFiles) -> None:
    """It is decoded to its last byte, and the same however it is cut."""
    raw = capture.main
    expected = capture.expected
    assert len(raw) == expected["main_bytes"]
    events = main_events([raw])
    assert isinstance(events[0], Configuration)
    assert isinstance(events[-2], EndOfSections)
    description = events[-1]
    assert isinstance(description, Description)
    assert description.offset + 5 + len(description.text) == len(raw)
    switchovers = [
        event.offset
        for event in events
        if isinstance(event, Command) and event.number == CommandType.SWITCHOVER_START
    ]
    announced = expected["switchover_start"]
    assert switchovers == ([] if announced is None else [announced])
    # The FULL sections of the whole machine, by its description; a mere search
    # finds those of VFIO devices only.
    kinds = [event.type for event in events if isinstance(event, Section)]
    assert kinds.count(SectionType.FULL) > 25
    for sizes in ([1] * 1500 + [5000], [4099], [65536, 13]):
        assert main_events(cut(raw, sizes)) == events


@pytest.mark.parametrize("name", [PADDED, "c-1dev-main-multifd-ram-proxy"])
def test_main_stream_byte_by_byte(name: str) -> None:
    raw = capture(name).main
    assert main_events(cut(raw, [1])) == main_events([raw])


@every_complete
def test_bytes_behind_the_main_stream(capture: CaptureFiles) -> None:
    """They are refused, and where they begin is said, even within the same read."""
    raw = capture.main
    for more in (b"x", raw):
        for sizes in ([1 << 30], [4099], [len(raw), 1]):
            with pytest.raises(PeerProtocolError, match="behind the end") as caught:
                main_events(cut(raw + more, sizes))
            assert caught.value.offset == len(raw)


@every_complete
def test_main_stream_without_its_end(capture: CaptureFiles) -> None:
    """It may end behind the EOF byte, and nowhere else near its end."""
    raw = capture.main
    eof = next(
        event.offset for event in main_events([raw]) if isinstance(event, EndOfSections)
    )
    events = main_events([raw[: eof + 1]])
    assert [event for event in events if isinstance(event, EndOfSections)] == [
        EndOfSections(eof)
    ]
    for length in (eof, eof + 2, eof + 6, len(raw) - 1):
        decoder = MainDecoder()
        decoder.received(raw[:length])
        list(drain(decoder))
        assert not decoder.may_end
        assert decoder.inside_piece
        with pytest.raises(
            PeerProtocolError, match="stream ends in the FULL"
        ) as caught:
            decoder.received_eof()
        assert caught.value.offset == length


def devices_found(
    main: list[MainEvent], packets: list[StatePacket]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what ``expected.json`` says of devices."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for event in main:
        if isinstance(event, Section) and is_vfio(event.idstr):
            key = (event.idstr, event.instance_id)
            found.setdefault(key, _device(main, packets, *key))
    return found


def _device(
    main: list[MainEvent], packets: list[StatePacket], idstr: str, instance_id: int
) -> dict[str, Any]:
    key = (idstr, instance_id)
    blocks = [
        event
        for event in main
        if isinstance(event, DeviceData)
        and (event.section.idstr, event.section.instance_id) == key
    ]
    late = [event for event in blocks if event.section.type is SectionType.END]
    configs = [
        event.blob
        for event in main
        if isinstance(event, DeviceConfig)
        and (event.section.idstr, event.section.instance_id) == key
    ]
    ours = sorted(
        (
            packet
            for packet in packets
            if (packet.header.idstr, packet.header.instance_id) == key
        ),
        key=lambda packet: packet.header.idx,
    )
    if ours:
        assert [packet.header.idx for packet in ours] == list(range(len(ours)))
        *ours, last = ours
        assert last.header.is_config
        configs.append(config_blob_untrusted(last.data, idstr))
    data = b"".join(event.data for event in blocks)
    precopy = len(data) - sum(len(event.data) for event in late)
    data += b"".join(packet.data for packet in ours)
    (blob,) = configs
    return {
        "idstr": idstr,
        "instance_id": instance_id,
        "transfer": "main" if late else "multifd",
        "precopy_bytes": precopy,
        "data_bytes": len(data),
        "buffers": len(late) + len(ours),
        "sha256": hashlib.sha256(data).hexdigest(),
        "config_bytes": len(blob),
        "config_sha256": hashlib.sha256(blob).hexdigest(),
    }


@every_complete
def test_devices(capture: CaptureFiles) -> None:
    """Their data and configs are those that the independent reader found."""
    packets = [
        packet
        for raw in capture.channels.values()
        for packet in state_packets(channel_events(raw[INITIAL_SIZE:], [1 << 30]))
    ]
    found = devices_found(main_events([capture.main]), packets)
    assert list(found.values()) == capture.expected["devices"]


def _careful_sizes(decoder: ChannelDecoder) -> Iterator[int]:
    """Byte by byte, but for the inner part of payloads, which is left to luck."""
    while True:
        yield max(1, room(decoder) - STATE_HEADER_SIZE - 3)


@every_complete
def test_channels(capture: CaptureFiles) -> None:
    """They are decoded to their last byte, and the same however they are cut."""
    found = []
    for id_, raw in capture.channels.items():
        initial = InitialPacket.decode_untrusted(raw[:INITIAL_SIZE])
        assert initial.channel_id == id_
        events = channel_events(raw[INITIAL_SIZE:], [1 << 30])
        for sizes in ([4099], [65536, 13, 1]):
            assert channel_events(raw[INITIAL_SIZE:], sizes) == events
        assert _events_byte_by_byte(raw[INITIAL_SIZE:]) == events
        states = len(state_packets(events))
        found.append(
            {
                "id": id_,
                "bytes": len(raw),
                "packets": sum(isinstance(event, RamPacket) for event in events)
                + states,
                "device_state_packets": states,
            }
        )
    assert found == capture.expected["channels"]


def _events_byte_by_byte(raw: bytes) -> list[ChannelEvent]:
    decoder = ChannelDecoder(4096)
    events = list(feed_channel(decoder, raw, _careful_sizes(decoder)))
    decoder.received_eof()
    return events


def test_channel_really_byte_by_byte() -> None:
    """All of the shortest channel with device state, with no byte left to luck."""
    raw = min(
        (
            raw
            for each in COMPLETE
            for raw in each.channels.values()
            if state_packets(channel_events(raw[INITIAL_SIZE:], [1 << 30]))
        ),
        key=len,
    )[INITIAL_SIZE:]
    assert channel_events(raw, [1]) == channel_events(raw, [1 << 30])


@every_complete
def test_config_blob(capture: CaptureFiles) -> None:
    """It is taken apart without loss."""
    main = [
        event.blob
        for event in main_events([capture.main])
        if isinstance(event, DeviceConfig)
    ]
    multifd = [
        config_blob_untrusted(packet.data, packet.header.idstr)
        for raw in capture.channels.values()
        for packet in state_packets(channel_events(raw[INITIAL_SIZE:], [1 << 30]))
        if packet.header.is_config
    ]
    blobs = main + multifd
    assert len(blobs) == len(capture.expected["devices"])
    for blob in blobs:
        parsed = ConfigBlob.decode_untrusted(blob)
        assert parsed.encode() == blob
        assert (parsed.version, len(parsed.config_space)) == (2, 4096)
        if capture.name == PADDED:
            # An mtty, which has no MSI-X.
            assert (parsed.vendor_id, parsed.device_id) == (0x4348, 0x3253)
            assert (parsed.msix_vectors, parsed.msix_table) == (0, b"")


def test_source_that_stopped_half_way() -> None:
    """All that came is there, and the end is an error that says where it stopped."""
    files = capture("k-kind-mismatch-proxy")
    decoder = MainDecoder()
    decoder.received(files.main)
    events = list(drain(decoder))
    data = [event for event in events if isinstance(event, DeviceData)]
    assert sum(len(event.data) for event in data) == 24
    with pytest.raises(PeerProtocolError, match="stream ends in") as caught:
        decoder.received_eof()
    assert caught.value.offset == files.expected["main_bytes"]
    for raw in files.channels.values():
        assert channel_events(raw[INITIAL_SIZE:], [1 << 30])


def test_channels_that_were_cut() -> None:
    """A channel that ends inside a packet says so, and where that packet begins."""
    files = capture("q-1dev-4ch-pad4M-mute")
    faults = {}
    for id_, raw in files.channels.items():
        decoder = ChannelDecoder(4096)
        list(feed_channel(decoder, raw[INITIAL_SIZE:], repeat(1 << 30)))
        assert room(decoder)
        try:
            decoder.received_eof()
        except PeerProtocolError as error:
            faults[id_] = f"{error.reason} at offset {error.offset}"
    assert f"multifd0.bin: {faults[0]}" == files.expected["reason"]
    assert main_events([files.main])


@pytest.mark.parametrize(
    "capture", with_return_path, ids=[each.name for each in with_return_path]
)
def test_return_path(capture: CaptureFiles) -> None:
    """A real destination answers the PING, lets go once or twice, and is content."""
    assert capture.return_path is not None
    decoder = ReturnPathDecoder()
    frames = [
        frame
        for piece in cut(capture.return_path, [3, 1])
        for frame in decoder.received(piece)
    ]
    decoder.received_eof()
    acks = frames[1:-1]
    assert frames == [pong(1), *acks, shut(0)]
    assert set(acks) <= {SWITCHOVER_ACK}
    assert b"".join(frame.encode() for frame in frames) == capture.return_path


def test_acks_of_a_new_machine_type() -> None:
    """One for each device; up to 11.0 there was one for all."""
    for name, acks in [
        ("v11-d-2dev-4ch-rp-ack-proxy", 2),
        (PADDED, 1),
    ]:
        raw = capture(name).return_path
        assert raw is not None
        assert ReturnPathDecoder().received(raw).count(SWITCHOVER_ACK) == acks
