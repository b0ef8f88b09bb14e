"""Collaboration: a session says what QEMU says, at the same moments.

What real destinations printed is compared with what we say of the same bytes.
Left out is what hangs on the time of arrival, at both ends: which events of
*different* tasks come first (channels come in any order, and packets may come
before or after the loader starts), whether the loader had to wait (`starved`),
and whether it knew the last buffer for the last (`buffer_end`: only if the
config had arrived by then). Those are tested one by one, in virtual time.
"""

from __future__ import annotations

import errno
import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from trio_vfio import (
    FileSink,
    MigrationFailed,
    StateSink,
    TraceEvent,
    open_incoming,
)
from trio_vfio._capture._player import play
from trio_vfio._link._address import connect, parse_address
from trio_vfio._wire._limits import MIB
from trio_vfio._wire._main_encode import encode_end
from trio_vfio._wire._return_path import ReturnPathDecoder
from trio_vfio.testing import (
    ScriptedSource,
    SimulatedSink,
    config_packet,
    data_packet,
    link,
    state_packets,
)

from ..captures_data import COMPLETE, CaptureFiles, capture

A: Final = "0000:00:04.0/vfio"


def recorded(files: CaptureFiles) -> list[str]:
    """What a real destination printed when it took what the capture holds."""
    meta = json.loads((files.directory / "meta.json").read_bytes())
    return list(meta.get("dest", {}).get("trace", ()))


RECORDED: Final = [files for files in COMPLETE if recorded(files)]


async def receive(
    files: CaptureFiles, where: Path, *, kind: str = "simulated", piece: int = 65536
) -> list[str]:
    """Receive a capture, and return what was said."""
    events: list[TraceEvent] = []

    def sink(idstr: str, instance_id: int) -> StateSink:
        if kind == "simulated":
            return SimulatedSink()
        return FileSink(where / idstr.replace("/", "-"))

    async with open_incoming(
        f"unix:{where / 'socket'}", sink, trace=events.append
    ) as incoming:
        to = parse_address(incoming.addresses[0])
        async with trio.open_nursery() as nursery:
            source = partial(play, files.directory, partial(connect, to), piece=piece)
            nursery.start_soon(source)
            await incoming.wait_complete()
    return [str(event) for event in events]


def by_device(lines: list[str]) -> list[list[str]]:
    """The lines of each device, in the order in which devices appear, nameless."""
    devices: dict[str, list[str]] = {}
    for line in lines:
        if found := re.fullmatch(r"(vfio_load_\w+  \()(.*?)(\).*)", line):
            devices.setdefault(found[2], []).append(found[1] + found[3])
    return list(devices.values())


def in_order(lines: list[str]) -> list[str]:
    """What a device's own tasks say, one after the other."""
    other = "buffer_incoming", "buffer_starved", "buffer_end"
    return [line for line in lines if not line.split("  ")[0].endswith(other)]


def starting(lines: list[str], *names: str) -> list[str]:
    """The lines of some events."""
    return [line for line in lines if line.startswith(names)]


def test_what_was_recorded() -> None:
    assert {files.name[:3] for files in RECORDED} == {
        *("b-2", "c-1", "d-1", "f-1", "p-1", "v11")
    }


@pytest.mark.parametrize("kind", ["simulated", "file"])
@pytest.mark.parametrize("files", RECORDED, ids=lambda files: files.name)
async def test_what_is_said_of_each_device(
    files: CaptureFiles, kind: str, tmp_path: Path
) -> None:
    """In QEMU's order, byte for byte apart from its name, also from threads."""
    said = by_device(await receive(files, tmp_path, kind=kind))
    theirs = by_device(recorded(files))
    assert len(said) == len(theirs) == len(files.expected["devices"])
    for ours, qemus in zip(said, theirs, strict=True):
        assert in_order(ours) == in_order(qemus)
        incoming = "vfio_load_state_device_buffer_incoming"
        assert sorted(starting(ours, incoming)) == sorted(starting(qemus, incoming))
        for line in starting(ours, "vfio_load_state_device_buffer_load_start"):
            came = line.replace("load_start", "incoming")
            assert ours.index(came) < ours.index(line)


