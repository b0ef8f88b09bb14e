"""How long a migration may take over what."""

from __future__ import annotations

from typing import Any

import attrs


def _positive(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{attribute.name} must be positive, not {value!r}")


@attrs.frozen(kw_only=True)
class Deadlines:
    """Deadlines of a migration, in seconds; None: for ever."""

    first_connection: float | None = attrs.field(default=None, validator=_positive)
    """Until a source connects; at the source, until all connections are made."""

    handshake: float | None = attrs.field(default=30.0, validator=_positive)
    """From accepting a connection to its first bytes. Costs that connection only.

    At the source: until the destination answers, if it is to answer.
    """

    silence: float | None = attrs.field(default=30.0, validator=_positive)
    """Without a byte on any connection and without a device call.

    Counts after SWITCHOVER_START, while the source's guest stands still, and
    while a source has opened channels but no main channel. Before switchover a
    source may rightly be silent for long.

    At the source it counts from SWITCHOVER_START until all is sent. From then on the
    destination may take its time; whether its machine is still there is asked by
    TCP keepalive, within about this time. A destination that is not to answer has
    to close the connection within it.
    """

    switchover: float | None = attrs.field(default=None, validator=_positive)
    """From SWITCHOVER_START to the last device's acceptance.

    At the source: from before the guest is stopped to the destination's last word.
    """
