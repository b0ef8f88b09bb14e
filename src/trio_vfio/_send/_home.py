"""Trio's thread, as the other threads of a session reach it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import final

import attrs
import trio


@final
@attrs.define(eq=False)
class Home:
    """The thread of a session's tasks. To be made there."""

    _thread: int = attrs.field(factory=threading.get_ident, init=False)
    _token: trio.lowlevel.TrioToken = attrs.field(
        factory=trio.lowlevel.current_trio_token, init=False
    )

    def call(self, function: Callable[[], object]) -> None:
        """Call *function* there: at once if this is it, else soon.

        What is to be called and was not yet is called once. After Trio has ended
        nothing is.
        """
        if threading.get_ident() == self._thread:
            function()
            return
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, idempotent=True)
