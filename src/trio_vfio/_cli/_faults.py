"""What has gone wrong, in lines for people."""

from __future__ import annotations

from typing import cast

import click

from .._errors import TrioVfioError, describe


def leaves(error: Exception | None) -> list[Exception]:
    """Return *error*, or all that are in it if it is a group."""
    if error is None:
        return []
    if isinstance(error, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", error).exceptions
        return [leaf for each in group for leaf in leaves(each)]
    return [error]


def line(error: Exception) -> str:
    """Say in one line what *error* is, which is no group."""
    if isinstance(error, TrioVfioError):
        return str(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    return describe(error)
