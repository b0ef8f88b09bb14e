"""Collaboration: what a command does behind a migration, and what goes wrong there."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from trio_vfio import NullSink, NullSource
from trio_vfio._cli._local import LocalMigration, LocalOptions, open_local
from trio_vfio._cli._migration import MigrationCommand

KEY = ("a/vfio", 0)


def command(after: Callable[[], Awaitable[None]]) -> MigrationCommand[LocalMigration]:
    opening = open_local({KEY: NullSource(1000)}, {KEY: NullSink()}, LocalOptions())

    async def call(_: LocalMigration) -> None:
        await after()

    work = LocalMigration.wait_ended
    return MigrationCommand(opening, work, as_json=True, quiet=True, after=call)


def said(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    found = capsys.readouterr()
    return json.loads(found.out), found.err.splitlines()


def test_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    async def after() -> None:
        calls.append("after")

    assert command(after).run() == 0
    assert calls == ["after"]
    assert said(capsys)[0]["status"] == "completed"


def test_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The migration is complete all the same, and says so, and what is wrong."""

    async def after() -> None:
        raise ExceptionGroup("", [OSError(errno.EIO, "it does not run")])

    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        command(after).run()
    result, _ = said(capsys)
    assert result["status"] == "completed"
    assert result["errors"] == ["EIO: it does not run"]


def test_it_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    async def after() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

    assert command(after).run() == 130
    result, errors = said(capsys)
    assert result["status"] == "completed"
    assert errors == [
        "trio-vfio: error: cancelled by SIGINT",
        "trio-vfio: error: the migration is complete, but not all devices were started",
    ]


def test_signal_when_all_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The block is left when the signal comes: it has cancelled nothing that counts."""

    @asynccontextmanager
    async def slow_to_close() -> AsyncGenerator[LocalMigration]:
        sources, sinks = {KEY: NullSource(1000)}, {KEY: NullSink()}
        async with open_local(sources, sinks, LocalOptions()) as local:
            yield local
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

    work = LocalMigration.wait_ended
    opening = slow_to_close()
    assert MigrationCommand(opening, work, as_json=True, quiet=True).run() == 0
    result, lines = said(capsys)
    assert result["status"] == "completed"
    assert lines == [
        "trio-vfio: error: cancelled by SIGINT",
        "trio-vfio: complete nevertheless: SIGINT came too late",
    ]


def test_signal_while_the_result_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is whole, and the status is that of a complete migration."""

    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            if text and not self.tell():
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    shown = Interrupted()
    monkeypatch.setattr(sys, "stdout", shown)
    assert command(trio.lowlevel.checkpoint).run() == 0
    assert json.loads(shown.getvalue())["status"] == "completed"
