"""``python -m benchmarks``: measure, and show what was found."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import click
import trio
from rich.console import Console

from . import headline
from .cases import chosen
from .contenders import OTHERS, Contender, build
from .program import ProgramError
from .record import Record, about
from .results import Results
from .rounds import Plan, Rounds
from .table import ratios
from .wanted import must_show

_HEADLINE: Final = "headline"
_WIDTH: Final = 120

# For a smoke test: enough for each device to have a few packets.
_SMOKE_MIB: Final = 16
_SMOKE_HEADLINE_MIB: Final = 4

_PATH: Final = click.Path(dir_okay=False, path_type=Path)


class _Contenders(click.ParamType[Sequence[Contender]]):
    """Names, separated by commas."""

    name = "A,B"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Sequence[Contender]:
        """Return who they are; to be measured in this order."""
        by_name = {each.name: each for each in OTHERS}
        names = [name for name in str(value).split(",") if name]
        for name in names:
            if name not in by_name:
                self.fail(f"{name!r} is none of {', '.join(by_name)}", param, ctx)
        return [by_name[name] for name in names]


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=9, help="How many.")
@click.option(
    "--only",
    multiple=True,
    metavar="GLOB",
    help="Only cases of such a name; --list shows them. May be repeated.",
)
@click.option(
    "--contenders",
    type=_Contenders(),
    default=",".join(each.name for each in OTHERS),
    help="Who is measured, besides C.",
)
@click.option(
    "--total", type=click.IntRange(1), default=1024, help="MiB of state in a trial."
)
@click.option("--deadline", type=float, default=60.0, help="Seconds for a trial.")
@click.option("--verify", is_flag=True, help="Check all that arrives.")
@click.option(
    "--smoke",
    is_flag=True,
    help="All of it once, with little state, and all that arrives checked.",
)
@click.option("--json", "json_", type=_PATH, help="Write the results to a file.")
@click.option("--chart", type=_PATH, help="Draw them to a file: .svg, .png, .pdf.")
@click.option("--from", "from_", type=_PATH, help="Measure nothing; read such a file.")
@click.option("--list", "list_", is_flag=True, help="Say what there is to measure.")
def main(
    *,
    rounds: int,
    only: tuple[str, ...],
    contenders: Sequence[Contender],
    total: int,
    deadline: float,
    verify: bool,
    smoke: bool,
    json_: Path | None,
    chart: Path | None,
    from_: Path | None,
    list_: bool,
) -> None:
    """Measure how fast trio-vfio is, against C, plain threads and asyncio.

    The exit status is 1 if anything failed, took too long or lost data. It does not
    depend on how fast anything is.
    """
    plan = Plan(
        cases=chosen(only),
        others=contenders,
        rounds=rounds,
        total_mib=total,
        headline_mib=headline.SIZE if _has_headline(only) else None,
        verify=verify,
        deadline=deadline,
    )
    if not plan.cases and plan.headline_mib is None:
        raise click.UsageError("there is nothing of such a name; see --list")
    if list_:
        click.echo("\n".join([case.name for case in plan.cases] + [_HEADLINE]))
        return
    if from_ is not None:
        record, faults = Record.read(from_), list[str]()
    else:
        record, faults = _measure(_small(plan) if smoke else plan)
    if json_ is not None:
        record.write(json_)
    if chart is not None:
        # Only here: who wants no chart needs no matplotlib.
        from .chart import draw  # noqa: PLC0415

        draw(Results(record.measured), record.about, chart)
    _show(record)
    if smoke:
        click.echo(
            "With as little state as that, none of it says how fast anything is."
        )
    for fault in faults:
        click.echo(f"failed: {fault}", err=True)
    raise SystemExit(1 if faults else 0)


def _has_headline(only: tuple[str, ...]) -> bool:
    return not only or any(fnmatchcase(_HEADLINE, each) for each in only)


def _small(plan: Plan) -> Plan:
    size = None if plan.headline_mib is None else _SMOKE_HEADLINE_MIB
    return attrs.evolve(
        plan, rounds=1, total_mib=_SMOKE_MIB, headline_mib=size, verify=True
    )


def _measure(plan: Plan) -> tuple[Record, list[str]]:
    """Measure what *plan* says. Returns what failed, too."""
    try:
        build()
    except (OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(f"programs in C, by gcc and make: {error}") from None
    found = about(
        rounds=plan.rounds, total_mib=plan.total_mib, headline_mib=plan.headline_mib
    )
    rounds = Rounds(plan, report=partial(click.echo, err=True))
    with tempfile.TemporaryDirectory() as folder:
        try:
            trio.run(rounds.run, Path(folder))
        except* (KeyboardInterrupt, ProgramError):
            # By then everything has ended. What was measured is worth something.
            rounds.faults.append("interrupted")
    return Record(found, rounds.measured, rounds.headline), rounds.faults


def _show(record: Record) -> None:
    console = Console(width=_WIDTH)
    results = Results(record.measured)
    if record.measured:
        console.print(ratios(results))
    if record.headline:
        headline.show(record.headline, record.about["headline_mib"])
    console.print(must_show(results, record.headline))


if __name__ == "__main__":
    main()
