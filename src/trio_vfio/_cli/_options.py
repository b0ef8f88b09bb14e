"""Options and kinds of arguments that several commands have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from ._plain import Settings

_F = TypeVar("_F", bound=Callable[..., Any])
_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _set_traceback(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    if value:
        ctx.ensure_object(Settings).traceback = True


def traceback_option(command: _F) -> _F:
    """Give *command* the option ``--traceback``."""
    return click.option(
        "--traceback",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_traceback,
        help="Show where in the program an error came up.",
    )(command)


def json_option(command: _F) -> _F:
    """Give *command* the option ``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object at the end."
    )(command)


class Seconds(click.FloatRange):
    """A number of seconds that can be waited for."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse *value*."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no duration.", param, ctx)
        return seconds


class Size(click.ParamType[int]):
    """A number of bytes, as ``4096`` or ``4KiB``."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse *value*."""
        match = re.fullmatch(r"([0-9]{1,18})(|[KMG]iB)", str(value))
        if match is None:
            self.fail(f"{value!r} is no size, as 4096 or 4KiB.", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


class PageSize(Size):
    """The size of a page of RAM that a target may have."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse *value*."""
        size = super().convert(value, param, ctx)
        if size not in (1 << bits for bits in range(10, 17)):
            self.fail(f"{value!r} is no power of 2 from 1KiB to 64KiB.", param, ctx)
        return size
