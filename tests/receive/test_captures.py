"""Collaboration: what a real QEMU sent, received over real sockets.

Each connection of a capture is one of its own, and what comes out is compared
with what an independent reader found in it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from trio_vfio import (
    Deadlines,
    Incoming,
    MigrationFailed,
    MigrationResult,
    open_incoming,
)
from trio_vfio._capture._player import play
from trio_vfio._link._address import connect, parse_address
from trio_vfio.testing import SimulatedSink

from ..captures_data import CAPTURES, COMPLETE, CaptureFiles, capture


async def receive(
    files: CaptureFiles, where: str, *, piece: int = 65536
) -> tuple[MigrationResult, bytes]:
    """Receive a capture; return the result and what the source heard."""
    heard: list[bytes] = []

    async def source(address: str) -> None:
        connect_to_it = partial(connect, parse_address(address))
        heard.append(await play(files.directory, connect_to_it, piece=piece))

    def sink(idstr: str, instance_id: int) -> SimulatedSink:
        return SimulatedSink()

    async with open_incoming(
        where, sink, digests=True, deadlines=Deadlines(silence=5)
    ) as incoming:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source, incoming.addresses[0])
            await incoming.wait_complete()
        # The channels were still talking then.
        sent = sum(each["bytes"] for each in files.expected["channels"])
        with trio.move_on_after(20):
            while _taken(incoming) < sent:  # noqa: ASYNC110 (a thread tells no event)
                await trio.sleep(0.001)
    return incoming.result(), heard[0]


def _taken(incoming: Incoming) -> int:
    return sum(channel.bytes for channel in incoming.result().channels)


def check(result: MigrationResult, heard: bytes, files: CaptureFiles) -> None:
    """Compare with what is expected, field by field."""
    found = attrs.asdict(result)
    for kind in "devices", "channels":
        for each, expected in zip(found[kind], files.expected[kind], strict=True):
            assert {name: each[name] for name in expected} == expected
    assert result.status == "completed"
    assert heard == (files.return_path or b"")


@pytest.mark.parametrize("files", COMPLETE, ids=lambda files: files.name)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_whole_migration_arrives_whole(
    files: CaptureFiles, kind: str, tmp_path: Path
) -> None:
    where = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path / 'socket'}"
    check(*await receive(files, where), files)


async def test_it_does_not_matter_how_the_bytes_are_cut() -> None:
    files = capture("v11-d-2dev-4ch-rp-ack-proxy")
    check(*await receive(files, "tcp:127.0.0.1:0", piece=997), files)


@pytest.mark.parametrize(
    "files",
    [each for each in CAPTURES if each not in COMPLETE],
    ids=lambda files: files.name,
)
async def test_a_migration_that_was_cut_fails(files: CaptureFiles) -> None:
    """Its source reported success (q) or had given up (k)."""
    with pytest.raises(MigrationFailed):
        await receive(files, "tcp:127.0.0.1:0")
