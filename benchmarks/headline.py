"""What multifd is for: the downtime of four devices, over one channel and over several.

Four simulated devices of 100 MiB each take a fixed time for each MiB. All their state goes

(a) over the main channel, where one is loaded after another, as without multifd;
(b) over four multifd channels, with a task for each device that loads it.

In real time, through real sockets, from one process to another. The downtime is that of
the guest: from SWITCHOVER_START until the last device has accepted its state.

    python -m benchmarks.headline
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from typing import Final, final

import attrs
import click
import trio

import trio_vfio
from trio_vfio.testing import MainStream

MIB: Final = 1 << 20
DEVICES: Final = tuple(f"0000:0{bus}:00.0/vfio" for bus in range(1, 5))
CHANNELS: Final = 4
SIZE: Final = 100
"""MiB of each device."""
MS_PER_MIB: Final = 4.0
"""How long a device takes for a MiB: with it, (a) takes about 2.1 s."""

_CONFIG: Final = bytes(4096)
_DEADLINES: Final = trio_vfio.Deadlines(first_connection=30.0)
_DEADLINE: Final = 120.0


class HeadlineError(Exception):
    """The state did not get to its destination as it should."""


@attrs.frozen
class Downtimes:
    """What one round has shown, in seconds."""

    main: float
    """All state over the main channel."""
    multifd: float

    @property
    def ratio(self) -> float:
        """What is left of the downtime with multifd."""
        return self.multifd / self.main


@final
@attrs.define(eq=False)
class TimedSink:
    """A device that takes its time for each MiB, in a worker thread, as real ones do."""

    seconds_per_mib: float
    precopy: bool | None = None
    loaded: int = attrs.field(default=0, init=False)

    async def begin(self) -> None:
        """Take no time."""
        await trio.lowlevel.checkpoint()

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Take the time that all of *buffers* need; if cancelled, of the one at hand."""
        await trio.to_thread.run_sync(self._write, buffers)

    async def load_config(self, blob: bytes) -> None:
        """Take no time."""
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """Take no time."""
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Leave what was taken as it is."""
        await trio.lowlevel.checkpoint()

    def _write(self, buffers: Iterator[memoryview]) -> None:
        for buffer in buffers:
            time.sleep(self.seconds_per_mib * len(buffer) / MIB)
            self.loaded += len(buffer)


async def measure(size: int = SIZE, ms_per_mib: float = MS_PER_MIB) -> Downtimes:
    """Migrate four devices of *size* MiB each, first one way and then the other.

    If cancelled, both ends are ended.

    Raises:
      HeadlineError: if that fails.
      trio.TooSlowError: if it takes all too long.
    """
    with trio.fail_after(_DEADLINE):
        return Downtimes(
            main=await _downtime("main", size, ms_per_mib),
            multifd=await _downtime("multifd", size, ms_per_mib),
        )


async def _downtime(way: str, size: int, ms_per_mib: float) -> float:
    sinks = {idstr: TimedSink(ms_per_mib / 1000) for idstr in DEVICES}
    async with (
        trio.open_nursery() as nursery,
        trio_vfio.open_incoming(
            "tcp:127.0.0.1:0", sinks, deadlines=_DEADLINES
        ) as incoming,
    ):
        (address,) = incoming.addresses
        command = [sys.executable, __file__, "--source", way, "--address", address]
        nursery.start_soon(trio.run_process, [*command, "--size", str(size)])
        result = await incoming.wait_complete()
    found = {device.transfer for device in result.devices}
    if found != {way} or any(sink.loaded != size * MIB for sink in sinks.values()):
        raise HeadlineError(f"not all state came by way of {way}")
    assert result.switchover_seconds is not None
    return result.switchover_seconds


# --- The source, in a process of its own


async def _send_multifd(address: str, size: int) -> None:
    sources = {idstr: trio_vfio.NullSource(size * MIB) for idstr in DEVICES}
    async with trio_vfio.open_outgoing(
        address, sources, channels=CHANNELS, return_path=False
    ) as outgoing:
        await outgoing.migrate()


async def _send_main(address: str, size: int) -> None:
    """Send what a source without multifd sends, which ours never does."""
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    stream = MainStream()
    begin = stream.begin(*DEVICES)
    # All of it beforehand: to put it together would take time of the downtime.
    ends = [stream.end_device(each, [bytes(MIB)] * size, _CONFIG) for each in DEVICES]
    async with await trio.open_tcp_stream(host, int(port)) as main:
        await main.send_all(begin + stream.switch_over())
        for end in (*ends, stream.end_stream()):
            await main.send_all(end)
        await main.send_eof()
        while await main.receive_some():
            pass


# --- The command


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=5, help="How many.")
@click.option("--size", type=click.IntRange(1), default=SIZE, help="MiB of a device.")
@click.option("--ms-per-mib", type=float, default=MS_PER_MIB, help="Of a device.")
@click.option("--source", type=click.Choice(["main", "multifd"]), hidden=True)
@click.option("--address", default="", hidden=True)
def main(
    *, rounds: int, size: int, ms_per_mib: float, source: str | None, address: str
) -> None:
    """Show the downtime of four devices, over the main channel and over multifd."""
    if source == "main":
        trio.run(_send_main, address, size)
    elif source == "multifd":
        trio.run(_send_multifd, address, size)
    else:
        one = partial(measure, size, ms_per_mib)
        show([trio.run(one) for _ in range(rounds)], size, ms_per_mib)


def show(
    rounds: Sequence[Downtimes], size: int = SIZE, ms_per_mib: float = MS_PER_MIB
) -> None:
    """Print both downtimes and their ratio, and what the devices alone would take."""
    each_takes = size * ms_per_mib
    click.echo(
        f"{len(DEVICES)} devices of {size} MiB that take {ms_per_mib:g} ms for each: they"
        f" alone need {len(DEVICES) * each_takes:.0f} ms one behind the other,"
        f" {each_takes:.0f} ms side by side"
    )
    click.echo("                       min   median      max")
    for name, values in (
        ("(a) main channel, ms", [1000 * each.main for each in rounds]),
        ("(b) multifd, ms", [1000 * each.multifd for each in rounds]),
    ):
        figures = min(values), median(values), max(values)
        click.echo(f"{name:20}" + "".join(f"{value:9.0f}" for value in figures))
    ratios = [each.ratio for each in rounds]
    figures = min(ratios), median(ratios), max(ratios)
    click.echo(f"{'ratio (b)/(a)':20}" + "".join(f"{value:9.2f}" for value in figures))


if __name__ == "__main__":
    main()
