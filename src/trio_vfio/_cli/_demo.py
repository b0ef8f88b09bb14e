"""``trio-vfio demo``: a whole migration, from one process into another."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, TypeVar, final

import attrs
import click
import trio

from .._errors import device_name
from ._options import traceback_option
from ._plain import cell, show_error
from ._run import run
from ._tables import add_rows, console, digest, seconds, table

_T = TypeVar("_T")
_MIB: Final = 1 << 20
_SIZE: Final = 64 * _MIB
_PRECOPY: Final = 16 * _MIB
_CHANNELS: Final = 4
_LEFT_ALONE: Final = 10.0
"""Seconds after which a destination whose source has ended is ended, too."""
_IDSTRS: Final = tuple(f"0000:00:0{slot}.0/vfio" for slot in range(4, 8))
_LISTENING: Final = re.compile(rb"^listening on (\S+)\n", re.MULTILINE)
_INTRODUCTION: Final = (
    "`trio-vfio send` in one process takes four devices of 64 MiB each to\n"
    "`trio-vfio receive` in another, over TCP on this machine: a main channel and\n"
    "four multifd channels, each a connection of its own. 16 MiB of each device go\n"
    "while its guest would still run, the rest when it stands still.\n"
)
_SUMMARY: Final = (
    "Packets of all devices raced each other over the channels; each device's were\n"
    "loaded strictly in order, its config last. Then the source heard that it may let\n"
    "go of the devices."
)


@click.command()
@traceback_option
def demo() -> int:
    """Migrate four devices from one process to another on this machine."""
    with ExitStack() as stack:
        devices = [_Device.make(idstr, stack) for idstr in _IDSTRS]
        show = _Demo(devices)
        click.echo(_INTRODUCTION)
        if (stopped := run(show.run)) is not None:
            return 128 + stopped
        return _verdict(show)


@final
@attrs.define(eq=False)
class _Device:
    """A device in memory, at the source and at the destination."""

    idstr: str
    here: int
    """Descriptor of its state at the source."""
    there: int
    """Descriptor of what the destination has loaded."""
    sha256: str
    """Of its state."""

    @classmethod
    def make(cls, idstr: str, stack: ExitStack) -> _Device:
        """Make a device, which lives as long as *stack*."""
        here, there = (os.memfd_create(idstr) for _ in range(2))
        stack.callback(os.close, here)
        stack.callback(os.close, there)
        content = hashlib.sha256()
        # Random, for zeros that are swapped or lost do not show.
        for _ in range(_SIZE // _MIB):
            piece = os.urandom(_MIB)
            content.update(piece)
            os.write(here, piece)
        os.lseek(here, 0, os.SEEK_SET)
        return cls(idstr, here, there, content.hexdigest())

    def loaded(self) -> str:
        """Return the digest of what really is at the destination."""
        os.lseek(self.there, 0, os.SEEK_SET)
        with open(self.there, "rb", closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@final
@attrs.define(eq=False)
class _Side:
    """One of the two processes, and what it says."""

    name: str
    started: bool = attrs.field(default=False, init=False)
    stdout: bytes = attrs.field(default=b"", init=False)
    stderr: bytes = attrs.field(default=b"", init=False)

    async def run(
        self,
        arguments: Sequence[str],
        fds: Sequence[int],
        hear: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """Run the process to its end.

        Args:
          hear: called with all of stderr so far whenever there is more.
        """
        self.started = True
        start = partial(
            trio.run_process,
            [sys.executable, "-m", "trio_vfio", self.name, "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            pass_fds=fds,
            # Ctrl-C gets there by way of this process, and so only once.
            start_new_session=True,
        )
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start)
            nursery.start_soon(self._read_result, _piped(process.stdout))
            async for data in _piped(process.stderr):
                self.stderr += data
                hear(self.stderr)

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What it came to; None if it died before it could say so."""
        try:
            return dict(json.loads(self.stdout))
        except ValueError:
            return None

    @property
    def faults(self) -> list[str]:
        """What went wrong in it."""
        if not self.started:
            return []
        if self.result is not None:
            return [f"{self.name}: {error}" for error in self.result["errors"]]
        said = self.stderr.decode(errors="backslashreplace").strip()
        return [f"{self.name}: {said or 'it died without a word'}"]

    async def _read_result(self, stdout: trio.abc.ReceiveStream) -> None:
        async for data in stdout:
            self.stdout += data


