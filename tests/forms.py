"""The two forms of long tests: the short form by default, the long form with --long.

Both forms check the same property. The short form checks it on fewer cases.
"""

from __future__ import annotations

from typing import TypeVar

_T = TypeVar("_T")

_long = False


def use_long_form() -> None:
    """Choose the long form. Called before any test module is imported."""
    global _long  # noqa: PLW0603 (set once, from the command line)
    _long = True


def form(*, short: _T, long: _T) -> _T:
    """Return the argument that belongs to the form in use."""
    return long if _long else short
