"""What a file is said to hold, and whether it does."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Protocol, final

import attrs


class Digest(Protocol):
    """What is needed of a hash of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Go on with *data*."""

    def hexdigest(self) -> str:
        """Return the digest so far."""
        ...


def _sha256() -> Digest:
    return hashlib.sha256()


@final
@attrs.define(eq=False)
class Expected:
    """Size and SHA-256 that somebody says a file has; None where nobody does.

    The file is fed piece by piece, which hashes it only if that is needed.
    """

    what: str
    """What is in the file, for an error: ``data``, ``config``."""
    path: Path
    size: int | None
    sha256: str | None
    _seen: int = attrs.field(default=0, init=False)
    _digest: Digest = attrs.field(factory=_sha256, init=False)

    def check_size(self, size: int) -> None:
        """Compare *size* with what was said.

        Raises:
          OSError: (EIO) if it is another.
        """
        if self.size is not None and size != self.size:
            raise self._error(f"the {self.what} has {size} bytes, not {self.size}")

    def feed(self, piece: bytes | memoryview) -> None:
        """Look at the next piece."""
        self._seen += len(piece)
        if self.sha256 is not None:
            self._digest.update(piece)

    def check_whole(self) -> None:
        """Compare all that was fed with what was said.

        Raises:
          OSError: (EIO) if it is something else.
        """
        self.check_size(self._seen)
        if self.sha256 is not None and self._digest.hexdigest() != self.sha256:
            found = self._digest.hexdigest()
            raise self._error(
                f"the {self.what} is not what was saved: its SHA-256 is {found},"
                f" not {self.sha256}"
            )

    def _error(self, text: str) -> OSError:
        return OSError(errno.EIO, text, str(self.path))
