"""The command as a process of its own, over real sockets. Collaboration.

These are few: each costs half a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_vfio._link._address import connect, parse_address
from trio_vfio._wire._main_encode import encode_command
from trio_vfio._wire._main_events import CommandType
from trio_vfio._wire._return_path import pong, shut

from ..capture.build import IDSTR, SWITCHOVER, channel, config_packet, main_stream
from ..captures_data import PADDED, CaptureFiles, capture
from .processes import names, running

pytestmark = pytest.mark.usefixtures("warm")

OPEN_RETURN_PATH = encode_command(CommandType.OPEN_RETURN_PATH)
PING = encode_command(CommandType.PING, bytes(4))


@pytest.mark.parametrize("name", [PADDED, "b-2dev-4ch-proxy", "c-1dev-main-mute"])
async def test_receive_into_a_snapshot(name: str, tmp_path: Path) -> None:
    """What a real QEMU sent is on disk, and the source heard what it then heard."""
    files = capture(name)
    into = tmp_path / "snapshot"
    arguments = ["tcp:127.0.0.1:0", "--json", "--quiet", f"--into={into}"]
    async with running("receive", *arguments) as run:
        answers = await run.play(files.directory)
    assert run.process.returncode == 0
    assert len(run.lines) == 1
    assert answers == (files.return_path or b"")
    result = run.result
    assert (result["status"], result["errors"]) == ("completed", [])
    assert result["channels"] == files.expected["channels"]
    _check_devices(result, files)
    _check_snapshot(into, files)


def _check_devices(result: dict[str, Any], files: CaptureFiles) -> None:
    for device, expected in zip(
        result["devices"], files.expected["devices"], strict=True
    ):
        assert device["status"] == "completed"
        assert {name: device[name] for name in expected} == expected


def _check_snapshot(into: Path, files: CaptureFiles) -> None:
    manifest = json.loads((into / "manifest.json").read_bytes())
    for device, expected in zip(
        manifest["devices"], files.expected["devices"], strict=True
    ):
        data = (into / device["data"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == expected["sha256"]
        config = (into / device["config"]).read_bytes()
        assert hashlib.sha256(config).hexdigest() == expected["config_sha256"]


async def test_receive_shows_tables(tmp_path: Path) -> None:
    """For a reader, with the device into a file."""
    path = tmp_path / "state"
    device = f"--device={IDSTR}=file:{path}"
    async with running("receive", "tcp:127.0.0.1:0", device) as run:
        await run.play(capture("d-1dev-2ch-rp-ack-proxy").directory)
    assert run.process.returncode == 0
    assert IDSTR in run.stdout.decode()
    assert "completed after " in run.stdout.decode()
    assert path.stat().st_size == 60


async def test_receive_with_a_trace(tmp_path: Path) -> None:
    """Each line is QEMU's, with the time before it."""
    path = tmp_path / "trace"
    device = f"--device={IDSTR}=null:"
    arguments = ["tcp:127.0.0.1:0", device, f"--trace={path}"]
    async with running("receive", *arguments) as run:
        await run.play(capture("d-1dev-2ch-rp-ack-proxy").directory)
    assert run.process.returncode == 0
    lines = path.read_text().splitlines()
    pid = run.process.pid
    found = [
        re.fullmatch(rf"{pid}@[0-9]{{10}}\.[0-9]{{6}}:(.*)", line) for line in lines
    ]
    said = [match[1] for match in found if match is not None]
    assert len(said) == len(lines)
    assert said[0] == "migrate_set_state new state setup"
    assert f"vfio_load_state_device_buffer_load_end  ({IDSTR}) idx 0" in said
    assert said[-1] == f"vfio_load_cleanup  ({IDSTR})"


