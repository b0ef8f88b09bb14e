"""What the type of a machine says of its migration."""

from __future__ import annotations

import re


def acks_once(machine: str | None) -> bool:
    """Whether a source of this type expects one SWITCHOVER_ACK in all.

    So up to 11.0; from 11.1 on, or if that is not known, one for each device.
    """
    found = re.search(r"-(\d+)\.(\d+)$", machine or "")
    return found is not None and (int(found[1]), int(found[2])) < (11, 1)
