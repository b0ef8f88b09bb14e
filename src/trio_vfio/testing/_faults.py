"""What can go wrong with a simulated device, or with a connection in memory."""

from __future__ import annotations

import math
import os
from errno import EIO
from typing import Any, Final, Literal, TypeAlias, final

import attrs

ConnectionName: TypeAlias = int | Literal["main"]
"""Of a connection: in the order in which they are opened, "main", 0, 1, 2."""

_DATA_CALLS: Final = ("write", "read_into")

_DOES: Final = ("fails", "hangs", "ends")

_BEFALLS: Final = ("cut", "reset", "half_close", "garbage", "stall")


def is_name(value: object) -> bool:
    """Whether a connection can have this name."""
    return value == "main" or (isinstance(value, int) and value >= 0)


def os_error(number: int) -> OSError:
    """Return the system's error of that number."""
    return OSError(number, os.strerror(number))


@final
@attrs.frozen
class DeviceFault:
    """What goes wrong in a call of a `SimulatedSink` or a `SimulatedSource`.

    Every such call, unless one of `at_byte`, `at_call` and `at_time` says which. A
    device whose last word on its state is no: ``DeviceFault("finish",
    errno=errno.EINVAL)``. Its repr is Python that makes the same.

    Raises:
      ValueError: if it says more than once where, or what cannot be.
    """

    call: str
    """Its name: ``write``, ``read_into``, ``finish`` and so on."""
    does: Literal["fails", "hangs", "ends"] = attrs.field(
        default="fails",
        kw_only=True,
        validator=attrs.validators.in_(_DOES),
    )
    """``fails``: with `errno`, once its time is over. ``hangs``: until the device is
    aborted. ``ends``: a read says from here on that this was all, though there is
    more, so that the state is short; takes no time."""
    errno: int = attrs.field(default=EIO, kw_only=True)
    at_byte: int | None = attrs.field(default=None, kw_only=True)
    """In the buffer that holds this byte of the data."""
    at_call: int | None = attrs.field(default=None, kw_only=True)
    """In the call of that name that has this number, from 0 on; a call that moves
    many buffers is one."""
    at_time: float | None = attrs.field(default=None, kw_only=True)
    """In whatever of that call begins so many seconds after the device's ``begin``,
    or later."""

    def __attrs_post_init__(self) -> None:
        places = [self.at_byte, self.at_call, self.at_time]
        given = [place for place in places if place is not None]
        if len(given) > 1:
            raise ValueError("at_byte, at_call or at_time, but only one of them")
        if any(not 0 <= place < math.inf for place in given):
            raise ValueError(f"nothing is at {given[0]!r}")
        if self.at_byte is not None and self.call not in _DATA_CALLS:
            raise ValueError(f"{self.call} has no bytes")
        if self.does == "ends" and self.call != "read_into":
            raise ValueError("only read_into can say that this was all")
        if self.does == "hangs" and self.call == "abort":
            raise ValueError("abort is what ends a call that hangs")

    def __repr__(self) -> str:
        return _as_python(self)


@final
@attrs.frozen
class LinkFault:
    """What befalls a connection of a `link`, once.

    Its repr is Python that makes the same.

    Raises:
      ValueError: if it does not say where exactly once, or what cannot be.
    """

    connection: ConnectionName
    """Its name: ``main`` for the one that is opened first, then 0, 1, 2."""
    does: Literal["cut", "reset", "half_close", "garbage", "stall"] = attrs.field(
        validator=attrs.validators.in_(_BEFALLS)
    )
    """On the way from the source to the destination, or that `back`:

    - ``cut``: the connection breaks. What has left that way still arrives; then the
      receiver's ``receive_some`` raises `trio.BrokenResourceError`. What would send
      more raises it, too, and all that the sender receives from then on, so that what
      was on its way to it is lost; what the receiver sends, as soon as it can know.
    - ``reset``: both ends are broken at once, and what neither has received is lost.
    - ``half_close``: the receiver sees the end behind what has left, while sending
      more raises `trio.BrokenResourceError`. The other way lives on.
    - ``garbage``: `data` arrives, too, as if it had been sent there.
    - ``stall``: what leaves from then on arrives only after `seconds`, and so does the
      news that the connection has ended. It takes room in the window meanwhile.
    """
    at_byte: int | None = attrs.field(default=None, kw_only=True)
    """When so many bytes have left that way."""
    at_time: float | None = attrs.field(default=None, kw_only=True)
    """So many seconds after the link was made. If the connection is opened later: as
    soon as it is. What happens at that very moment comes behind the fault."""
    back: bool = attrs.field(default=False, kw_only=True)
    """Whether that is the way from the destination to the source."""
    data: bytes = attrs.field(default=b"", kw_only=True)
    seconds: float = attrs.field(default=math.inf, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not is_name(self.connection):
            raise ValueError(f"there is no connection {self.connection!r}")
        if (self.at_byte is None) == (self.at_time is None):
            raise ValueError("at_byte or at_time, and only one of them")
        at = self.at_time if self.at_byte is None else self.at_byte
        if at is None or not 0 <= at < math.inf:
            raise ValueError(f"nothing is at {at!r}")
        if bool(self.data) != (self.does == "garbage"):
            raise ValueError("data is for garbage")
        if not self.seconds > 0 or (self.seconds < math.inf and self.does != "stall"):
            raise ValueError("seconds are for a stall, and more than 0")

    def __repr__(self) -> str:
        return _as_python(self)

    @property
    def why(self) -> str:
        """What whoever meets a broken connection is told."""
        at = f"{self.at_byte} bytes" if self.at_time is None else f"{self.at_time} s"
        back = " back" if self.back else ""
        return f"{self.connection}: {self.does} after {at}{back}"


def _as_python(fault: attrs.AttrsInstance) -> str:
    # What is left out is as it would be anyway, and no infinity is ever written.
    written: list[str] = []
    for field in attrs.fields(type(fault)):
        value: Any = getattr(fault, field.name)
        if not field.kw_only:
            written.append(repr(value))
        elif value != field.default:
            written.append(f"{field.name}={value!r}")
    return f"{type(fault).__name__}({', '.join(written)})"
