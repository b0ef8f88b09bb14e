"""Devices as arguments of a command: ``IDSTR=DEV``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import StateSink, StateSource
from .._device import (
    FdDevice,
    FdSource,
    FileDevice,
    FileSource,
    NullDevice,
    NullSource,
)
from ._options import Size

MakeSource = Callable[[int], StateSource]
"""Makes a source, given how many bytes of it may go before the switchover."""


class SinkArgument(click.ParamType[tuple[str, StateSink]]):
    """A device of the stream, and where its state goes."""

    name = "idstr=dev"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, StateSink]:
        """Parse *value*. Opens nothing."""
        idstr, kind, rest = _split(self, value, param, ctx)
        if kind == "file" and rest:
            return idstr, FileDevice(Path(rest))
        if kind == "fd" and _is_number(rest):
            return idstr, FdDevice(int(rest))
        if kind == "null" and not rest:
            return idstr, NullDevice()
        where = f"{kind}:{rest}"
        known = "file:PATH, fd:N and null:"
        return self.fail(f"{where!r} is no device; known are {known}.", param, ctx)


class SourceArgument(click.ParamType[tuple[str, MakeSource]]):
    """A device of the stream, and where its state comes from."""

    name = "idstr=dev"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, MakeSource]:
        """Parse *value*. Opens nothing."""
        idstr, kind, rest = _split(self, value, param, ctx)
        if kind == "file" and rest:
            return idstr, lambda early: FileSource(Path(rest), precopy_bytes=early)
        if kind == "fd" and _is_number(rest):
            return idstr, lambda early: FdSource(int(rest), precopy_bytes=early)
        if kind == "null":
            size = Size().convert(rest, param, ctx) if rest else 0
            return idstr, lambda _: NullSource(size)
        where = f"{kind}:{rest}"
        known = "file:PATH, fd:N, null: and null:SIZE"
        return self.fail(f"{where!r} is no device; known are {known}.", param, ctx)


def _split(
    kind: click.ParamType[Any],
    value: object,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> tuple[str, str, str]:
    """Return the idstr, the kind of device and the rest of an argument."""
    idstr, equals, where = str(value).partition("=")
    name, colon, rest = where.partition(":")
    if not (idstr and equals and colon):
        kind.fail(f"{value!r} is not IDSTR=DEV.", param, ctx)
    return idstr, name, rest


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 8
