"""``trio-vfio demo``: a recorded migration, from one process into another."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar, final

import attrs
import click
import trio

from .._capture._player import play
from .._errors import device_name
from .._link._address import connect, parse_address
from ._options import traceback_option
from ._plain import cell, show_error
from ._run import run
from ._tables import add_rows, console, digest, seconds, table

_T = TypeVar("_T")
_LISTENING: Final = re.compile(rb"^listening on (\S+)\n", re.MULTILINE)
_INTRODUCTION: Final = (
    "Playing what a real QEMU sent for a real VFIO device into `trio-vfio receive`\n"
    "in another process, over TCP on this machine: the main channel and {} multifd\n"
    "channels, each a connection of its own."
)
_SUMMARY: Final = (
    "The buffers came over different connections, and each was loaded in its turn;\n"
    "the device's config came last. Then the source heard that it may let go."
)


@click.command()
@traceback_option
def demo() -> int:
    """Play a recorded migration into `receive`, over TCP on this machine.

    The recording is of a real QEMU with a real VFIO device, whose state comes
    in five buffers over four multifd channels.
    """
    recording = resources.files("trio_vfio") / "_demo" / "capture"
    with resources.as_file(recording) as capture:
        into = Path(tempfile.mkdtemp(prefix="trio-vfio-demo-"))
        try:
            return _play_and_show(_Demo(capture, into / "snapshot"))
        finally:
            shutil.rmtree(into, ignore_errors=True)


@final
@attrs.define(eq=False)
class _Demo:
    """A source in this process, and a destination in another."""

    capture: Path
    into: Path
    """Where the destination puts the state."""
    heard: bytes = attrs.field(default=b"", init=False)
    """By the source, on the return path."""
    stdout: bytes = attrs.field(default=b"", init=False)
    """Of the destination."""
    stderr: bytes = attrs.field(default=b"", init=False)

    async def run(self) -> None:
        """Run both. Cancelled, it ends both."""
        options = ["--json", "--first-connection", "30", "--into", str(self.into)]
        module = [sys.executable, "-m", "trio_vfio"]
        start = partial(
            trio.run_process,
            [*module, "receive", "tcp:127.0.0.1:0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            # Ctrl-C gets there by way of this process, and so only once.
            start_new_session=True,
        )
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start)
            nursery.start_soon(self._read_result, _piped(process.stdout))
            listening = None
            async for data in _piped(process.stderr):
                self.stderr += data
                if listening is None and (listening := _LISTENING.search(self.stderr)):
                    nursery.start_soon(self._play, listening[1].decode())

    async def _read_result(self, stdout: trio.abc.ReceiveStream) -> None:
        async for data in stdout:
            self.stdout += data

    async def _play(self, address: str) -> None:
        to = parse_address(address)
        self.heard = await play(self.capture, lambda: connect(to))


def _piped(stream: _T | None) -> _T:
    if stream is None:
        raise RuntimeError("the process was started without pipes")
    return stream


def _play_and_show(show: _Demo) -> int:
    """Run the demo, and say what was seen. Returns the exit status."""
    expected = json.loads((show.capture / "expected.json").read_bytes())
    click.echo(_INTRODUCTION.format(len(expected["channels"])) + "\n")
    if (stopped := run(show.run)) is not None:
        show_error(f"cancelled by {stopped.name}")
        return 128 + stopped
    try:
        result = json.loads(show.stdout)
    except ValueError:
        said = show.stderr.decode(errors="backslashreplace").strip()
        show_error(f"the receiving process said: {said or 'nothing'}")
        return 1
    digests = _digests(show.into)
    right = [_is_right(device, digests, expected) for device in result["devices"]]
    _print_devices(result, right)
    all_right = len(expected["devices"]) == sum(right) == len(right)
    return _verdict(show, result, right=all_right)


def _verdict(show: _Demo, result: Mapping[str, Any], *, right: bool) -> int:
    """Say what went wrong, or what was seen. Returns the exit status."""
    faults = list(result["errors"])
    if show.heard != (show.capture / "return.bin").read_bytes():
        faults.append(f"the source heard {show.heard.hex(' ')}, not what QEMU's did")
    if not right:
        faults.append("what was loaded is not what was recorded")
    for fault in faults:
        show_error(fault)
    if not faults:
        click.echo(_SUMMARY)
    return 1 if faults else 0


def _digests(snapshot: Path) -> dict[tuple[str, int], str]:
    """Return the digest of what really is in the snapshot, for each device."""
    manifest = snapshot / "manifest.json"
    if not manifest.exists():
        return {}
    return {
        (device["idstr"], device["instance_id"]): hashlib.sha256(
            (snapshot / device["data"]).read_bytes()
        ).hexdigest()
        for device in json.loads(manifest.read_bytes())["devices"]
    }


def _is_right(
    device: Mapping[str, Any],
    digests: Mapping[tuple[str, int], str],
    expected: Mapping[str, Any],
) -> bool:
    """Whether *device* got what an independent reader has found in the recording."""
    key = (device["idstr"], device["instance_id"])
    return any(
        (each["idstr"], each["instance_id"]) == key
        and each["sha256"] == device["sha256"] == digests.get(key)
        and each["config_sha256"] == device["config_sha256"]
        for each in expected["devices"]
    )


def _print_devices(result: Mapping[str, Any], right: Sequence[bool]) -> None:
    columns = "device", ">bytes", ">buffers", ">starved", ">seconds", "sha256"
    made = table("devices", *columns, "expected")
    rows = (
        (
            device_name(device["idstr"], device["instance_id"]),
            device["data_bytes"],
            device["buffers"],
            device["starved"],
            seconds(device["seconds"]),
            digest(device["sha256"]),
            "yes" if is_right else "no",
        )
        for device, is_right in zip(result["devices"], right, strict=True)
    )
    add_rows(made, rows)
    out = console()
    out.print(made)
    out.print(cell(f"switchover: {seconds(result['switchover_seconds'])} s"))
    out.print()
