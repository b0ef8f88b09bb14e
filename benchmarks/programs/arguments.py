"""The command line of a program that is measured: the same as of those in C."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import attrs


@attrs.frozen
class Receive:
    """What a destination is told."""

    channels: int
    packet: int
    """How much data a packet holds at most, in bytes."""
    switchover_at: int
    """At which byte of the main channel SWITCHOVER_START stands."""
    config: bytes
    """The data of the last packet of each device."""
    fds: tuple[int, ...]
    """Where the data of each device goes."""


@attrs.frozen
class Send:
    """What a source is told."""

    port: int
    channels: int
    packet: int
    before: bytes
    """What the main channel carries before SWITCHOVER_START."""
    after: bytes
    """What it carries behind that."""
    config: bytes
    fds: tuple[int, ...]
    """Where the data of each device comes from."""


def main(receive: Callable[[Receive], None], send: Callable[[Send], None]) -> NoReturn:
    """Do what the command line says, and exit."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    receiving = commands.add_parser("receive")
    receiving.set_defaults(run=receive, make=Receive)
    receiving.add_argument("--switchover-at", type=int, required=True)
    sending = commands.add_parser("send")
    sending.set_defaults(run=send, make=Send)
    sending.add_argument("--port", type=int, required=True)
    sending.add_argument("--before", type=_content, required=True)
    sending.add_argument("--after", type=_content, required=True)
    for each in (receiving, sending):
        each.add_argument("--channels", type=int, required=True)
        each.add_argument("--packet", type=int, required=True)
        each.add_argument("--config", type=_content, required=True)
        each.add_argument("--fds", type=_numbers, required=True)
    said: dict[str, Any] = vars(parser.parse_args())
    wanted = {field.name for field in attrs.fields(said["make"])}
    said["run"](said["make"](**{name: said[name] for name in wanted}))
    raise SystemExit(0)


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
