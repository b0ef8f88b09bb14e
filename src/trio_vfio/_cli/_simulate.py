"""``trio-vfio simulate``: many migrations in virtual time, or one, looked at."""

from __future__ import annotations

import importlib
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Generator, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, final

import attrs
import click
import rich.progress

from .._errors import describe
from ..testing import (
    INVARIANTS,
    CampaignReport,
    Draws,
    OrdersReport,
    SimulatedMigration,
    Violation,
    check_orders,
    run_campaign,
    shrink,
)
from ..testing._runs._in_time import HUNG, simulate_in_time
from ._options import Size, json_option, traceback_option
from ._plain import cell, show_error
from ._run import signals_as_interrupts
from ._tables import add_rows, console, table

# More of them say nothing new, and each is long.
_SHOWN: Final = 5
_LAST_EVENTS: Final = 8

# Where there is no terminal, in seconds.
_EVERY_LINE: Final = 10.0

# For a scheduler to answer; and for a first worker to be there, which may have to be
# loaded from a cold disk.
_SCHEDULER_SECONDS: Final = 10
_WORKER_SECONDS: Final = 30


class Seeds(click.ParamType[range]):
    """Seeds, as ``0:10000``: from the first to before the last."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        """Parse *value*."""
        first, _, last = str(value).partition(":")
        if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            self.fail(f"{value!r} are no seeds, as 0:10000.", param, ctx)
        return range(int(first), int(last))


@click.command()
@click.option("--seeds", type=Seeds(), metavar="A:B", help="One migration for each.")
@click.option("--seed", type=click.IntRange(min=0), help="This one only.")
@click.option(
    "--orders",
    type=click.IntRange(1, 4),
    metavar="N",
    help="All orders in which two devices with N buffers can arrive by two channels.",
)
@click.option("--devices", type=click.IntRange(1, 64), help="How many there are.")
@click.option("--channels", type=click.IntRange(1, 255), help="How many there are.")
@click.option("--size", type=Size(), help="Of each device's state.")
@click.option("--no-faults", is_flag=True, help="Let nothing go wrong.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    help="In how many processes.  [default: as many as there are processors]",
)
@click.option("--dask", metavar="ADDRESS", help="Run it on this Dask cluster instead.")
@click.option("--trace", is_flag=True, help="With --seed: show all that happens.")
@click.option("--shrink", "shrinks", is_flag=True, help="Find the smallest bad plan.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write the report to this file, as JSON.",
)
@json_option
@traceback_option
def simulate(
    *,
    seeds: range | None,
    seed: int | None,
    orders: int | None,
    devices: int | None,
    channels: int | None,
    size: int | None,
    no_faults: bool,
    jobs: int,
    dask: str | None,
    trace: bool,
    shrinks: bool,
    report: Path | None,
    as_json: bool,
) -> int:
    """Migrate simulated devices in virtual time, with faults drawn by lot.

    Both sides are this program's own. At the end of each migration it is checked
    what must hold in all of them. The same seed is the same migration.

    Exit status: 0 if all holds, 1 if not.
    """
    if sum(each is not None for each in (seeds, seed, orders)) != 1:
        raise click.UsageError("Give one of --seeds, --seed and --orders.")
    if trace and seed is None:
        raise click.UsageError("--trace goes with --seed.")
    _check_writable(report)
    draws = Draws(devices=devices, channels=channels, size=size, faults=not no_faults)
    if seed is not None:
        run = simulate_in_time(draws.plan(seed))
        _write(report, _one(seed, run))
        _show_one(seed, run, draws, trace=trace, shrinks=shrinks, as_json=as_json)
        return bool(run.violations)
    with signals_as_interrupts() as received, _executor(jobs, dask) as executor:
        if orders is not None:
            return _orders(orders, executor, report, as_json=as_json)
        assert seeds is not None
        done = _campaign(seeds, draws, executor, quiet=as_json)
        if done.interrupted:
            _end_workers()
    _write(report, _whole(seeds, done))
    if as_json:
        click.echo(json.dumps(_whole(seeds, done)))
    else:
        _show(done)
    _show_bad(done, draws, shrinks=shrinks)
    if done.interrupted:
        show_error(f"interrupted after {done.seeds} seeds")
        return 128 + (received[0] if received else signal.SIGINT)
    return bool(done.violations)


@contextmanager
def _executor(jobs: int, dask: str | None) -> Generator[Executor | None]:
    with ExitStack() as stack:
        if dask is not None:
            yield stack.enter_context(_dask(dask))
        elif jobs == 1:
            yield None
        else:
            # Not forked: a parent may have threads.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(jobs, context, _ignore_interrupts)
            stack.callback(pool.shutdown, cancel_futures=True)
            yield pool


def _end_workers() -> None:
    # They have no children, files or sockets of their own, and some have a chunk of
    # seeds before them that nobody wants any more.
    for worker in multiprocessing.active_children():
        worker.terminate()


def _ignore_interrupts() -> None:
    # Ctrl-C is for the process that waits for this one, and so is a terminal's end.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _dask(address: str) -> Generator[Executor]:
    try:
        # An extra, and without types.
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        text = "--dask needs Dask: pip install 'trio-vfio[dask]'"
        raise click.ClickException(text) from error
    try:
        client = distributed.Client(address, timeout=_SCHEDULER_SECONDS)
    except OSError as error:
        text = f"no Dask scheduler at {address}: {error}"
        raise click.ClickException(text) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_WORKER_SECONDS)
        except TimeoutError as error:
            text = f"the Dask scheduler at {address} has no workers"
            raise click.ClickException(text) from error
        with client.get_executor() as executor:
            yield executor


def _campaign(
    seeds: range, draws: Draws, executor: Executor | None, *, quiet: bool
) -> CampaignReport:
    out = console(sys.stderr)
    if quiet:
        return run_campaign(seeds, draws, executor=executor)
    if not out.is_terminal:
        lines = _Lines(len(seeds))
        return run_campaign(seeds, draws, executor=executor, progress=lines)
    with rich.progress.Progress(console=out, transient=True) as bar:
        task = bar.add_task("seeds", total=len(seeds))

        def progress(done: int) -> None:
            bar.update(task, completed=done)

        return run_campaign(seeds, draws, executor=executor, progress=progress)


@final
@attrs.define
class _Lines:
    """Says at times how many seeds were run."""

    total: int
    _next: float = attrs.field(default=0.0, init=False)

    def __call__(self, done: int) -> None:
        if (now := time.monotonic()) >= self._next:
            self._next = now + _EVERY_LINE
            click.echo(f"{done} of {self.total} seeds", err=True)


def _whole(seeds: range, done: CampaignReport) -> dict[str, Any]:
    name = f"{seeds.start}:{seeds.stop}"
    return {**attrs.asdict(done), "range": name}


def _one(seed: int, run: SimulatedMigration) -> dict[str, Any]:
    return {
        "seed": seed,
        "source": run.source,
        "destination": run.destination,
        "errors": run.errors,
        "lost_last_word": run.lost_last_word,
        "virtual_seconds": run.seconds,
        "violations": [attrs.asdict(each) for each in run.violations],
        "digest": run.digest,
        "plan": repr(run.plan),
    }


def _check_writable(report: Path | None) -> None:
    """Find out before the work is done, not after."""
    if report is not None:
        try:
            report.open("a").close()
        except OSError as error:
            text = f"cannot write {str(report)!r}: {describe(error)}"
            raise click.UsageError(text) from error


def _write(report: Path | None, value: dict[str, Any]) -> None:
    if report is not None:
        report.write_text(json.dumps(value, indent=2) + "\n")


def _show(done: CampaignReport) -> None:
    out = console()
    made = table("migrations", "source, destination", ">seeds")
    add_rows(made, done.outcomes.items())
    out.print(made)
    rate = f"{done.seeds_per_second:.0f} in a second"
    hours = f"{done.virtual_seconds / 3600:.1f} hours of virtual time"
    memory = f"{done.peak_rss / (1 << 20):.0f} MiB at most in a process"
    texts = [
        f"{done.seeds} seeds, {done.without_faults} of them without faults",
        f"last words lost: {done.lost_last_words}",
        f"{done.seconds:.1f} s: {rate}; {hours}; {memory}",
        f"digest {done.digest} (Trio {done.trio}, Python {done.python})",
        f"violations: {len(done.violations)}",
    ]
    for text in texts:
        out.print(cell(text))


def _show_one(
    seed: int,
    run: SimulatedMigration,
    draws: Draws,
    *,
    trace: bool,
    shrinks: bool,
    as_json: bool,
) -> None:
    if trace:
        _show_events(run, as_json=as_json)
    if as_json:
        click.echo(json.dumps(_one(seed, run)))
    else:
        click.echo(repr(run.plan))
        ends = f"the source: {run.source}; the destination: {run.destination}"
        click.echo(f"{ends}; {run.seconds:g} virtual seconds; digest {run.digest}")
        for error in run.errors:
            click.echo(error)
    if run.violations:
        _show_violations(seed, run.violations, run, draws, shrinks=shrinks)


def _show_events(run: SimulatedMigration, *, as_json: bool) -> None:
    if as_json:
        for event in run.events:
            click.echo(json.dumps(attrs.asdict(event)))
        return
    width = max((len(event.who) for event in run.events), default=0)
    for event in run.events:
        click.echo(f"{event.time:12.6f}  {event.who:<{width}}  {event.what}")


def _show_bad(done: CampaignReport, draws: Draws, *, shrinks: bool) -> None:
    """Show the first seeds that violate, each run once more for its events."""
    bad: dict[int, list[Violation]] = {}
    for each in done.violations:
        bad.setdefault(each.seed, []).append(each.violation)
    for seed, found in itertools.islice(bad.items(), _SHOWN):
        run = simulate_in_time(draws.plan(seed))
        _show_violations(seed, found, run, draws, shrinks=shrinks)


def _show_violations(
    seed: int,
    found: Iterable[Violation],
    run: SimulatedMigration,
    draws: Draws,
    *,
    shrinks: bool,
) -> None:
    for each in found:
        click.echo(f"seed {seed}: {each}", err=True)
        click.echo(f"  {each.invariant}: {INVARIANTS[each.invariant]}", err=True)
    click.echo(f"with {run.plan!r}", err=True)
    # To shrink what hangs would take hours.
    if shrinks and run.source != HUNG:
        small = shrink(run.plan, run=simulate_in_time)
        click.echo(f"and as well with {small!r}", err=True)
    for who in dict.fromkeys(event.who for event in run.events):
        its = [event for event in run.events if event.who == who]
        for event in its[-_LAST_EVENTS:]:
            click.echo(str(event), err=True)
    click.echo(f"to repeat it: {shlex.join(_command(seed, draws))}", err=True)


def _command(seed: int, draws: Draws) -> Iterable[str]:
    yield from ("trio-vfio", "simulate", "--seed", str(seed))
    for name in ("devices", "channels", "size"):
        if (value := getattr(draws, name)) is not None:
            yield from (f"--{name}", str(value))
    if not draws.faults:
        yield "--no-faults"
    yield "--trace"


def _orders(
    buffers: int, executor: Executor | None, report: Path | None, *, as_json: bool
) -> int:
    # Events at each step make sense for a few thousand orders, not for more.
    events = None if buffers < 3 else 0
    done = check_orders(buffers, events=events, executor=executor)
    whole = _orders_dict(done)
    _write(report, whole)
    if as_json:
        click.echo(json.dumps(whole))
    else:
        made = table("orders of arrival", ">orders", ">cases", ">runs", ">seconds")
        add_rows(made, [(done.orders, done.cases, done.runs, f"{done.seconds:.1f}")])
        console().print(made)
    for violation in done.violations:
        click.echo(str(violation), err=True)
    return bool(done.violations)


def _orders_dict(done: OrdersReport) -> dict[str, Any]:
    return {
        "orders": done.orders,
        "cases": done.cases,
        "runs": done.runs,
        "seconds": done.seconds,
        "violations": [str(each) for each in done.violations],
    }
