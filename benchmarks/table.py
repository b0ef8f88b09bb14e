"""The table of ratios."""

from __future__ import annotations

from rich.table import Table

from .cases import Case
from .contenders import REFERENCE
from .results import Results, Spread, gigabytes_per_second


def ratios(results: Results) -> Table:
    """Return the table: a row for each case and contender."""
    made = Table(title="speed as a multiple of C's, in the same round")
    for name in ("case", "contender"):
        made.add_column(name, no_wrap=True)
    columns = ("GB/s", "min", "median", "max", "CPU s", "of C's", "peak MiB", "+MiB")
    for name in columns:
        made.add_column(name, justify="right", no_wrap=True)
    for case in results.cases():
        for contender in results.contenders(case):
            is_first = contender == REFERENCE.name
            name = case.name if is_first else ""
            made.add_row(name, contender, *_row(results, case, contender))
        made.add_section()
    return made


def _row(results: Results, case: Case, contender: str) -> list[str]:
    c = REFERENCE.name
    speed = results.speed(case, contender, c)
    cpu = results.cpu(case, contender, c)
    rss = results.spread(case, contender, lambda outcome: outcome.rss_peak_kib / 1024)
    own = results.spread(case, contender, lambda outcome: outcome.own_mib)
    rate = results.spread(case, contender, gigabytes_per_second)
    seconds = results.spread(case, contender, lambda outcome: outcome.cpu)
    return [
        _middle(rate),
        f"{speed.least:.2f}" if speed else "-",
        _middle(speed),
        f"{speed.most:.2f}" if speed else "-",
        _middle(seconds),
        _middle(cpu),
        f"{rss.most:.0f}" if rss else "-",
        f"{own.most:.0f}" if own else "-",
    ]


def _middle(spread: Spread | None) -> str:
    return f"{spread.median:.2f}" if spread else "-"
