"""What is shown at a terminal while a migration runs. Collaboration."""

from __future__ import annotations

import io

import pytest
import trio
import trio.testing

from trio_vfio import open_incoming, open_outgoing
from trio_vfio._cli._progress import render, show_progress
from trio_vfio._cli._tables import console
from trio_vfio._device import NullSink
from trio_vfio.testing import SimulatedSink, SimulatedSource, link

MIB = 1 << 20


class Terminal(io.StringIO):
    """Takes what is shown."""

    def isatty(self) -> bool:
        return True


async def test_render() -> None:
    """Names are shown as they are, and what a device waits for."""
    out = io.StringIO()
    async with open_incoming(
        "tcp:127.0.0.1:0", {"[red]a/vfio": NullSink()}
    ) as incoming:
        incoming.devices["[red]a/vfio"].waiting_for = 7
        console(out).print(render(incoming, 1.5 * (1 << 20)))
    for text in ("[red]a/vfio", "idx 7", "setup: 0.0 MiB, 1.5 MiB/s"):
        assert text in out.getvalue()


async def test_at_a_terminal(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is drawn again and again, until all is over, and then taken away."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    async with open_incoming("tcp:127.0.0.1:0", {"a/vfio": NullSink()}) as incoming:
        with trio.move_on_after(1.1):
            await show_progress(incoming)
    assert terminal.getvalue().count("a/vfio") >= 4


async def test_not_at_a_terminal(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log gets a line for each second."""
    async with open_incoming("tcp:127.0.0.1:0", {"a\x1b/vfio": NullSink()}) as incoming:
        with trio.move_on_after(2.5):
            await show_progress(incoming)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["0 s: setup: 0.0 MiB, 0.0 MiB/s; no main channel has come"] * 2


async def test_the_lines_of_a_source(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it waits for, what it has sent, and how fast."""
    source = SimulatedSource(size=3 * MIB, initial_bytes=MIB, seconds_per_mib=1.25)
    here, there = link()
    async with open_incoming(there, {"a/vfio": SimulatedSink()}):
        async with open_outgoing(here, {"a/vfio": source}) as outgoing:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(show_progress, outgoing)
                await outgoing.migrate()
                nursery.cancel_scope.cancel()
    assert capsys.readouterr().err.splitlines() == [
        "1 s: active: 0.0 MiB, 0.0 MiB/s; waiting for a/vfio: read to end",
        "2 s: device: 1.0 MiB, 1.0 MiB/s; waiting for a/vfio: read to end",
        "3 s: device: 2.0 MiB, 1.0 MiB/s; waiting for a/vfio: read to end",
    ]
