"""Collaboration: how much memory a destination takes, in a process of its own.

The invariant: no more than ``max_queued_bytes`` for each device and 16 MiB besides,
however much state there is, in packets of whatever size, and however slow the devices.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import pytest
import trio

from tests.forms import form
from trio_vfio._link._address import connect, parse_address
from trio_vfio.testing import ScriptedSource, config_packet, data_packet

KIB, MIB = 1 << 10, 1 << 20
DEVICES = 3
CHANNELS = 2
STATE = form(short=40, long=100) * MIB

PROGRAM = """
import sys, time
from pathlib import Path
import trio
import trio_vfio

devices, max_queued_bytes = map(int, sys.argv[1:])
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

class Slow:
    "Takes 3 ms for a MiB, and the first when its queue is filled by more than half."
    precopy = False
    was_filled = False

    def __init__(self, number):
        self.name = f"{number}/vfio"

    async def write(self, buffers):
        await trio.to_thread.run_sync(self.take, buffers)

    def take(self, buffers):
        for buffer in buffers:
            while not self.was_filled:
                queued = progress[self.name].queued_bytes
                self.was_filled = queued > max_queued_bytes // 2
                time.sleep(0.001)
            time.sleep(len(buffer) * 3e-9)

    async def nothing(self, blob=b""):
        await trio.lowlevel.checkpoint()

    begin = load_config = finish = abort = nothing

async def main():
    global progress
    sinks = {each.name: each for each in map(Slow, range(devices))}
    async with trio_vfio.open_incoming(
        "tcp:127.0.0.1:0", sinks, max_queued_bytes=max_queued_bytes
    ) as incoming:
        progress = incoming.devices
        print(*incoming.addresses, flush=True)
        result = await incoming.wait_complete()
    for device in result.devices:
        print(device.data_bytes)

async def nothing():
    await trio.to_thread.run_sync(int)

trio.run(nothing)
before = peak()
trio.run(main)
print((peak() - before) * 1024)
"""


async def send(source: ScriptedSource, sizes: Sequence[int]) -> None:
    """Send each device's state, in packets of *sizes*, as fast as it is taken."""
    names = [f"{number}/vfio" for number in range(DEVICES)]
    await source.begin(*names)
    await source.switch_over()
    await source.end()

    async def send_some(channel: int) -> None:
        for idx in range(channel, len(sizes), CHANNELS):
            for name in names:
                await source.packets(channel, data_packet(name, idx, bytes(sizes[idx])))

    async with trio.open_nursery() as nursery:
        for channel in range(CHANNELS):
            nursery.start_soon(send_some, channel)
    await source.packets(0, *(config_packet(name, len(sizes)) for name in names))
    await source.close()


def same_sizes(size: int) -> list[int]:
    """Return one size, as often as makes all of the state."""
    return [size] * (STATE // size)


def many_sizes() -> list[int]:
    """Return sizes of which hardly one is there twice."""
    rng = random.Random(1)
    sizes: list[int] = []
    while sum(sizes) < STATE:
        sizes.append(rng.randrange(1, MIB))
    return sizes


def sizes_in_turn() -> list[int]:
    """Return many small sizes, then large ones, then medium ones."""
    kinds = (4 * KIB, MIB, 128 * KIB)
    return [size for size in kinds for _ in range(STATE // 3 // size)]


@pytest.mark.parametrize(
    ("max_queued_bytes", "sizes"),
    [
        (0, same_sizes(MIB)),
        (2 * MIB, same_sizes(MIB)),
        (16 * MIB, same_sizes(MIB)),
        (2 * MIB, same_sizes(64 * KIB)),
        (16 * MIB, same_sizes(64 * KIB)),
        (8 * MIB, many_sizes()),
        (8 * MIB, sizes_in_turn()),
    ],
    ids=["only-due", "1M-2M", "1M-16M", "64K-2M", "64K-16M", "many-sizes", "in-turn"],
)
async def test_state_of_any_size_takes_little_memory(
    max_queued_bytes: int, sizes: list[int]
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(DEVICES), str(max_queued_bytes)]
    said = b""
    with trio.fail_after(250):
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, command, stdout=subprocess.PIPE)
            process = await nursery.start(run)
            while not said.endswith(b"\n"):
                said += await process.stdout.receive_some()
            to = partial(connect, parse_address(said.decode().strip()))
            await send(await ScriptedSource.connect(to, channels=CHANNELS), sizes)
            rest = b"".join([piece async for piece in process.stdout])
    *data, above = map(int, rest.split())
    assert data == [sum(sizes)] * DEVICES
    assert above < max_queued_bytes * DEVICES + 16 * MIB
