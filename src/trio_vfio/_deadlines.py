"""How long a migration may take over what."""

from __future__ import annotations

from typing import Any

import attrs


def _positive(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{attribute.name} must be positive, not {value!r}")


@attrs.frozen(kw_only=True)
class Deadlines:
    """Deadlines of an incoming migration, in seconds; None: for ever."""

    first_connection: float | None = attrs.field(default=None, validator=_positive)
    """Until a source connects."""

    handshake: float | None = attrs.field(default=30.0, validator=_positive)
    """From accepting a connection to its first bytes. Costs that connection only."""

    silence: float | None = attrs.field(default=30.0, validator=_positive)
    """Without a byte on any connection and without a device call.

    Counts after SWITCHOVER_START, while the source's guest stands still, and
    while a source has opened channels but no main channel. Before switchover a
    source may rightly be silent for long.
    """

    switchover: float | None = attrs.field(default=None, validator=_positive)
    """From SWITCHOVER_START to the last device's acceptance."""
