"""The steps of a script for `ScriptedPeer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from ._faults import ConnectionName

if TYPE_CHECKING:
    from ._peer import ScriptedPeer


def short(data: bytes) -> str:
    """Return *data* as it is shown in a message."""
    return repr(data) if len(data) <= 16 else f"<{len(data)} bytes>"


@attrs.frozen
class Piece:
    """Bytes to send."""

    time: float
    """When, in seconds since `ScriptedPeer.run` began."""
    connection: ConnectionName
    """Over which: "main", or the number of a channel, in the order of opening."""
    data: bytes = attrs.field(repr=short)


@attrs.frozen
class Close:
    """The end of a connection, behind all that was sent over it before."""

    time: float
    """When, in seconds since `ScriptedPeer.run` began."""
    connection: ConnectionName
    how: Literal["close", "eof", "reset"] = "close"
    """``eof``: say that nothing more comes, and keep listening, where the stream can;
    ``reset``: over a socket, what the peer has not received is dropped, and it is
    told that the connection broke; elsewhere as ``close``."""


@attrs.frozen
class Wait:
    """A stop, until something has been."""

    time: float
    """From when on to look, in seconds since `ScriptedPeer.run` began."""
    connection: ConnectionName
    """Which one goes no further. The others do not wait."""
    until: Callable[[ScriptedPeer], bool]
    """Asked whenever something was heard or sent. If the connection ends without
    that it is true, the rest of its script is dropped."""


ScriptStep: TypeAlias = Piece | Close | Wait
"""One step of a script."""
