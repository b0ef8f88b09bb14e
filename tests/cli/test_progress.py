"""What is shown at a terminal while a migration runs. Collaboration."""

from __future__ import annotations

import io

import pytest
import trio
import trio.testing

from trio_vfio import open_incoming
from trio_vfio._cli._progress import render, show_progress
from trio_vfio._cli._tables import console
from trio_vfio._device import NullDevice


class Terminal(io.StringIO):
    """Takes what is shown."""

    def isatty(self) -> bool:
        return True


async def test_render() -> None:
    """Names are shown as they are, and what a device waits for."""
    out = io.StringIO()
    async with open_incoming(
        "tcp:127.0.0.1:0", {"[red]a/vfio": NullDevice()}
    ) as incoming:
        incoming.devices["[red]a/vfio"].waiting_for = 7
        console(out).print(render(incoming, 1.5 * (1 << 20)))
    for text in ("[red]a/vfio", "idx 7", "setup: 1.5 MiB/s"):
        assert text in out.getvalue()


async def test_at_a_terminal(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is drawn again and again, until all is over, and then taken away."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    async with open_incoming("tcp:127.0.0.1:0", {"a/vfio": NullDevice()}) as incoming:
        with trio.move_on_after(1.1):
            await show_progress(incoming)
    assert terminal.getvalue().count("a/vfio") >= 4


async def test_not_at_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A log file gets no such thing."""
    async with open_incoming("tcp:127.0.0.1:0", {"a/vfio": NullDevice()}) as incoming:
        with trio.testing.assert_no_checkpoints():
            await show_progress(incoming)
    assert capsys.readouterr().err == ""
