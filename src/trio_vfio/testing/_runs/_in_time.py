"""A simulation that is ended when it takes too much real time."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, final

import attrs

from ._plan import FaultPlan
from ._run import SimulatedMigration, simulate
from ._violations import Violation

PATIENCE: Final = 60.0
"""Real seconds that a run may take. Most take a hundredth of one."""

HUNG: Final = "hung"
"""The status of both sides of such a run."""

# What ends a run may be lost where Python cannot raise it, as in a finalizer, or
# meet a cleanup that does not end either. So it comes again.
_AGAIN: Final = 1.0

# Real seconds that a run may still take.
_AFTER_CTRL_C: Final = 0.3


def simulate_in_time(
    plan: FaultPlan, *, patience: float = PATIENCE
) -> SimulatedMigration:
    """Simulate *plan*, and log nothing. What does not end is a violation, too.

    A run can be ended in a main thread only; elsewhere it may take for ever.

    Raises:
      KeyboardInterrupt: as such, and in no group.
      RuntimeError: if this Trio's scheduler cannot be made deterministic.
    """
    if threading.current_thread() is not threading.main_thread():
        with _quiet():
            return simulate(plan)
    limit = _Limit(patience)
    try:
        with _quiet(), limit.holds():
            run = simulate(plan)
    except BaseException:  # noqa: ASYNC103 (no Trio runs here any more)
        # It has become something else on its way: a group, or an error of Trio's.
        if not (limit.has_ended or limit.was_interrupted):
            raise
        run = _hung(plan, patience)
    if limit.was_interrupted:
        raise KeyboardInterrupt
    return _hung(plan, patience) if limit.has_ended else run


class _TooLongError(BaseException):
    """No `Exception`, which a simulation would take for a finding of its own."""


def _hung(plan: FaultPlan, patience: float) -> SimulatedMigration:
    hung = Violation("deadlines", f"still runs after {patience:g} real seconds", 0.0)
    return SimulatedMigration(
        plan=plan,
        source=HUNG,
        destination=HUNG,
        errors=(),
        lost_last_word=False,
        seconds=0.0,
        events=(),
        violations=(hung,),
    )


@final
@attrs.define(eq=False)
class _Limit:
    """Ends what runs in a main thread, after a time or a Ctrl-C."""

    patience: float
    has_ended: bool = attrs.field(default=False, init=False)
    was_interrupted: bool = attrs.field(default=False, init=False)
    _is_over: bool = attrs.field(default=False, init=False)

    @contextmanager
    def holds(self) -> Generator[None]:
        """Hold for the block. What the block raises may be a consequence."""
        began = time.monotonic()
        alarm = signal.signal(signal.SIGALRM, self._end)
        interrupt = signal.getsignal(signal.SIGINT)
        # As Trio does: only where nobody else cares.
        if interrupt is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
        left, interval = signal.setitimer(signal.ITIMER_REAL, self.patience, _AGAIN)
        try:
            yield
        finally:
            self._is_over = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGALRM, alarm)
            if left:
                # A timer of the caller's, as pytest-timeout has one. If it is due it
                # rings now: set anew, the next run might put it off again.
                rest = left - (time.monotonic() - began)
                first = rest if rest > 0 else interval
                signal.setitimer(signal.ITIMER_REAL, first, interval)
                if rest <= 0:
                    signal.raise_signal(signal.SIGALRM)

    def _end(self, *_: object) -> None:
        if not self._is_over:
            self.has_ended = True
            raise _TooLongError

    def _interrupt(self, *_: object) -> None:
        # Most runs end by themselves in no time. To raise it here could lose it.
        self.was_interrupted = True
        if not self._is_over:
            signal.setitimer(signal.ITIMER_REAL, _AFTER_CTRL_C, _AGAIN)


@contextmanager
def _quiet() -> Generator[None]:
    """Let no simulated migration log its faults: there are thousands."""
    log = logging.getLogger("trio_vfio")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)
