"""A descriptor that its owner lends to a device."""

from __future__ import annotations

import os
from typing import final

import attrs


@final
@attrs.define(eq=False)
class LentDescriptor:
    """A caller's descriptor, non-blocking while a device has it."""

    fd: int
    _was_blocking: bool = attrs.field(default=False, init=False)

    def take(self) -> None:
        """Make it non-blocking. If this fails, nothing has changed."""
        # A thread inside of a blocking call could not be told to leave.
        was_blocking = os.get_blocking(self.fd)
        os.set_blocking(self.fd, False)
        self._was_blocking = was_blocking

    def give_back(self) -> None:
        """Make it blocking again, if it was."""
        if self._was_blocking:
            os.set_blocking(self.fd, True)
            self._was_blocking = False
