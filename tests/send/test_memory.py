"""Collaboration: how much memory a source takes, in a process of its own.

The invariant: no more than ``max_queued_bytes`` for each device and 16 MiB besides,
however much state there is and however little the destination takes at a time.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import trio

from tests.forms import form
from trio_vfio._link._stream import fill

MIB = 1 << 20
DEVICES = 3
CHANNELS = 2
STATE = form(short=60, long=200) * MIB

PROGRAM = """
import os, sys
from pathlib import Path
import trio
import trio_vfio

where, devices, channels, state, max_queued_bytes = sys.argv[1], *map(int, sys.argv[2:])

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

def source():
    fd = os.memfd_create("state")
    os.truncate(fd, state)
    return trio_vfio.FdSource(fd)

async def main():
    sources = {f"{number}/vfio": source() for number in range(devices)}
    async with trio_vfio.open_outgoing(
        where, sources, channels=channels, return_path=False,
        max_queued_bytes=max_queued_bytes,
    ) as outgoing:
        await outgoing.migrate()

async def nothing():
    await trio.to_thread.run_sync(int)

trio.run(nothing)
before = peak()
trio.run(main)
print((peak() - before) * 1024)
"""


async def drain(listener: trio.SocketListener) -> int:
    """Take all that comes on every connection; return how much it was."""
    taken = 0

    async def take(stream: trio.SocketStream) -> None:
        nonlocal taken
        memory = memoryview(bytearray(MIB))
        async with stream:
            while count := await fill(stream, [memory]):
                taken += count

    async with trio.open_nursery() as nursery:
        for _ in range(1 + CHANNELS):
            nursery.start_soon(take, await listener.accept())
    return taken


@pytest.mark.parametrize("max_queued_bytes", [0, 2 * MIB, 16 * MIB])
async def test_state_of_any_size_takes_little_memory(max_queued_bytes: int) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    where = f"tcp:127.0.0.1:{listener.socket.getsockname()[1]}"
    numbers = map(str, (DEVICES, CHANNELS, STATE, max_queued_bytes))
    command = [sys.executable, "-c", PROGRAM, where, *numbers]
    with trio.fail_after(250):
        async with listener, trio.open_nursery() as nursery:
            run = partial(trio.run_process, command, stdout=subprocess.PIPE)
            process = await nursery.start(run)
            assert await drain(listener) > DEVICES * STATE
            above = int(await process.stdout.receive_some())
    assert above < max_queued_bytes * DEVICES + 16 * MIB
