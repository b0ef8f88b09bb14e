"""``python -m benchmarks``"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console

from .cases import KIB, MIB, chosen
from .contenders import OTHERS, build
from .results import Results
from .rounds import Measured, Rounds
from .table import ratios

_TOTAL: Final = 1024 * MIB
_SMOKE_TOTAL: Final = 8 * MIB


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=5, help="How many.")
@click.option("--only", multiple=True, metavar="GLOB", help="Names of cases.")
@click.option("--total", type=click.IntRange(64 * KIB), default=_TOTAL, metavar="BYTES")
@click.option("--verify", is_flag=True, help="Check what has arrived.")
@click.option("--smoke", is_flag=True, help="Small, once, all of it, checked.")
def main(
    *, rounds: int, only: tuple[str, ...], total: int, verify: bool, smoke: bool
) -> None:
    """Measure trio-vfio against others that do the same."""
    cases = chosen(only)
    if not cases:
        raise click.UsageError("no case has such a name")
    if smoke:
        rounds, total, verify = 1, _SMOKE_TOTAL, True
    build()
    measured: list[Measured] = []

    def report(each: Measured) -> None:
        measured.append(each)
        said = each.fault or (each.outcome and f"{each.outcome.seconds:.3f} s")
        click.echo(f"{each.round} {each.case.name} {each.contender}: {said}", err=True)

    with tempfile.TemporaryDirectory() as folder:
        plan = Rounds(
            cases=cases,
            others=OTHERS,
            rounds=rounds,
            total=total,
            verify=verify,
            folder=Path(folder),
        )
        trio.run(plan.run, report)
    Console(width=140).print(ratios(Results(measured)))
    raise SystemExit(any(each.fault for each in measured))


if __name__ == "__main__":
    main()