async def test_a_trace_is_whole_after_a_cancel(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    device, trace = "--device=a=null:", f"--trace={path}"
    async with running("receive", "tcp:127.0.0.1:0", device, trace) as run:
        await run.address()
        run.process.send_signal(signal.SIGTERM)
    assert run.process.returncode == 143
    last = path.read_text().splitlines()[-2:]
    assert [line.partition(":")[2] for line in last] == [
        "migrate_set_state new state cancelled",
        "loadvm_state_cleanup ",
    ]


async def test_receive_what_is_cut(tmp_path: Path) -> None:
    """One line says what is wrong and where; the result says how far it came."""
    files = capture("q-1dev-4ch-pad4M-mute")
    into = tmp_path / "snapshot"
    arguments = ["tcp:127.0.0.1:0", "--json", "--quiet", f"--into={into}"]
    async with running("receive", *arguments) as run:
        await run.play(files.directory)
    assert run.process.returncode == 1
    assert run.result["status"] == "failed"
    # Both cut channels may be noticed, in any order.
    for line in run.lines[1:]:
        assert line.startswith("trio-vfio: error: channel ")
        assert "channel ends inside the packet (at byte " in line
    assert len(run.lines) == 1 + len(run.result["errors"]) > 1
    assert names(into) == []


@pytest.mark.parametrize("return_path", [True, False])
async def test_send_to_receive(return_path: bool, tmp_path: Path) -> None:
    """From files into a snapshot, and from that into files."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(os.urandom(3_000_000))
    second.write_bytes(b"")
    (tmp_path / "second.config").write_bytes(b"registers")
    devices = [f"--device=a/vfio=file:{first}", f"--device=b/vfio=file:{second}"]
    path = tmp_path / "snapshot"
    options = ["--channels=3", "--precopy=1MiB", "--machine=pc-q35-10.0"]
    if not return_path:
        options.append("--no-return-path")
    sent, received = await _send(devices + options, [f"--into={path}"])
    assert (sent["status"], received["status"]) == ("completed", "completed")
    for ours, theirs, file in zip(
        sent["devices"], received["devices"], [first, second], strict=True
    ):
        assert ours["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        same = ["idstr", "sha256", "config_sha256", "precopy_bytes", "data_bytes"]
        assert [ours[name] for name in same] == [theirs[name] for name in same]
    assert sent["channels"] == received["channels"]
    copies = [tmp_path / "third", tmp_path / "fourth"]
    devices = [f"--device={x}/vfio=file:{c}" for x, c in zip("ab", copies, strict=True)]
    sent, received = await _send([f"--from={path}"], devices)
    assert (sent["status"], received["status"]) == ("completed", "completed")
    assert copies[0].read_bytes() == first.read_bytes()
    assert (tmp_path / "fourth.config").read_bytes() == b"registers"


async def _send(
    source: list[str], destination: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    # Without progress, which a slow machine has time for.
    options = ("--json", "--quiet")
    arguments = ["tcp:127.0.0.1:0", *options, *destination]
    async with running("receive", *arguments) as there:
        address = await there.address()
        async with running("send", address, *options, *source) as here:
            pass
    assert (here.process.returncode, here.lines) == (0, [])
    assert there.process.returncode == 0
    return here.result, there.result


async def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with running(
        "send", f"unix:{path}", "--device=a/vfio=null:", "--json"
    ) as run:
        pass
    assert run.process.returncode == 1
    error = f"ENOENT: No such file or directory: unix:{path}"
    assert run.lines == [f"trio-vfio: error: {error}"]
    assert (run.result["status"], run.result["errors"]) == ("failed", [error])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_send_cancelled(number: signal.Signals, tmp_path: Path) -> None:
    """The destination fails, and the source says that it was cancelled."""
    read_end, write_end = os.pipe()
    into = tmp_path / "snapshot"
    async with running(
        "receive", "tcp:127.0.0.1:0", "--json", f"--into={into}"
    ) as there:
        address = await there.address()
        # A device that never comes to its end.
        arguments = [address, f"--device=a/vfio=fd:{read_end}", "--json"]
        async with running("send", *arguments, pass_fds=(read_end,)) as here:
            os.write(write_end, b"state")
            while not list(into.glob("*.part")):  # noqa: ASYNC110
                await trio.sleep(0.005)
            here.process.send_signal(number)
    os.close(read_end)
    os.close(write_end)
    assert here.process.returncode == 128 + number
    assert here.result["status"] == "cancelled"
    assert here.lines == [f"trio-vfio: error: cancelled by {number.name}"]
    assert there.process.returncode == 1
    assert len([line for line in there.lines if "error" in line]) == 1
    assert names(into) == []


async def test_port_is_taken() -> None:
    """What could not even begin has a result, too."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        async with running("receive", address, "--device=a=null:", "--json") as run:
            pass
    assert run.process.returncode == 1
    error = f"EADDRINUSE: Address already in use: {address}"
    assert run.lines == [f"trio-vfio: error: {error}"]
    assert (run.result["status"], run.result["errors"]) == ("failed", [error])


async def test_started_again_after_it_was_killed(tmp_path: Path) -> None:
    """At the same address. While it listens, nobody else can."""
    path = tmp_path / "socket"
    arguments = [f"unix:{path}", "--device=a=null:", "--json"]
    async with running("receive", *arguments) as killed:
        await killed.address()
        killed.process.kill()
    async with running("receive", *arguments) as run:
        assert await run.address() == f"unix:{path}"
        async with running("receive", *arguments) as refused:
            pass
        run.process.send_signal(signal.SIGTERM)
    error = "EADDRINUSE: Address already in use, a process listens there"
    assert refused.lines == [f"trio-vfio: error: {error}: unix:{path}"]
    assert run.errors == ["cancelled by SIGTERM"]
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_cancelled_while_idle(number: signal.Signals, tmp_path: Path) -> None:
    """It leaves no socket and says that it was cancelled."""
    path = tmp_path / "socket"
    arguments = [f"unix:{path}", "--into", str(tmp_path / "snapshot"), "--json"]
    async with running("receive", *arguments) as run:
        assert await run.address() == f"unix:{path}"
        run.process.send_signal(number)
    assert run.process.returncode == 128 + number
    assert run.result["status"] == "cancelled"
    assert run.lines[1:] == [f"trio-vfio: error: cancelled by {number.name}"]
    assert names(tmp_path) == []


async def test_cancelled_while_loading(tmp_path: Path) -> None:
    """The source hears of it, and nothing is left of what was loaded."""
    commands = OPEN_RETURN_PATH + SWITCHOVER + PING
    main, commands, _ = main_stream(switchover=commands).partition(commands)
    into = tmp_path / "snapshot"
    async with running(
        "receive", "tcp:127.0.0.1:0", "--json", "--into", str(into)
    ) as run:
        to = parse_address(await run.address())
        async with await connect(to) as stream, await connect(to) as multifd:
            # Idx 0 never comes.
            await multifd.send_all(channel(0, [config_packet(1)]))
            await stream.send_all(main + commands)
            assert await stream.receive_some() == pong(0).encode()
            assert names(into)
            run.process.send_signal(signal.SIGINT)
            assert await stream.receive_some() == shut(1).encode()
    assert run.process.returncode == 130
    assert run.result["status"] == "cancelled"
    assert [device["idstr"] for device in run.result["devices"]] == [IDSTR]
    assert names(into) == []


async def test_demo() -> None:
    """One command, from which a newcomer sees that it works."""
    async with running("demo") as run:
        pass
    assert (run.process.returncode, run.stderr) == (0, b"")
    text = run.stdout.decode()
    rows = [line.split() for line in text.splitlines() if "/vfio" in line]
    assert [row[0] for row in rows] == [f"0000:00:0{slot}.0/vfio" for slot in "4567"]
    for row in rows:
        assert row[1:4] == [str(64 << 20), str(16 << 20), "48"]
        assert row[-1] == "yes"
    assert "switchover: " in text
    assert "throughput: 256 MiB at " in text