@pytest.mark.parametrize("files", RECORDED, ids=lambda files: files.name)
async def test_what_is_said_of_the_migration(
    files: CaptureFiles, tmp_path: Path
) -> None:
    """Its states in order; of the channels that they came, and with how much."""
    said, qemus = await receive(files, tmp_path), recorded(files)
    states = "migrate_set_state"
    assert starting(said, states) == starting(qemus, states)
    names = ("multifd_recv_new", "multifd_recv_thread")
    assert sorted(starting(said, *names)) == sorted(starting(qemus, *names))
    over = "multifd_recv_terminate"
    assert set(starting(said, over)) == set(starting(qemus, over))
    if not files.name.startswith("v11"):
        # Which prints who approves, not how many have yet to.
        acks = "loadvm_approve"
        assert starting(said, acks) == starting(qemus, acks)


@pytest.mark.parametrize("files", COMPLETE, ids=lambda files: files.name)
async def test_what_is_said_to_the_source(files: CaptureFiles, tmp_path: Path) -> None:
    frames = ReturnPathDecoder().received(files.return_path or b"")
    said = await receive(files, tmp_path)
    assert starting(said, "migrate_send_rp_message") == [
        f"migrate_send_rp_message {int(frame.type)}: len {len(frame.payload)}"
        for frame in frames
    ]


async def test_it_does_not_matter_how_the_bytes_are_cut(tmp_path: Path) -> None:
    files = capture("v11-d-2dev-4ch-rp-ack-proxy")
    said = await receive(files, tmp_path, piece=997)
    theirs = [in_order(each) for each in by_device(recorded(files))]
    assert [in_order(each) for each in by_device(said)] == theirs


async def test_a_whole_migration_event_by_event(autojump_clock: MockClock) -> None:
    """Each is said at its moment, with a guest that stands still in between."""
    said: list[tuple[float, str]] = []

    def hook(event: TraceEvent) -> None:
        said.append((trio.current_time(), str(event).replace(A, "A")))

    device = SimulatedSink(seconds_per_call=2)
    to, there = link()
    async with open_incoming(there, {A: device}, trace=hook) as incoming:
        source = await ScriptedSource.connect(to)
        await source.begin(A)
        await trio.sleep(10)
        await source.precopy(A, b"early")
        await trio.sleep(10)
        await source.switch_over()
        await source.packets(0, data_packet(A, 1, b"b"))
        await trio.sleep(10)
        await source.packets(1, data_packet(A, 0, b"a"), config_packet(A, 2, b"c"))
        await source.end()
        await source.close()
        await incoming.wait_complete()
    buffer = "vfio_load_state_device_buffer"
    main = "vfio_load_state "
    of_device = [(at, line) for at, line in said if line.startswith("vfio_")]
    assert [each for each in of_device if not each[1].startswith(main)] == [
        (12, "vfio_load_state_device_data  (A) size 5 ret 0"),
        (20, "vfio_load_bufs_thread_start  (A)"),
        (20, f"{buffer}_starved  (A) idx 0"),
        (20, f"{buffer}_incoming  (A) idx 1"),
        (30, f"{buffer}_incoming  (A) idx 0"),
        (30, f"{buffer}_start  (A)"),
        (30, f"{buffer}_load_start  (A) idx 0"),
        (30, f"{buffer}_incoming  (A) idx 2"),
        (32, f"{buffer}_load_end  (A) idx 0"),
        (32, f"{buffer}_load_start  (A) idx 1"),
        (34, f"{buffer}_load_end  (A) idx 1"),
        (34, f"{buffer}_end  (A)"),
        (34, "vfio_load_device_config_state_start  (A)"),
        (36, "vfio_load_device_config_state_end  (A)"),
        (38, "vfio_load_bufs_thread_end  (A)"),
        (38, "vfio_load_cleanup  (A)"),
    ]


