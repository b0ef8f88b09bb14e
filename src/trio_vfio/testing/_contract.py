"""What the checks of contracts share: calls that must end well, and in time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, TypeVarTuple, cast, final

import attrs
import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How long a call may take that has nothing to wait for, in seconds.
PATIENCE: Final = 10.0


def require(holds: bool, otherwise: str) -> None:  # noqa: FBT001 - as assert does
    """Complain, with the words of *otherwise*, unless *holds*."""
    if not holds:
        raise AssertionError(otherwise)


async def call(what: str, awaitable: Awaitable[T]) -> T:
    """Make a call that must end well, and return what it returns."""
    with trio.move_on_after(PATIENCE):
        try:
            return await awaitable
        except Exception as error:
            raise AssertionError(f"{what} raised {error!r}") from error
    raise AssertionError(f"{what} did not end within {PATIENCE:g} s")


async def begins_again(begin: Awaitable[T]) -> list[T]:
    """Begin with a device that was aborted.

    Returns: what that returns, in a list, which is empty if the device refuses.

    Raises:
      AssertionError: if it does neither in time.
    """
    with trio.move_on_after(PATIENCE):
        try:
            return [await begin]
        except Exception:  # noqa: BLE001 (whatever a device raises)
            return []
    raise AssertionError(f"begin after abort did not end within {PATIENCE:g} s")


async def complaint(what: str, awaitable: Awaitable[object]) -> AssertionError | None:
    """Make a call that must end well; return what is wrong with it.

    Not raised, for a nursery would make a group of it.
    """
    try:
        await call(what, awaitable)
    except AssertionError as error:
        return error
    return None


def first_difference(one: bytes | bytearray, other: bytes) -> int | None:
    """Return the first byte in which they differ, or None."""
    if one == other:
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


# Asked, although it is declared, for whoever runs this may have no type checker.


def is_a(kind: type, value: object) -> bool:
    return isinstance(value, kind)


def _is_list_of_int(value: object) -> bool:
    return isinstance(value, list) and all(
        type(each) is int for each in cast("list[object]", value)
    )


def check_counts(
    what: str, buffers: Sequence[memoryview], counts: Sequence[int]
) -> None:
    returned = f"{what} returned {counts!r}"
    require(_is_list_of_int(counts), f"{returned}, not a list of int")
    require(len(counts) <= len(buffers), f"{returned}: one number a buffer at most")
    require(
        all(
            0 <= count <= len(buffer)
            for count, buffer in zip(counts, buffers, strict=False)
        ),
        f"{returned} for buffers of {[len(buffer) for buffer in buffers]} bytes",
    )
    require(0 not in counts[:-1], f"{returned}: a 0 is always the last number")


@final
@attrs.define(eq=False)
class CallInTask:
    """A call in a task of its own, to which something happens."""

    name: str
    what: str
    """What happens to it: ``cancelled``, ``aborted``."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    error: Exception | None = attrs.field(default=None, init=False)
    left: trio.Event = attrs.field(factory=trio.Event, init=False)
    _left_in_time: bool = attrs.field(default=False, init=False)

    async def run(
        self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts
    ) -> None:
        """Make the call."""
        try:
            with self.scope:
                await function(*args)
        except Exception as error:  # noqa: BLE001 (whatever a device raises)
            self.error = error
        self.left.set()

    async def wait_left(self) -> None:
        """Wait until the call has left, but not for ever."""
        with trio.move_on_after(PATIENCE):
            await self.left.wait()
        self._left_in_time = self.left.is_set()

    def check_left(self, advice: str) -> None:
        """Complain if it had not."""
        require(
            self._left_in_time,
            f"{self.name} was {self.what} and had not left {PATIENCE:g} s later:"
            f" {advice}",
        )
