"""Trio's scheduler, made to go the same way every time.

Trio runs the tasks that are ready in an order that it draws by lot, so that
nobody comes to rely on one. The lot can be seeded: Trio has a switch for its own
tests, which pytest-trio and Hypothesis use, too.
"""

from __future__ import annotations

import random
from collections.abc import Generator, MutableSequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, final

import trio

_SWITCH: Final = "_ALLOW_DETERMINISTIC_SCHEDULING"
_LOTS: Final = "_r"


@final
class _Lots:
    """What Trio draws lots with: of `random.Random` no more than Trio uses.

    Everything comes from ``random.Random.random``, the one method whose numbers
    Python promises never to change.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random  # noqa: S311 (no secrets)

    def uniform(self, least: float, most: float) -> float:
        """Return a number between the two."""
        return least + (most - least) * self.random()

    def shuffle(self, items: MutableSequence[Any]) -> None:
        """Put *items* into an order drawn by lot."""
        for last in range(len(items) - 1, 0, -1):
            other = int(self.random() * (last + 1))
            items[last], items[other] = items[other], items[last]


@contextmanager
def deterministic_scheduling(seed: int = 0) -> Generator[None]:
    """Make the order in which Trio runs tasks depend on *seed* alone.

    For whole runs: to be entered outside of `trio.run`, and by one thread of a
    process at a time. With a mock clock, and without threads and sockets, a run
    is then the same every time, for one version of Trio, on any machine, Python
    and PYTHONHASHSEED. On leaving, Trio draws its own lots again.

    Raises:
      RuntimeError: if this Trio cannot be told to.
    """
    scheduler = _scheduler()
    before = {name: getattr(scheduler, name) for name in (_SWITCH, _LOTS)}
    try:
        setattr(scheduler, _SWITCH, True)
        setattr(scheduler, _LOTS, _Lots(seed))
        yield
    finally:
        for name, value in before.items():
            setattr(scheduler, name, value)


def _scheduler() -> ModuleType:
    scheduler = getattr(getattr(trio, "_core", None), "_run", None)
    missing = [name for name in (_SWITCH, _LOTS) if not hasattr(scheduler, name)]
    if not isinstance(scheduler, ModuleType) or missing:
        raise RuntimeError(
            f"Trio {trio.__version__} cannot be made deterministic: its scheduler has"
            f" no {' and no '.join(missing)}"
        )
    return scheduler