async def test_the_main_stream_section_by_section(autojump_clock: MockClock) -> None:
    """With data and config on main too, in more than one piece.

    Answers are another task's, which may lag behind, and the config the loader's.
    """
    events: list[TraceEvent] = []
    device, block = SimulatedSink(), bytes(2 * MIB)
    to, there = link()
    async with open_incoming(there, {A: device}, trace=events.append) as incoming:
        source = await ScriptedSource.connect(to, channels=0)
        await source.begin(A, return_path=True)
        await source.precopy(A, b"early", init_data_sent=True)
        await source.switch_over()
        await source.end_device(A, [block, b""], b"blob")
        await source.main.send_all(encode_end())
        await incoming.wait_complete()
        await source.close()
    said = [str(event).replace(A, "A") for event in events]
    of_others = ("migrate_send", "vfio_load_device_config")
    assert [line for line in said if line.startswith(of_others[1])] == [
        "vfio_load_device_config_state_start  (A)",
        "vfio_load_device_config_state_end  (A)",
    ]
    assert [line for line in said if not line.startswith(of_others)] == [
        "migrate_set_state new state setup",
        "migrate_set_state new state active",
        "loadvm_state_setup ",
        "qemu_loadvm_state_section 8",
        "loadvm_process_command com=OPEN_RETURN_PATH len=0",
        "qemu_loadvm_state_section_command 0",
        "qemu_loadvm_state_section 8",
        "loadvm_process_command com=PING len=4",
        "loadvm_process_command_ping 0x1",
        "qemu_loadvm_state_section_command 0",
        "qemu_loadvm_state_section 1",
        "qemu_loadvm_state_section_startfull 40(A) 0 1",
        "vfio_load_state  (A) data 0xffffffffef100003",
        "qemu_loadvm_state_section 2",
        "qemu_loadvm_state_section_partend 40",
        "vfio_load_state  (A) data 0xffffffffef100004",
        "vfio_load_state_device_data  (A) size 5 ret 0",
        "vfio_load_state  (A) data 0xffffffffef100005",
        "loadvm_approve_switchover Switchover ack pending num=0",
        "qemu_loadvm_state_section 8",
        "loadvm_process_command com=SWITCHOVER_START len=0",
        "qemu_loadvm_state_section_command 0",
        "qemu_loadvm_state_section 3",
        "qemu_loadvm_state_section_partend 40",
        "vfio_load_state  (A) data 0xffffffffef100004",
        "vfio_load_state_device_data  (A) size 2097152 ret 0",
        "vfio_load_state  (A) data 0xffffffffef100004",
        "vfio_load_state_device_data  (A) size 0 ret 0",
        "qemu_loadvm_state_section 4",
        "qemu_loadvm_state_section_startfull 40(A) 0 1",
        "vfio_load_state  (A) data 0xffffffffef100002",
        "qemu_loadvm_state_section 0",
        "qemu_loadvm_state_post_main 0",
        "process_incoming_migration_co_end ret=0 postcopy-state=0",
        "migrate_set_state new state completed",
        "loadvm_state_cleanup ",
        "vfio_load_cleanup  (A)",
    ]


async def test_a_device_that_refuses_its_data(tmp_path: Path) -> None:
    """Its migration is given up in QEMU's order, with QEMU's number."""
    files = capture("k-kind-mismatch-proxy")
    events: list[TraceEvent] = []
    device = SimulatedSink(fails={"write": errno.EFAULT})
    with pytest.raises(MigrationFailed) as failed:
        async with open_incoming(
            f"unix:{tmp_path / 'socket'}", {A: device}, trace=events.append
        ) as incoming:
            to = parse_address(incoming.addresses[0])
            await play(files.directory, partial(connect, to))
            await trio.sleep_forever()
    said, qemus = [str(event) for event in events], recorded(files)
    assert by_device(said) == by_device(qemus)
    of_all = "migrate_set_state", "multifd_recv_terminate"
    assert starting(said, *of_all) == starting(qemus, *of_all)
    (refused,) = failed.value.exceptions
    assert TraceEvent("migrate_error", (refused,)) in events


