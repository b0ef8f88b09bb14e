"""What `inspect_capture` finds in recordings of real QEMUs. Pure."""

from __future__ import annotations

import attrs
import pytest

from trio_vfio._capture._report import inspect_capture

from ..captures_data import CAPTURES, CaptureFiles

pytestmark = pytest.mark.parametrize("files", CAPTURES, ids=lambda files: files.name)


def test_as_an_independent_reader_found_it(files: CaptureFiles) -> None:
    """Status and all totals are those of expected.json."""
    report = inspect_capture(files.directory)
    expected = files.expected
    assert report.status == expected["status"]
    if report.status == "cut":
        assert report.reason == expected["reason"]
        return
    assert report.main_bytes == expected["main_bytes"]
    assert report.switchover_start == expected["switchover_start"]
    assert [attrs.asdict(c) for c in report.channels] == expected["channels"]
    devices = [attrs.asdict(device) for device in report.devices]
    assert len(devices) == len(expected["devices"])
    for device, each in zip(devices, expected["devices"], strict=True):
        assert {name: device[name] for name in each} == each


def test_every_packet_is_where_it_says(files: CaptureFiles) -> None:
    """At the offset of each packet stands a packet that names its device."""
    channels = files.channels
    report = inspect_capture(files.directory)
    counted = sum(channel.device_state_packets for channel in report.channels)
    assert len(report.packets) == counted
    for packet in report.packets:
        raw = channels[packet.channel][packet.offset :]
        assert raw[:4] == bytes.fromhex("11223344")
        assert raw[12:].startswith(packet.idstr.encode() + b"\0")
        assert raw[276 + 4 : 276 + 8] == packet.idx.to_bytes(4)


def test_the_main_stream_to_its_end(files: CaptureFiles) -> None:
    """A whole main stream ends with its description; no two pieces overlap."""
    report = inspect_capture(files.directory)
    offsets = [record.offset for record in report.main]
    assert offsets == sorted(set(offsets))
    assert report.main[0].kind == "configuration"
    if not any(error.startswith("main.bin") for error in report.errors):
        assert [record.kind for record in report.main[-2:]] == ["eof", "vmdescription"]
