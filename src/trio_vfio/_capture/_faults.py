"""What is wrong with a capture."""

from __future__ import annotations

import attrs

from .._errors import PeerProtocolError


@attrs.frozen
class Fault:
    """Why one file of a capture was read no further."""

    file: str
    reason: str
    offset: int | None = None
    cut: bool = False
    """Whether a channel just ends where it may not, rather than saying nonsense."""

    @classmethod
    def of(cls, file: str, error: PeerProtocolError, *, cut: bool = False) -> Fault:
        """Make the fault that *error* tells of."""
        return cls(file, error.reason, error.offset, cut)

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at offset {self.offset}"
        return f"{self.file}: {self.reason}{at}"
