"""Text for a terminal, whoever it comes from."""

from __future__ import annotations

import attrs
import click
import rich.text


@attrs.define
class Settings:
    """Options of the command as a whole."""

    traceback: bool = False
    """Whether errors come with a traceback."""


def plain(text: str) -> str:
    """Return *text* in one line, with all that is not printable escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def cell(value: object) -> rich.text.Text:
    """Make a table cell that shows *value* as it is: no markup, no escapes."""
    return rich.text.Text("" if value is None else plain(str(value)))


def show_error(text: str) -> None:
    """Say on stderr what went wrong, in one line."""
    click.echo(f"trio-vfio: error: {plain(text)}", err=True)


def show_note(text: str) -> None:
    """Say on stderr what is no error, in one line."""
    click.echo(f"trio-vfio: {plain(text)}", err=True)
