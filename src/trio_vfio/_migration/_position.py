"""How far the data of a device has come."""

from __future__ import annotations

from typing import Protocol, final

import attrs


class Digest(Protocol):
    """What a migration needs of a hash of `hashlib`."""

    def update(self, data: memoryview, /) -> None:
        """Go on with *data*."""

    def hexdigest(self) -> str:
        """Return the digest so far."""
        ...


@final
@attrs.define(eq=False)
class Position:
    """How much of its data a device has taken or given, and what it is about."""

    digest: Digest | None = None
    bytes: int = 0
    """Done whole: the buffer that is being written or read does not count."""
    idx: int | None = None
    """Of the buffer that is being written or read; None: none is, or it has none."""
    stopping: bool = False
    """Whether to end every run at its next buffer."""
