"""trio_vfio: whole sessions by its public interface, without digests."""

from __future__ import annotations

import time

import trio

import trio_vfio

from .arguments import Receive, Send, main
from .connections import HOST, SETTLE
from .packet import idstr
from .usage import Usage, announce

_MARK = 8
"""Bytes of the marks that a config travels between."""


async def _receive(job: Receive) -> None:
    sinks = {idstr(number): trio_vfio.FdSink(fd) for number, fd in enumerate(job.fds)}
    async with trio_vfio.open_incoming(f"tcp:{HOST}:0", sinks) as incoming:
        (address,) = incoming.addresses
        announce(int(address.rpartition(":")[2]))
        usage = Usage()
        result = await incoming.wait_complete()
    if any(sink.config != job.config[_MARK:-_MARK] for sink in sinks.values()):
        raise SystemExit("another config than was sent")
    usage.finish(
        moved=sum(device.data_bytes for device in result.devices),
        seconds=result.switchover_seconds or 0.0,
    )


async def _send(job: Send) -> None:
    config = job.config[_MARK:-_MARK]
    sources = {
        idstr(number): trio_vfio.FdSource(fd, config=config)
        for number, fd in enumerate(job.fds)
    }
    began = 0.0

    async def stop_guest() -> None:
        nonlocal began
        await trio.sleep(SETTLE)
        began = time.monotonic()

    usage = Usage()
    async with trio_vfio.open_outgoing(
        f"tcp:{HOST}:{job.port}",
        sources,
        channels=job.channels,
        buffer_size=job.packet,
        return_path=False,
    ) as outgoing:
        result = await outgoing.migrate(before_switchover=stop_guest)
        seconds = time.monotonic() - began
    moved = sum(device.data_bytes for device in result.devices)
    usage.finish(moved=moved, seconds=seconds)


if __name__ == "__main__":
    main(lambda job: trio.run(_receive, job), lambda job: trio.run(_send, job))
