"""Many plans, one for each seed, spread over whatever runs them."""

from __future__ import annotations

import gc
import hashlib
import itertools
import platform
import resource
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Final, final

import attrs
import trio

from ..._receive._session import Session as IncomingSession
from ..._send._session import Session as OutgoingSession
from ._in_time import HUNG, simulate_in_time
from ._plan import FaultPlan
from ._run import SimulatedMigration
from ._violations import Violation

# Of one call of the executor. Not to be changed with it: the report is the same.
_CHUNK: Final = 50
_IN_FLIGHT: Final = 64

# How often, and after how many seconds each time, to look for sessions that are alive.
_LOOKS: Final = 20
_LOOK_PAUSE: Final = 0.1

# Trio's lots are drawn for one thread of a process at a time, and a worker of
# Dask's may have several.
_ONE_AT_A_TIME: Final = threading.Lock()


@final
@attrs.frozen(kw_only=True)
class Draws:
    """What all plans of a campaign have in common; see `FaultPlan.from_seed`."""

    devices: int | None = None
    channels: int | None = None
    size: int | None = None
    faults: bool = True

    def plan(self, seed: int) -> FaultPlan:
        """Return the plan of *seed*."""
        return FaultPlan.from_seed(seed, **attrs.asdict(self))


@final
@attrs.frozen
class SeedViolation:
    """An invariant that did not hold, and the seed with which it did not."""

    seed: int
    violation: Violation


@final
@attrs.frozen(kw_only=True)
class CampaignReport:
    """What came of a campaign."""

    seeds: int = 0
    """How many were run."""
    outcomes: dict[str, int] = attrs.field(factory=dict[str, int])
    """How often the source and the destination have ended how, as
    ``completed, completed``; ``hung, hung`` if a run took too much real time."""
    without_faults: int = 0
    """How many plans had none."""
    lost_last_words: int = 0
    """How often the link died when the destination had said that it succeeded."""
    virtual_seconds: float = 0.0
    violations: tuple[SeedViolation, ...] = ()
    digest: str = ""
    """SHA-256 of all digests of all events, in the order of seeds, in hex: the same
    wherever and by however many it is run, for one version of Trio."""
    interrupted: bool = False
    seconds: float = attrs.field(default=0.0, eq=False)
    """Of real time."""
    peak_rss: int = attrs.field(default=0, eq=False)
    """The most memory that a process has had that ran seeds, in bytes."""
    trio: str = trio.__version__
    python: str = attrs.field(factory=platform.python_version, eq=False)

    @property
    def seeds_per_second(self) -> float:
        """How many seeds were run in a second of real time."""
        return self.seeds / self.seconds if self.seconds else 0.0


@final
@attrs.define
class _Chunk:
    """What came of some seeds, small enough to be sent."""

    digests: list[str] = attrs.field(factory=list[str])
    outcomes: Counter[str] = attrs.field(factory=Counter[str])
    without_faults: int = 0
    lost_last_words: int = 0
    virtual_seconds: float = 0.0
    violations: list[SeedViolation] = attrs.field(factory=list[SeedViolation])
    peak_rss: int = 0

    def add(self, seed: int, run: SimulatedMigration) -> None:
        self.digests.append(run.digest)
        self.outcomes[f"{run.source}, {run.destination}"] += 1
        self.without_faults += not run.plan.faults
        self.lost_last_words += run.lost_last_word
        self.virtual_seconds += run.seconds
        self.violations += (SeedViolation(seed, each) for each in run.violations)


def run_campaign(
    seeds: Sequence[int],
    draws: Draws | None = None,
    *,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> CampaignReport:
    """Simulate the migration of each seed, and check all `INVARIANTS` in each.

    To be called where Trio does not run. Memory does not grow with the number of
    seeds. Ctrl-C ends it, and what was done until then is reported.

    Args:
      seeds: which, often a range.
      draws: what all plans have in common.
      executor: where to run them, fifty at a time; None: here and now. It may have
        processes, or a whole cluster. Threads of one process wait for each other.
      progress: called with the number of seeds that were run so far.

    Raises:
      RuntimeError: if this Trio's scheduler cannot be made deterministic.
    """
    began = time.perf_counter()
    parts = (seeds[n : n + _CHUNK] for n in range(0, len(seeds), _CHUNK))
    draws = draws or Draws()
    chunks: Iterator[_Chunk] = (_run_seeds(part, draws) for part in parts)
    if executor is not None:
        chunks = _spread(executor, parts, draws)
    total, digests, interrupted = _Chunk(), hashlib.sha256(), False
    done = 0
    try:
        for chunk in chunks:
            done += len(chunk.digests)
            digests.update("".join(chunk.digests).encode())
            _merge(total, chunk)
            if progress is not None:
                progress(done)
    except KeyboardInterrupt:
        interrupted = True
    return CampaignReport(
        seeds=done,
        outcomes=dict(sorted(total.outcomes.items())),
        without_faults=total.without_faults,
        lost_last_words=total.lost_last_words,
        virtual_seconds=total.virtual_seconds,
        violations=tuple(total.violations),
        digest=digests.hexdigest(),
        interrupted=interrupted,
        seconds=time.perf_counter() - began,
        peak_rss=total.peak_rss,
    )


def _merge(total: _Chunk, chunk: _Chunk) -> None:
    total.outcomes.update(chunk.outcomes)
    total.without_faults += chunk.without_faults
    total.lost_last_words += chunk.lost_last_words
    total.virtual_seconds += chunk.virtual_seconds
    total.violations += chunk.violations
    total.peak_rss = max(total.peak_rss, chunk.peak_rss)


def _spread(
    executor: Executor, parts: Iterator[Sequence[int]], draws: Draws
) -> Iterator[_Chunk]:
    """Return the chunks in order, with a bounded number of them under way."""
    under_way: deque[Future[_Chunk]] = deque()
    try:
        for part in itertools.islice(parts, _IN_FLIGHT):
            under_way.append(executor.submit(_run_seeds, part, draws))
        while under_way:
            yield under_way.popleft().result()
            for part in itertools.islice(parts, 1):
                under_way.append(executor.submit(_run_seeds, part, draws))
    finally:
        for future in under_way:
            future.cancel()


def _run_seeds(seeds: Sequence[int], draws: Draws) -> _Chunk:
    with _ONE_AT_A_TIME:
        chunk = _Chunk()
        gc.collect()  # or garbage of earlier runs counts, and hides a leftover
        before = _sessions()
        for seed in seeds:
            chunk.add(seed, simulate_in_time(draws.plan(seed)))
        # A run that was ended by force could not tidy up.
        has_hung = f"{HUNG}, {HUNG}" in chunk.outcomes
        if not has_hung and (alive := _left_over(before)) > 0:
            text = f"{alive} sessions are alive after seeds {seeds[0]} to {seeds[-1]}"
            kept = Violation("leftovers", text, 0.0)
            chunk.violations.append(SeedViolation(seeds[0], kept))
    # Linux counts it in KiB.
    chunk.peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return chunk


def _left_over(before: int) -> int:
    """Return how many sessions more than *before* stay alive."""
    # A profiler in another thread holds the frames that it looks at, and so their
    # sessions, for a moment. Each worker of Dask's has such a thread.
    for _ in range(_LOOKS):
        gc.collect()
        if _sessions() <= before:
            break
        time.sleep(_LOOK_PAUSE)
    return _sessions() - before


def _sessions() -> int:
    # By type(): a lazy object of somebody else's may not like to be asked.
    kinds = (IncomingSession, OutgoingSession)
    return sum(type(each) in kinds for each in gc.get_objects())
