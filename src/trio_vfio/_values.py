"""`trio_util.AsyncValue`, with types: trio_util itself comes without.

The only module that imports trio_util.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Callable

    class AsyncValue(Generic[T]):
        """A value that tasks can wait on."""

        value: T
        """What it is now; set it in Trio's thread only."""

        def __init__(self, value: T) -> None: ...

        async def wait_value(
            self, value_or_predicate: T | Callable[[T], bool], *, held_for: float = 0
        ) -> T:
            """Wait until it is, or fulfils, *value_or_predicate*."""
            ...
else:
    from trio_util import AsyncValue

__all__ = ["AsyncValue"]
