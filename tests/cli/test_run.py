"""Signals to a command that runs: `run` in this process. Collaboration."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import click
import pytest
import trio
import trio.testing

from trio_vfio._cli._run import run, signals_as_interrupts

Captured = pytest.CaptureFixture[str]
CANCELLED: Final = "trio-vfio: error: cancelled by"


def test_to_its_own_end() -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()

    assert run(work) is None


SIGNALS: Final = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_cancels(number: signal.Signals, capsys: Captured) -> None:
    """What is under way can still clean up."""
    cleaned_up = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await trio.sleep_forever()
        finally:
            cleaned_up.append(True)

    assert run(work) is number
    assert cleaned_up
    assert capsys.readouterr().err == f"{CANCELLED} {number.name}\n"


def test_cancel_is_announced_before_cleanup_ends(capsys: Captured) -> None:
    """A session lets its peer close first, for some seconds. Then nothing is said."""
    said: list[str] = []

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            said.append(capsys.readouterr().err)

    assert run(work, what="the copy") is signal.SIGINT
    assert said == ["trio-vfio: error: the copy cancelled by SIGINT\n"]
    assert capsys.readouterr().err == ""


def test_cancel_is_announced_after_cancelled_tasks_have_run(capsys: Captured) -> None:
    """A progress display takes itself away first, and would take the line with it."""
    said: list[str] = []

    async def display() -> None:
        try:
            await trio.sleep_forever()
        finally:
            said.append(capsys.readouterr().err)

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(display)
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGINT)
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()

    assert run(work) is signal.SIGINT
    assert said == [""] * 20
    assert capsys.readouterr().err == f"{CANCELLED} SIGINT\n"


def test_ignored_sighup_stays_ignored() -> None:
    """As by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def work() -> None:
        signal.raise_signal(signal.SIGHUP)
        await trio.lowlevel.checkpoint()

    assert run(work) is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)


def test_too_late(capsys: Captured) -> None:
    """Work that ends all the same was not cancelled. What was announced is put right."""

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)

    assert run(work) is None
    assert capsys.readouterr().err.splitlines() == [
        f"{CANCELLED} SIGINT",
        "trio-vfio: complete nevertheless: SIGINT came too late",
    ]


def test_too_late_to_be_announced(capsys: Captured) -> None:
    """Work that ends at once is not said to be cancelled."""

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)

    assert run(work) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_are_interrupts_for_work_without_trio(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(click.exceptions.Exit) as exit_, signals_as_interrupts():
        signal.raise_signal(number)
    assert exit_.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_signal_is_known_to_work_that_handles_interrupts() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals_as_interrupts() as received:
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_signal_before_the_loop_runs_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is cancelled at its first checkpoint."""
    loop = trio.run

    def interrupted(main: Callable[[], Awaitable[object]]) -> object:
        signal.raise_signal(signal.SIGINT)
        return loop(main)

    monkeypatch.setattr(trio, "run", interrupted)
    assert run(trio.lowlevel.checkpoint) is signal.SIGINT


def test_signal_raises_nothing_where_it_lands() -> None:
    """Code without a checkpoint is not torn apart, as by KeyboardInterrupt."""
    done = []

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(True)
        await trio.sleep_forever()

    assert run(work) is signal.SIGINT
    assert done


def test_signal_after_the_end_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command still has to show its result. A second signal ends the process."""
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    assert run(trio.lowlevel.checkpoint) is None
    signal.raise_signal(signal.SIGINT)
    assert exits == []
    signal.raise_signal(signal.SIGTERM)
    assert exits == [128 + signal.SIGTERM]


def test_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the first one still waits for."""
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)

    async def work() -> None:
        with trio.CancelScope(shield=True):
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
                await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.sleep_forever()

    assert run(work) is signal.SIGTERM
    assert exits == [128 + signal.SIGINT]


def test_failure_comes_as_it_is() -> None:
    """Not in a nursery's group."""

    async def work() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("bad")

    with pytest.raises(ValueError, match="^bad$"):
        run(work)
