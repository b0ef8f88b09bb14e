"""Collaboration: a source says what QEMU says, at the same moments."""

from __future__ import annotations

import errno
import itertools
import json

import pytest
import trio
from trio.testing import MockClock

from trio_vfio import MigrationFailed, TraceEvent, open_outgoing
from trio_vfio.testing import ScriptedDestination, SimulatedSource, link

from ..captures_data import capture

A = "0000:00:04.0/vfio"

# What a QEMU says of the device, of the migration, and of its channels.
OURS = (
    "vfio_save_",
    "migrate_set_state",
    "savevm_send_switchover_start",
    "multifd_new_send_channel_async",
    "multifd_send_thread_",
)


async def said(
    source: SimulatedSource, *, return_path: bool = True, last_word: int = 0
) -> list[str]:
    """Send *source*, and return what was said meanwhile."""
    events: list[TraceEvent] = []
    here, there = link()
    destination = ScriptedDestination(there, last_word=last_word)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        try:
            async with open_outgoing(
                here,
                {A: source},
                buffer_size=60,
                return_path=return_path,
                trace=events.append,
            ) as outgoing:
                await outgoing.migrate()
        except MigrationFailed:
            pass
    return [str(event) for event in events]


async def test_what_a_real_source_says(autojump_clock: MockClock) -> None:
    """The same events in the same order, of a device like the recorded one."""
    files = capture("f-1dev-2ch-running-proxy")
    meta = json.loads((files.directory / "meta.json").read_bytes())
    lines = [line for line in meta["source"]["trace"] if line.startswith(OURS)]
    name = next(line.split("(")[1].split(")")[0] for line in lines if "(" in line)
    # RAM has more rounds than the device has data; packets are those of RAM, too.
    recorded = [
        line.replace(name, A).partition(" packets")[0]
        for line, _ in itertools.groupby(lines)
    ]
    (device,) = files.expected["devices"]
    ours = await said(SimulatedSource(size=device["data_bytes"], initial_bytes=24))
    mine = [line.partition(" packets")[0] for line in ours if line.startswith(OURS)]
    for kind in ("vfio_save_", "migrate_set_state", "multifd_send_thread_start"):
        assert [line for line in mine if line.startswith(kind)] == [
            line for line in recorded if line.startswith(kind)
        ]
    assert sorted(mine) == sorted(recorded)


async def test_each_piece_of_the_main_stream(autojump_clock: MockClock) -> None:
    lines = await said(SimulatedSource(size=10))
    kinds = ("savevm_", "source_return_path")
    spoken = [line for line in lines if line.startswith(kinds)]
    heard = [line for line in spoken if line.startswith("source_")]
    assert heard == [
        "source_return_path_thread_entry ",
        "source_return_path_thread_loop_top ",
        "source_return_path_thread_pong 0x1",
        "source_return_path_thread_loop_top ",
        "source_return_path_thread_shut 0x0",
        "source_return_path_thread_end ",
    ]
    assert [line for line in spoken if line not in heard] == [
        "savevm_state_header ",
        "savevm_send_open_return_path ",
        "savevm_command_send com=0x1 len=0",
        "savevm_send_ping 0x1",
        "savevm_command_send com=0x2 len=4",
        "savevm_state_setup ",
        f"savevm_section_start {A}, section_id 42",
        f"savevm_section_end {A}, section_id 42 -> 0",
        "savevm_send_switchover_start ",
        "savevm_command_send com=0xb len=0",
        *[
            f"savevm_section_start {A}, section_id 42",
            f"savevm_section_end {A}, section_id 42 -> 0",
        ]
        * 2,
    ]


async def test_rounds(autojump_clock: MockClock) -> None:
    source = SimulatedSource(size=200, initial_bytes=100, dirty_bytes=50)
    lines = await said(source)
    rounds = [line for line in lines if "iterate" in line or "_block" in line]
    exact = [line for line in lines if line.startswith("vfio_state_pending_exact")]
    assert exact == [
        f"vfio_state_pending_exact  ({A}) precopy {left} postcopy 0 stopcopy size"
        f" {left} precopy initial size {initial} precopy dirty size {dirty}"
        for left, initial, dirty in [(200, 100, 50), (50, 0, 0)]
    ]
    sizes = [(60, 40, 50), (60, 0, 30), (30, 0, 0)]
    blocks = [
        [
            f"vfio_save_block  ({A}) data_size {size}",
            f"vfio_save_iterate  ({A}) precopy initial size {initial}"
            f" precopy dirty size {dirty}",
        ]
        for size, initial, dirty in sizes
    ]
    assert rounds == [
        "savevm_state_iterate ",
        f"vfio_save_iterate_start  ({A})",
        *itertools.chain(*blocks),
    ]


async def test_a_read_that_gives_nothing(autojump_clock: MockClock) -> None:
    lines = await said(SimulatedSource(size=10, precopy=True))
    assert f"vfio_save_block_precopy_empty_hit  ({A})" in lines


@pytest.mark.parametrize("return_path", [True, False])
async def test_a_failure(return_path: bool, autojump_clock: MockClock) -> None:
    lines = await said(
        SimulatedSource(size=10, fails={"stop": errno.EIO}), return_path=return_path
    )
    error = f"migrate_error error={A}: stop: EIO: Input/output error"
    assert lines[-3:-1] == [error, "source_return_path_thread_end "]
    assert lines[-1] == "migrate_set_state new state failed"


async def test_a_destination_that_fails(autojump_clock: MockClock) -> None:
    lines = await said(SimulatedSource(size=10), last_word=1)
    wanted = [
        "source_return_path_thread_shut 0x1",
        "source_return_path_thread_bad_end ",
        "migrate_error error=the destination says that the migration failed",
        "source_return_path_thread_end ",
        "migrate_set_state new state failed",
    ]
    assert [line for line in lines if line in wanted] == wanted
