"""Where products are kept: each in a directory named by all that went into it."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .host import say, step

_UNUSED_FOR = 24 * 60 * 60


class Cache:
    """A directory of products that several builds may share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def product(
        self, name: str, inputs: Iterable[str], make: Callable[[Path], None]
    ) -> Path:
        """Return the directory of the product *name* of these *inputs*.

        If there is none, *make* fills it. A product has its final name only when
        it is whole: what a build that failed has left is not mistaken for one.
        """
        place = self.root / f"{name}-{_digest(inputs)}"
        if not place.exists():
            with self._locked(name):
                if not place.exists():
                    self._make(name, place, make)
        else:
            say(f"{name}: in the cache")
        os.utime(place)
        return place

    def _make(self, name: str, place: Path, make: Callable[[Path], None]) -> None:
        say(f"{name}: not in the cache yet")
        with step(name):
            part = self.root / f"{name}.part"
            if part.exists():
                shutil.rmtree(part)
            part.mkdir()
            make(part)
            self._forget(name)
            part.rename(place)

    def _forget(self, name: str) -> None:
        """Remove what was made of other inputs and nobody has used for long."""
        for other in self.root.glob(f"{name}-*"):
            # The name of a product may begin with that of another one.
            if "-" in other.name.removeprefix(f"{name}-"):
                continue
            if time.time() - other.stat().st_mtime > _UNUSED_FOR:
                shutil.rmtree(other)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        import fcntl  # where there is none, there is no VM, and that is said elsewhere

        with (self.root / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{name}: waiting for another build of it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _digest(inputs: Iterable[str]) -> str:
    """Return a short digest of *inputs*, and of where one ends and the next begins."""
    total = hashlib.sha256()
    for each in inputs:
        data = each.encode()
        total.update(b"%d:%b" % (len(data), data))
    return total.hexdigest()[:12]
