"""Results as JSON: written by one run, read again for a table or a chart."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from .cases import Case, Medium, Task
from .headline import Downtimes
from .rounds import Measured
from .trial import Outcome

_FORMAT: Final = 1


@attrs.frozen
class Record:
    """All that one run has found."""

    about: Mapping[str, Any]
    """The machine, and what the run was asked for."""
    measured: Sequence[Measured]
    headline: Sequence[Downtimes]

    def write(self, path: Path) -> None:
        """Write it to *path*."""
        head = {"format": _FORMAT, "about": self.about}
        lists = {
            "trials": [_trial(each) for each in self.measured],
            "headline": [attrs.asdict(each) for each in self.headline],
        }
        # A line for each, so that two runs can be compared line by line.
        parts = [f"{json.dumps(name)}: {json.dumps(head[name])}" for name in head]
        for name, each in lists.items():
            lines = ",\n".join(map(json.dumps, each))
            parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `write` has written.

        Raises:
          ValueError, KeyError: if it is something else.
        """
        content: Any = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise ValueError(f"{path} holds no results")
        return cls(
            content["about"],
            [_measured(**each) for each in content["trials"]],
            [Downtimes(**each) for each in content["headline"]],
        )


def about(**asked: Any) -> dict[str, Any]:
    """Return what there is to know of this machine, and what was *asked* for."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        **asked,
    }


def _trial(each: Measured) -> dict[str, Any]:
    trial = attrs.asdict(each)
    # The name is for people; it says what the rest does.
    return {**trial, "case": {"name": each.case.name, **trial["case"]}}


def _measured(
    *, case: dict[str, Any], outcome: dict[str, Any] | None, **rest: Any
) -> Measured:
    about = {name: value for name, value in case.items() if name != "name"}
    about.update(task=Task(case["task"]), medium=Medium(case["medium"]))
    return Measured(
        case=Case(**about),
        outcome=None if outcome is None else Outcome(**outcome),
        **rest,
    )