@final
@attrs.define(eq=False)
class _Demo:
    """A source and a destination, each a process of its own."""

    devices: Sequence[_Device]
    source: _Side = attrs.field(factory=lambda: _Side("send"), init=False)
    destination: _Side = attrs.field(factory=lambda: _Side("receive"), init=False)
    _all: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _destination_ended: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self) -> None:
        """Run both. Cancelled, it ends both."""
        with self._all:
            await self._run()

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            started = False

            def hear(stderr: bytes) -> None:
                nonlocal started
                if not started and (listening := _LISTENING.search(stderr)):
                    started = True
                    nursery.start_soon(self._send, listening[1].decode())

            fds = [device.there for device in self.devices]
            arguments = ["tcp:127.0.0.1:0", *self._arguments(fds)]
            await self.destination.run(arguments, fds, hear)
            self._destination_ended.set()

    async def _send(self, address: str) -> None:
        fds = [device.here for device in self.devices]
        arguments = [address, f"--channels={_CHANNELS}", f"--precopy={_PRECOPY}"]
        await self.source.run([*arguments, *self._arguments(fds)], fds)
        # A source that died before it connected leaves a destination that waits.
        with trio.move_on_after(_LEFT_ALONE) as waiting:
            await self._destination_ended.wait()
        if waiting.cancelled_caught:
            self._all.cancel(reason="there is no source any more")

    def _arguments(self, fds: Sequence[int]) -> list[str]:
        pairs = zip(self.devices, fds, strict=True)
        return [f"--device={device.idstr}=fd:{fd}" for device, fd in pairs]


def _piped(stream: _T | None) -> _T:
    if stream is None:
        raise RuntimeError("the process was started without pipes")
    return stream


def _verdict(show: _Demo) -> int:
    """Say what was seen, or what went wrong. Returns the exit status."""
    faults = [*show.source.faults, *show.destination.faults]
    sent, received = show.source.result, show.destination.result
    if sent is not None and received is not None:
        right = [_is_right(device, sent, received) for device in show.devices]
        _print_devices(sent, received, right)
        if not faults and not all(right):
            faults.append("what was loaded is not what was sent")
    for fault in faults:
        show_error(fault)
    if not faults:
        click.echo(_SUMMARY)
    return 1 if faults else 0


def _is_right(
    device: _Device, sent: Mapping[str, Any], received: Mapping[str, Any]
) -> bool:
    """Whether the destination has what the source had, and both sides say so."""
    digests = [
        each["sha256"]
        for side in (sent, received)
        for each in side["devices"]
        if each["idstr"] == device.idstr
    ]
    return digests == [device.sha256] * 2 and device.loaded() == device.sha256


def _print_devices(
    sent: Mapping[str, Any], received: Mapping[str, Any], right: Sequence[bool]
) -> None:
    columns = "device", ">bytes", ">pre-copy", ">buffers", ">starved", ">seconds"
    made = table("devices", *columns, "sha256", "the same")
    rows = (
        (
            device_name(device["idstr"], device["instance_id"]),
            device["data_bytes"],
            device["precopy_bytes"],
            device["buffers"],
            device["starved"],
            seconds(device["seconds"]),
            digest(device["sha256"]),
            "yes" if is_right else "no",
        )
        for device, is_right in zip(received["devices"], right, strict=False)
    )
    add_rows(made, rows)
    out = console()
    out.print(made)
    mib = sum(device["data_bytes"] for device in sent["devices"]) / _MIB
    speed = mib / max(sent["seconds"], 1e-9)
    downtime = seconds(sent["switchover_seconds"])
    out.print(cell(f"switchover: {downtime} s, of {seconds(sent['seconds'])} s in all"))
    out.print(cell(f"throughput: {mib:.0f} MiB at {speed:.0f} MiB/s"))
    out.print()
