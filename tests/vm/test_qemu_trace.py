"""Collaboration: of one recorded migration, QEMU and we say the same of each device.

Which packet comes first is the network's affair. So that nothing hangs on it, each
device-state packet is held back until the destination itself says that it is time.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, final

import attrs
import pytest
import trio

from trio_vfio._capture._channel_scan import PacketRecord
from trio_vfio._capture._player import play
from trio_vfio._capture._report import inspect_capture
from trio_vfio._link._address import connect, parse_address

from ..captures_data import PADDED, CaptureFiles, capture
from ..cli.processes import running
from . import qemu
from .checks import Mttys
from .qemu import idstr, whole_lines
from .replay import devices_for, setup_of

TRACED: Final = ("vfio_load_*",)

Trace = Callable[[], Sequence[str]]
"""Returns the lines so far, each an event and its arguments."""

Await = Callable[[PacketRecord, PacketRecord], str]
"""Returns for what event a packet waits, given it and its device's config."""


def one_by_one(packet: PacketRecord, _: PacketRecord) -> str:
    """Each packet comes when the device has nothing more to do."""
    return f"starved  ({packet.idstr}) idx {packet.idx}"


def config_first(packet: PacketRecord, config: PacketRecord) -> str:
    """The device knows which buffer is its last before it has any."""
    if packet is config:
        return f"starved  ({packet.idstr}) idx 0"
    return f"incoming  ({packet.idstr}) idx {config.idx}"


@pytest.mark.parametrize(
    ("files", "awaits"),
    [
        (capture("b-2dev-4ch-proxy"), config_first),
        (capture("d-1dev-2ch-rp-ack-proxy"), one_by_one),
        (capture(PADDED), one_by_one),
    ],
    ids=lambda value: value.name if isinstance(value, CaptureFiles) else "",
)
async def test_they_say_the_same(
    files: CaptureFiles, awaits: Await, mttys: Mttys, tmp_path: Path
) -> None:
    devices = devices_for(files, mttys)
    path = tmp_path / "ours.trace"
    options = ["--json", "--quiet", f"--into={tmp_path / 'snapshot'}"]
    async with running(
        "receive", "tcp:127.0.0.1:0", f"--trace={path}", *options
    ) as run:
        # While the command starts.
        setup = attrs.evolve(setup_of(files), trace=TRACED)
        async with qemu.destination(devices, tmp_path, setup) as destination:
            names = {
                device.uuid: idstr(number) for number, device in enumerate(devices)
            }
            trace = partial(lines, tmp_path / "destination.trace", names)
            address = await destination.listen()
            await Replay(files, awaits, trace).run(address)
            assert await destination.wait_status("completed") == "completed"
            assert await destination.quit() == 0
        theirs = trace()
        await Replay(files, awaits, partial(lines, path, {})).run(await run.address())
    assert run.process.returncode == 0
    ours = lines(path, {})
    for number in range(len(devices)):
        check_same(of_device(ours, number), of_device(theirs, number))


def lines(path: Path, names: Mapping[str, str]) -> list[str]:
    """Return the events in a trace, with other names for its devices."""
    found: list[str] = []
    for line in whole_lines(path):
        # Of ours, each begins with a process and the time.
        event = line.split(":", 1)[1] if "@" in line.split(" ")[0] else line
        for name, other in names.items():
            event = event.replace(name, other)
        found.append(event)
    return found


def of_device(trace: Sequence[str], number: int) -> list[str]:
    """Return what is said of the loading of one device."""
    pattern = re.compile(rf"vfio_load_\w+  \({re.escape(idstr(number))}\)")
    return [line for line in trace if pattern.match(line)]


def check_same(ours: Sequence[str], theirs: Sequence[str]) -> None:
    """Assert that both are equal; in order, but for what comes when packets come."""
    assert len(theirs) > 5
    apart = (
        "vfio_load_state_device_buffer_incoming",
        "vfio_load_state_device_buffer_starved",
    )
    assert [line for line in ours if not line.startswith(apart)] == [
        line for line in theirs if not line.startswith(apart)
    ]
    assert {line for line in ours if line.startswith(apart)} == {
        line for line in theirs if line.startswith(apart)
    }


@final
@attrs.frozen
class Replay:
    """A capture that is played packet by packet."""

    files: CaptureFiles
    awaits: Await
    trace: Trace
    """Of the destination."""

    async def run(self, address: str) -> None:
        """Play it, to its end."""
        where = parse_address(address)
        # The main connection first, and then the channels by their ids.
        gates = iter([{}, *map(self._gates, self.files.channels)])

        async def connect_next() -> trio.abc.Stream:
            return _Gated(await connect(where), next(gates), self._said)

        with trio.fail_after(60):
            await play(self.files.directory, connect_next)

    def _gates(self, channel: int) -> dict[int, str]:
        packets = inspect_capture(self.files.directory).packets
        configs = {packet.idstr: packet for packet in packets if packet.flags}
        return {
            packet.offset: self.awaits(packet, configs[packet.idstr])
            for packet in packets
            if packet.channel == channel
        }

    async def _said(self, event: str) -> None:
        """Wait until the destination has said it."""
        # Nobody is told when a file grows.
        while not any(line.endswith(event) for line in self.trace()):  # noqa: ASYNC110
            await trio.sleep(0.02)


@final
@attrs.define(eq=False)
class _Gated(trio.abc.Stream):
    """A connection on which bytes from some offsets on wait for an event."""

    stream: trio.abc.Stream
    gates: dict[int, str]
    said: Callable[[str], Awaitable[None]]
    sent: int = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        while data:
            if (event := self.gates.pop(self.sent, None)) is not None:
                await self.said(event)
            ahead = [at - self.sent for at in self.gates if at > self.sent]
            count = min([*ahead, len(data)])
            await self.stream.send_all(data[:count])
            data = data[count:]
            self.sent += count

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()
