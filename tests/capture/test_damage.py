"""What `inspect_capture` says of captures that are not whole. Pure."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from trio_vfio._capture._report import CaptureReport, inspect_capture
from trio_vfio._wire._main_encode import encode_data
from trio_vfio._wire._main_events import Section
from trio_vfio._wire._vfio_section import encode_config

from ..streams import stream_of_all
from .build import (
    BLOB,
    IDSTR,
    PRECOPY,
    channel,
    config_packet,
    main_stream,
    packet,
    sync_packet,
    write_capture,
)


def inspect(
    tmp_path: Path, *channels: Sequence[bytes], main: bytes | None = None
) -> CaptureReport:
    """Inspect a capture with these packets."""
    main = main_stream() if main is None else main
    return inspect_capture(write_capture(tmp_path, main, dict(enumerate(channels))))


def test_whole(tmp_path: Path) -> None:
    """Buffers are put in order, whichever channel they came over."""
    report = inspect(
        tmp_path,
        [packet(2, b"third"), packet(0, b"first"), sync_packet()],
        [config_packet(3), packet(1, b"")],
    )
    assert (report.status, report.reason, report.errors) == ("complete", None, ())
    (device,) = report.devices
    assert device.status == "complete"
    assert device.transfer == "multifd"
    assert device.sha256 == hashlib.sha256(PRECOPY + b"firstthird").hexdigest()
    assert device.config_sha256 == hashlib.sha256(BLOB).hexdigest()
    assert (device.precopy_bytes, device.data_bytes, device.buffers) == (6, 16, 3)
    assert [channel.packets for channel in report.channels] == [3, 2]


def test_all_over_the_main_channel(tmp_path: Path) -> None:
    """Blocks after switchover are buffers; what was before is pre-copy."""
    main = main_stream(end=encode_data(b"a") + encode_data(b""), config=BLOB)
    (device,) = inspect(tmp_path, main=main).devices
    assert device.status == "complete"
    assert device.transfer == "main"
    assert (device.precopy_bytes, device.data_bytes, device.buffers) == (6, 7, 2)


def test_old_machine_without_switchover_start(tmp_path: Path) -> None:
    """The END section is where the guest stands still."""
    main = main_stream(switchover=b"", end=encode_data(b"after"), config=BLOB)
    report = inspect(tmp_path, main=main)
    assert report.status == "complete"
    (device,) = report.devices
    assert (device.precopy_bytes, device.data_bytes, device.buffers) == (6, 11, 1)


def test_machine_with_more_than_ram(tmp_path: Path) -> None:
    """All its sections are listed in their order, and only the device is one."""
    stream = stream_of_all()
    report = inspect(
        tmp_path, [packet(0, b"after"), config_packet(1)], main=bytes(stream.data)
    )
    assert (report.status, report.errors) == ("complete", ())
    assert [device.idstr for device in report.devices] == [IDSTR]
    sections = [event for event in stream.events if isinstance(event, Section)]
    assert [
        (record.kind, record.idstr, record.offset)
        for record in report.main
        if record.idstr is not None
    ] == [(each.type.name.lower(), each.idstr, each.offset) for each in sections]
    assert [record.what for record in report.main if record.kind == "full"] == [
        "0000:00:07.0/virtio-mem-device-early",
        "timer",
        IDSTR,
    ]


@pytest.mark.parametrize(
    ("packets", "error"),
    [
        (
            [packet(0, b"a"), packet(0, b"b"), config_packet(1)],
            "idx 0 twice: multifd0.bin at offset 64 and multifd0.bin at offset 353",
        ),
        ([packet(1, b"a"), packet(4, b"b"), config_packet(5)], "idx 0, 2-3 missing"),
        ([packet(0, b"a"), packet(1, b"b")], "no config: idx 2 missing"),
        (
            [config_packet(0), config_packet(2)],
            "second config, idx 2: multifd0.bin at offset 377",
        ),
        (
            [config_packet(0), packet(7, b"a")],
            "idx 7 beyond the config, idx 0: multifd0.bin at offset 377",
        ),
        (
            [packet(0, b"a"), config_packet(1)[:-1] + b"!"],
            "config, idx 1, without its marks: multifd0.bin at offset 353",
        ),
        (
            [config_packet(0, bytes((1 << 20) + 1))],
            "config, idx 0, of 1048593 bytes: multifd0.bin at offset 64",
        ),
    ],
)
def test_a_device_that_is_not_whole(
    tmp_path: Path, packets: Sequence[bytes], error: str
) -> None:
    """The one line names the device, the index and where it is."""
    report = inspect(tmp_path, packets)
    assert report.status == "incomplete"
    assert report.errors == (f"{IDSTR}: {error}",)
    (device,) = report.devices
    assert (device.status, device.errors) == ("incomplete", (error,))


def test_many_missing(tmp_path: Path) -> None:
    """A peer that leaves out much does not make a line without end."""
    packets = [packet(2 * idx + 1, b"") for idx in range(100)]
    report = inspect(tmp_path, [*packets, config_packet(0xFFFF_FFFE)])
    assert report.reason is not None
    assert report.reason.endswith("idx 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, ... missing")


def test_only_what_can_be_loaded_counts(tmp_path: Path) -> None:
    """The totals of a device with a gap end at the gap; its packets are all there."""
    packets = [packet(0, b"a"), packet(2, b"c"), config_packet(3)]
    report = inspect(tmp_path, packets)
    (device,) = report.devices
    assert (device.data_bytes, device.buffers) == (7, 1)
    assert device.sha256 == hashlib.sha256(PRECOPY + b"a").hexdigest()
    assert [packet.idx for packet in report.packets] == [0, 2, 3]


def test_never_announced(tmp_path: Path) -> None:
    """Packets of a device that the main stream does not know are a fault of it."""
    strange = [packet(0, b"a", "x/vfio"), config_packet(1, idstr="x/vfio")]
    report = inspect(tmp_path, [config_packet(0), *strange])
    assert report.errors == (
        "x/vfio: packets of a device that the main channel never announced",
    )
    assert [device.status for device in report.devices] == ["complete", "incomplete"]


def test_packets_without_switchover_start(tmp_path: Path) -> None:
    """A destination would never have loaded them."""
    report = inspect(tmp_path, [config_packet(0)], main=main_stream(switchover=b""))
    assert report.errors == (f"{IDSTR}: packets, but no SWITCHOVER_START",)


def test_both_kinds_of_transfer(tmp_path: Path) -> None:
    """State comes over the main channel or over the others, never both."""
    report = inspect(tmp_path, [config_packet(0)], main=main_stream(config=BLOB))
    (error,) = report.errors
    assert error.endswith("on the main channel and on multifd channels")


def test_no_state_at_all(tmp_path: Path) -> None:
    """A device without config is not whole, whatever the stream says."""
    report = inspect(tmp_path)
    assert report.errors == (f"{IDSTR}: no config",)


@pytest.mark.parametrize("missing", [1, 4, 100])
def test_channel_cut(tmp_path: Path, missing: int) -> None:
    """A cut channel is told from nonsense, and what was before it is still shown."""
    whole = channel(0, [packet(0, b"a" * 200), config_packet(1)])
    capture = write_capture(tmp_path, main_stream())
    (capture / "multifd0.bin").write_bytes(whole[:-missing])
    report = inspect_capture(capture)
    assert report.status == "cut"
    assert report.reason == "multifd0.bin: channel ends inside the packet at offset 552"
    assert [packet.idx for packet in report.packets] == [0]
    assert report.channels[0].packets == 1
    assert report.channels[0].bytes == len(whole) - missing


def test_channel_cut_inside_ram(tmp_path: Path) -> None:
    """A packet of RAM that is not all there does not count."""
    whole = channel(0, [sync_packet(), sync_packet()])
    capture = write_capture(tmp_path, main_stream())
    (capture / "multifd0.bin").write_bytes(whole[:-1])
    report = inspect_capture(capture)
    assert report.status == "cut"
    assert report.channels[0].packets == 1


@pytest.mark.parametrize("size", [0, 63])
def test_channel_without_its_initial_packet(tmp_path: Path, size: int) -> None:
    """A connection may end before it said what it is."""
    capture = write_capture(tmp_path, main_stream())
    (capture / "multifd0.bin").write_bytes(channel(0, [])[:size])
    report = inspect_capture(capture)
    assert report.status == "cut"
    assert report.reason == "multifd0.bin: channel ends inside the packet at offset 0"


def test_cut_comes_first(tmp_path: Path) -> None:
    """Of several faults, the reason is the one behind the status."""
    capture = write_capture(tmp_path, main_stream()[:-1], {0: [], 1: []})
    (capture / "multifd1.bin").write_bytes(b"")
    report = inspect_capture(capture)
    assert report.status == "cut"
    assert [error.partition(":")[0] for error in report.errors] == [
        "multifd1.bin",
        "main.bin",
        "0000",
    ]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (bytes(64), "initial packet with magic 0x00000000 at offset 0"),
        (channel(3, []), "initial packet of channel 3 at offset 0"),
        (channel(0, [bytes(12)]), "packet with magic 0x00000000 at offset 64"),
    ],
)
def test_nonsense_on_a_channel(tmp_path: Path, raw: bytes, reason: str) -> None:
    """The line names the file and where in it the nonsense stands."""
    capture = write_capture(tmp_path, main_stream())
    (capture / "multifd0.bin").write_bytes(raw)
    report = inspect_capture(capture)
    assert report.status == "incomplete"
    assert report.reason == f"multifd0.bin: {reason}"


def test_every_end_of_the_main_stream(tmp_path: Path) -> None:
    """Wherever the main stream breaks off, that is said, and nothing else breaks."""
    whole = main_stream()
    for size in range(len(whole)):
        report = inspect(tmp_path, [config_packet(0)], main=whole[:size])
        # Behind the EOF byte a source may stop that sends no description.
        if size == len(whole) - 5:
            assert report.status == "complete"
        else:
            assert report.status == "incomplete"
            assert report.reason is not None
            assert report.reason.startswith("main.bin: stream ends in")
            assert report.reason.endswith(f"at offset {size}")
        assert report.main_bytes == size


def test_bytes_behind_the_end(tmp_path: Path) -> None:
    """A stream that goes on after its end is none that QEMU wrote."""
    report = inspect(tmp_path, [config_packet(0)], main=main_stream() + b"!")
    assert report.errors == (
        f"main.bin: bytes behind the end of the stream at offset {len(main_stream())}",
    )


def test_no_main_file(tmp_path: Path) -> None:
    """What the channels hold is shown even where the main connection is lost."""
    report = inspect_capture(write_capture(tmp_path, None, {0: [config_packet(0)]}))
    assert report.errors == ("main.bin: missing",)
    assert [device.status for device in report.devices] == ["complete"]


def test_page_size_of_the_caller(tmp_path: Path) -> None:
    """It gives the length of RAM packets where the stream does not."""
    capture = write_capture(tmp_path, main_stream(), {0: [config_packet(0)]})
    (capture / "multifd1.bin").write_bytes(channel(1, [sync_packet()]))
    assert inspect_capture(capture).status == "complete"
    report = inspect_capture(capture, page_size=65536)
    assert report.reason is not None
    assert "if the machine has another page size, say so" in report.reason


def test_no_capture(tmp_path: Path) -> None:
    """What is no capture at all is the caller's mistake."""
    with pytest.raises(ValueError, match=r"holds neither main\.bin nor channels"):
        inspect_capture(tmp_path)
    with pytest.raises(FileNotFoundError):
        inspect_capture(tmp_path / "nothing")


