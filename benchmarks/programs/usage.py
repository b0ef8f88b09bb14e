"""What a program costs: processor time and memory, as it sees them itself."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any, final


def announce(port: int) -> None:
    """Say where we listen."""
    _say({"port": port})


@final
class Usage:
    """Counts from when it is made: what the interpreter has taken is not the program's."""

    def __init__(self) -> None:
        self._rss_start = _status_kib("VmRSS")
        self._before = resource.getrusage(resource.RUSAGE_SELF)

    def finish(self, *, moved: int, seconds: float) -> None:
        """Print what was moved, in bytes, in what time, and at what cost."""
        before, after = self._before, resource.getrusage(resource.RUSAGE_SELF)
        _say(
            {
                "bytes": moved,
                "seconds": seconds,
                "utime": after.ru_utime - before.ru_utime,
                "stime": after.ru_stime - before.ru_stime,
                "rss_start_kib": self._rss_start,
                "rss_peak_kib": _status_kib("VmHWM"),
            }
        )


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def _status_kib(name: str) -> int:
    # Not ru_maxrss: that is inherited from whoever started the program.
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(name)