async def test_a_channel_that_breaks(autojump_clock: MockClock) -> None:
    """It ends the others, as in QEMU, and each says how many packets it brought."""
    events: list[TraceEvent] = []
    to, there = link()
    device = SimulatedSink()
    with pytest.raises(MigrationFailed):
        async with open_incoming(there, {A: device}, trace=events.append):
            source = await ScriptedSource.connect(to)
            await source.begin(A)
            await source.packets(0, data_packet(A, 0, b"a"))
            await trio.testing.wait_all_tasks_blocked()
            await source.packets(0, bytes(12))
            await trio.sleep_forever()
    said = [str(event) for event in events]
    at = said.index("multifd_recv_terminate_threads error 1")
    assert said[at:] == [
        "multifd_recv_terminate_threads error 1",
        "multifd_recv_thread_end channel 0 packets 1",
        said[at + 2],
        "multifd_recv_thread_end channel 1 packets 0",
        "migrate_set_state new state failed",
        "multifd_recv_terminate_threads error 0",
        "loadvm_state_cleanup ",
        f"vfio_load_cleanup  ({A})",
    ]
    assert said[at + 2].startswith("migrate_error error=channel 0: packet with magic")


async def test_a_cancelled_migration(autojump_clock: MockClock) -> None:
    """What was taken up is given back there, too."""
    events: list[TraceEvent] = []
    to, there = link()
    with trio.move_on_after(1):
        async with open_incoming(there, {A: SimulatedSink()}, trace=events.append):
            source = await ScriptedSource.connect(to)
            await source.begin(A)
            await source.switch_over()
            await source.packets(0, data_packet(A, 0, b"a"))
            await trio.sleep_forever()
    said = [str(event).replace(A, "A") for event in events]
    at = said.index("migrate_set_state new state cancelled")
    assert "vfio_load_bufs_thread_end  (A)" in said[:at]
    assert said[at + 1 :] == [
        "multifd_recv_terminate_threads error 0",
        "loadvm_state_cleanup ",
        "vfio_load_cleanup  (A)",
    ]


async def test_without_a_listener_no_event_is_made(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_vfio._trace.TraceEvent", None)
    device = SimulatedSink()
    to, there = link()
    async with open_incoming(there, {A: device}) as incoming:
        source = await ScriptedSource.connect(to)
        await _whole(source)
        await incoming.wait_complete()


async def _whole(source: ScriptedSource) -> None:
    await source.begin(A)
    await source.switch_over()
    await source.packets(0, *state_packets(A, [b"a"], b"blob"))
    await source.end()
    await source.close()


async def test_what_is_said_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    to, there = link()
    with caplog.at_level(logging.DEBUG, "trio_vfio.trace"):
        async with open_incoming(there, {A: SimulatedSink()}) as incoming:
            await _whole(await ScriptedSource.connect(to))
            await incoming.wait_complete()
    said = [each.getMessage() for each in caplog.records if each.name.endswith("trace")]
    assert f"vfio_load_bufs_thread_start  ({A})" in said


async def test_a_hook_that_raises_does_not_fail_the_migration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even one that raises on what is said in a device's thread."""
    calls: list[str] = []

    def hook(event: TraceEvent) -> None:
        calls.append(event.name)
        if event.name == "vfio_load_state_device_buffer_load_start":
            raise ZeroDivisionError

    to, there = link()
    device = FileSink(tmp_path / "state")
    async with open_incoming(there, {A: device}, trace=hook) as incoming:
        await _whole(await ScriptedSource.connect(to))
        result = await incoming.wait_complete()
    assert result.status == "completed"
    assert calls[-1] == "vfio_load_state_device_buffer_load_start"
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.name == "trio_vfio.trace"
