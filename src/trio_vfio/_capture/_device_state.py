"""Put one device's state together from where it lies in the files of a capture."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from itertools import pairwise
from typing import Final

import attrs

from .._errors import PeerProtocolError
from .._result import CaptureStatus, DeviceResult, Transfer
from .._wire._limits import KIB, MAX_CONFIG
from .._wire._multifd import StateFlag
from .._wire._vfio_section import config_blob_untrusted, encode_config
from ._channel_scan import PacketRecord
from ._layout import Capture
from ._main_scan import DeviceKey, MainDevice, MainScan

_PIECE: Final = 256 * KIB
_MAX_SHOWN: Final = 10
_MAX_CONFIG_DATA: Final = MAX_CONFIG + len(encode_config(b""))


@attrs.frozen
class DeviceCapture:
    """The state of one device, and what is wrong with it."""

    key: DeviceKey
    main: MainDevice
    buffers: tuple[PacketRecord, ...]
    """Its data packets in load order, up to the first one that is missing."""
    config: bytes | None
    multifd: bool
    """Whether any packet of it came over a multifd channel."""
    faults: tuple[str, ...]

    def result(self, capture: Capture) -> DeviceResult:
        """Say what a destination would have loaded.

        Raises:
          OSError: if a file cannot be read.
        """
        digest = self.main.digest.copy()
        for piece in packet_data(capture, self.buffers):
            digest.update(piece)
        loaded = sum(packet.bytes for packet in self.buffers)
        config = self.config
        return DeviceResult(
            idstr=self.key[0],
            instance_id=self.key[1],
            status=CaptureStatus.INCOMPLETE if self.faults else CaptureStatus.COMPLETE,
            transfer=Transfer.MULTIFD if self.multifd else Transfer.MAIN,
            errors=self.faults,
            precopy_bytes=self.main.precopy_bytes,
            data_bytes=self.main.data_bytes + loaded,
            buffers=len(self.buffers) if self.multifd else self.main.blocks,
            sha256=digest.hexdigest(),
            config_bytes=None if config is None else len(config),
            config_sha256=None
            if config is None
            else hashlib.sha256(config).hexdigest(),
            starved=0,
            seconds=None,
        )


def collect_device(
    capture: Capture, key: DeviceKey, scan: MainScan, packets: Iterable[PacketRecord]
) -> DeviceCapture:
    """Put the state of the device *key* together, by the rules of a receiver.

    Args:
      packets: those of this device.

    Raises:
      OSError: if a file cannot be read.
    """
    main = scan.devices.get(key, MainDevice())
    ordered = sorted(packets, key=lambda packet: packet.idx)
    faults = [*_of_announcement(scan, main, multifd=bool(ordered)), *_of_order(ordered)]
    if ordered:
        buffers, config = _multifd_state(capture, ordered, faults)
    else:
        buffers, config = [], main.config
        if config is None:
            faults.append("no config")
    return DeviceCapture(
        key, main, tuple(buffers), config, bool(ordered), tuple(faults)
    )


def packet_data(
    capture: Capture, packets: Iterable[PacketRecord]
) -> Iterator[memoryview]:
    """Read the data of *packets* in pieces, none of them empty.

    Each piece is valid until the next one is asked for.

    Raises:
      OSError: if a file cannot be read.
    """
    buffer = memoryview(bytearray(_PIECE))
    for packet in packets:
        with capture.channel(packet.channel).open("rb") as file:
            file.seek(packet.data_offset)
            left = packet.bytes
            while left and (count := file.readinto(buffer[: min(left, _PIECE)])):
                yield buffer[:count]
                left -= count


def _of_announcement(
    scan: MainScan, main: MainDevice, *, multifd: bool
) -> Generator[str, None, None]:
    """Tell what the main stream says against the device's packets.

    Nothing, if that stream could not be read to its end: that is fault enough.
    """
    if multifd and main.transfers_here:
        yield "data or config on the main channel and on multifd channels"
    if not multifd or scan.fault is not None:
        return
    if not main.announced:
        yield "packets of a device that the main channel never announced"
    if scan.switchover_start is None:
        yield "packets, but no SWITCHOVER_START"


def _of_order(ordered: list[PacketRecord]) -> Generator[str, None, None]:
    """Tell which packets a device cannot have both of."""
    for one, other in pairwise(ordered):
        if one.idx == other.idx:
            yield f"idx {one.idx} twice: {one} and {other}"
    config = _config_of(ordered)
    for packet in ordered:
        if config is None or packet.idx <= config.idx:
            continue
        if _is_config(packet):
            yield f"second config, idx {packet.idx}: {packet}"
        else:
            yield f"idx {packet.idx} beyond the config, idx {config.idx}: {packet}"


def _multifd_state(
    capture: Capture, ordered: list[PacketRecord], faults: list[str]
) -> tuple[list[PacketRecord], bytes | None]:
    """Return the buffers that can be loaded and the config; add to *faults*."""
    config = _config_of(ordered)
    due = 0
    buffers: list[PacketRecord] = []
    missing: list[str] = []
    for packet in ordered:
        if packet.idx > due:
            missing.append(_indexes(due, packet.idx))
        elif packet.idx == due and packet is not config and not missing:
            buffers.append(packet)
        due = max(due, packet.idx + 1)
        if packet is config:
            break
    if missing:
        faults.append(f"idx {_some(missing)} missing")
    if config is None:
        faults.append(f"no config: idx {due} missing")
        return buffers, None
    return buffers, _config_blob(capture, config, faults)


def _config_blob(
    capture: Capture, packet: PacketRecord, faults: list[str]
) -> bytes | None:
    if packet.bytes > _MAX_CONFIG_DATA:
        faults.append(f"config, idx {packet.idx}, of {packet.bytes} bytes: {packet}")
        return None
    data = b"".join(bytes(piece) for piece in packet_data(capture, [packet]))
    try:
        return config_blob_untrusted(data, packet.idstr)
    except PeerProtocolError:
        faults.append(f"config, idx {packet.idx}, without its marks: {packet}")
        return None


def _config_of(ordered: list[PacketRecord]) -> PacketRecord | None:
    return next((packet for packet in ordered if _is_config(packet)), None)


def _is_config(packet: PacketRecord) -> bool:
    return bool(packet.flags & StateFlag.CONFIG)


def _indexes(first: int, end: int) -> str:
    return str(first) if end == first + 1 else f"{first}-{end - 1}"


def _some(missing: list[str]) -> str:
    shown = missing[:_MAX_SHOWN]
    more = ["..."] if len(missing) > len(shown) else []
    return ", ".join(shown + more)