@pytest.mark.parametrize("meta", ["", "[]", '{"format": 2}', "[" * 100_000])
def test_unknown_format(tmp_path: Path, meta: str) -> None:
    """A capture of another format is not guessed at."""
    capture = write_capture(tmp_path, main_stream())
    (capture / "meta.json").write_text(meta)
    with pytest.raises(ValueError, match=r"meta\.json is not"):
        inspect_capture(capture)


def test_too_many_channels(tmp_path: Path) -> None:
    """A channel id that cannot be on the wire is none."""
    write_capture(tmp_path, main_stream(), {254: []})
    (tmp_path / "multifd255.bin").touch()
    with pytest.raises(ValueError, match="channel 255"):
        inspect_capture(tmp_path)


def test_large_meta_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is looked at first."""
    monkeypatch.setattr("trio_vfio._capture._layout._MAX_META", 4)
    with pytest.raises(ValueError, match="over 4 bytes"):
        inspect_capture(write_capture(tmp_path, main_stream()))


def test_memory(tmp_path: Path) -> None:
    """A capture is never taken into memory: one packet at a time is."""
    mib = 1 << 20
    packets = [packet(idx, bytes(mib)) for idx in range(24)]
    blocks = encode_data(bytes(24 * mib))
    write_capture(
        tmp_path / "multifd", main_stream(), {0: [*packets, config_packet(24)]}
    )
    write_capture(tmp_path / "main", main_stream(end=blocks, config=BLOB))
    del packets, blocks
    for name in ("multifd", "main"):
        tracemalloc.start()
        try:
            report = inspect_capture(tmp_path / name)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert report.status == "complete"
        assert peak < 8 * mib


def test_marks_are_what_the_config_is_without(tmp_path: Path) -> None:
    """Sizes of packets count the marks, the device's config does not."""
    report = inspect(tmp_path, [config_packet(0)])
    assert report.packets[0].bytes == len(encode_config(BLOB))
    assert report.devices[0].config_bytes == len(BLOB)
