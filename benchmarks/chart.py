"""The chart: how fast each is, as a multiple of C, and how far the rounds went apart."""

# Types of matplotlib leave open what keyword arguments are.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

# Before pyplot: there is no display.
mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from .cases import Case, Task
from .contenders import REFERENCE
from .results import Results

_COLOURS: Final = {
    "ours": "#c0392b",
    "threads": "#2c7fb8",
    "asyncio": "#7fbf7b",
    "copy": "#888888",
}
_OFFSET: Final = 0.18
_TITLES: Final = {
    Task.LOAD: "load",
    Task.SAVE: "save",
    Task.WHOLE: "save and load, from process to process",
}


def draw(results: Results, about: Mapping[str, Any], path: Path) -> None:
    """Draw the results and write them to *path*, in the format that its name says."""
    tasks = list(dict.fromkeys(case.task for case in results.cases()))
    groups = [[case for case in results.cases() if case.task == task] for task in tasks]
    figure, axes = plt.subplots(
        len(groups),
        figsize=(9, 1.5 + sum(0.42 * len(group) + 0.6 for group in groups)),
        sharex=True,
        squeeze=False,
        height_ratios=[len(group) + 1 for group in groups],
        layout="constrained",
    )
    for task, group, each in zip(tasks, groups, axes[:, 0], strict=True):
        _draw_group(each, results, group)
        each.set_title(_TITLES[task], loc="left", fontsize=10)
    axes[-1, 0].set_xlabel("speed as a multiple of C's in the same round")
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=4, frameon=False)
    figure.suptitle(_caption(about), fontsize=8, x=0.01, ha="left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_group(axes: Axes, results: Results, cases: Sequence[Case]) -> None:
    names = [
        name for name in _COLOURS if any(_has(results, each, name) for each in cases)
    ]
    for number, name in enumerate(names):
        shift = (number - (len(names) - 1) / 2) * _OFFSET
        for row, case in enumerate(cases):
            if (found := results.speed(case, name, REFERENCE.name)) is None:
                continue
            y = row + shift
            label = name if row == 0 else None
            axes.plot([found.least, found.most], [y, y], color=_COLOURS[name], lw=1)
            axes.plot([found.median], [y], "o", color=_COLOURS[name], ms=5, label=label)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(range(len(cases)), [_label(case) for case in cases], fontsize=8)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#dddddd", lw=0.5)
    axes.set_axisbelow(True)


def _has(results: Results, case: Case, name: str) -> bool:
    return name in results.contenders(case)


def _label(case: Case) -> str:
    return case.name.removeprefix(f"{case.task}-")


def _caption(about: Mapping[str, Any]) -> str:
    return (
        f"Python {about['python']}, {about['processors']} processors, {about['rounds']}"
        f" rounds of {about['total_mib']} MiB: median, least and most"
    )
