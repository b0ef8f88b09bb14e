"""All that a session knows of a device: what it can be asked to do.

Sessions only ever see this protocol, so anything that fulfils it can be
migrated: a kernel device, a file, a simulation in virtual time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs


class QuickWriter(Protocol):
    """Writes to a device, in whatever thread, while the device's own one waits."""

    @property
    def is_quick(self) -> bool:
        """Whether that is likely to take no longer than to wake the device's thread."""
        ...

    def write(self, buffers: Sequence[memoryview]) -> int:
        """Write *buffers*, or their beginning, and return how many bytes that were.

        Raises:
          OSError: if the device refuses it.
        """
        ...


@runtime_checkable
class Gathers(Protocol):
    """What the iterator that `StateSink.write` is given can do besides.

    It is for devices that write small buffers together, with one system call. Who
    uses this does not iterate.
    """

    def gather(self, most: int, writer: QuickWriter | None = None) -> list[memoryview]:
        """Return what is to be written next, in order; nothing at the end.

        That is what is left of the buffer that is partly written, or else the next
        one, and as many behind it as make no more than *most* bytes together.

        Args:
          writer: if this has to wait for a buffer, the thread that brings it may
            write it with that, and then need not wake this one. For a device
            that never lets a thread wait: others have their data from it, too.

        Raises:
          OSError: if *writer* did.
        """
        ...

    def written(self, count: int) -> None:
        """Take note that *count* bytes more are written, of what `gather` gave."""
        ...

    def partly(self) -> tuple[int, int]:
        """How much is written of the buffer that comes next, and its size, in bytes."""
        ...


class StateSink(Protocol):
    """A device that takes migration state.

    The session calls `begin` once, then `write` any number of times, then
    `load_config` at most once, then `finish` once; never two of them at a time.

    Only `abort` may come at any time after `begin` was called, also while
    another call is under way or after `finish` returned. It comes at most once,
    and nothing of this session comes after it. A session that succeeds never calls it.

    Another session may call `begin` again after an `abort`, or after a `begin` that has
    raised: a migration that has failed is tried again. Then `begin` starts afresh, and
    nothing of the earlier attempt is part of the state. A device that cannot do so, as a
    pipe that was written to, raises at once in `begin`.

    Cancellation: a session is cancelled at any moment, by a fault elsewhere or
    by its user. A call that changes the device must then be seen to end, so it
    is waited for (a worker thread: ``abandon_on_cancel=False``; a simulation: a
    shielded scope around each step), and raises `trio.Cancelled` at its next
    safe point. What any call raises after `abort` was called is dropped.

    Errors: anything but `trio.Cancelled` that a call raises fails the migration.
    An `OSError` is reported with its errno.
    """

    @property
    def precopy(self) -> bool | None:
        """Whether the device takes data before switchover; None if it cannot say.

        Asked only to decide when to acknowledge the switchover.
        """
        ...

    async def begin(self) -> None:
        """Make ready to take state.

        If it raises, it has cleaned up after itself: no `abort` follows.
        """
        ...

    async def write(self, buffers: Iterator[memoryview]) -> None:
        """Write all of *buffers*, none of them empty, in order.

        Asking for the next one says that the last one is written. The iterator
        ends early when the session stops; the call then just returns. It may be
        walked from a worker thread. Each view is valid only until the next one
        is asked for: then its memory takes other data. It `Gathers`, too.
        """
        ...

    async def load_config(self, blob: bytes) -> None:
        """Take the device's config blob, which comes after all data."""
        ...

    async def finish(self) -> None:
        """Accept the state as a whole, or raise: the last word on it."""
        ...

    async def abort(self) -> None:
        """Drop all that was taken, and end any call that is still under way."""
        ...


def _size(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{attribute.name} cannot be {value!r}")


@attrs.frozen
class Pending:
    """What a source still has to give, in bytes. All of it is a guess.

    Kernel: ``VFIO_MIG_GET_PRECOPY_INFO`` and ``VFIO_DEVICE_FEATURE_MIG_DATA_SIZE``.
    """

    initial_bytes: int = attrs.field(default=0, validator=_size)
    """What must have gone before the destination is ready for a switchover."""
    dirty_bytes: int = attrs.field(default=0, validator=_size)
    """What can go beyond that before `StateSource.stop`."""
    stop_copy_bytes: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_size)
    )
    """What there would be to read if it were stopped now; None if it cannot say."""


class StateSource(Protocol):
    """A device that gives its migration state.

    The session calls `begin` once, and then `pending` any number of times. If
    `begin` says so, pre-copy follows: `read_into`, any number of times. Then `stop`
    once, `read_into` until it says that this was all, `config` once, and, when the
    destination has accepted everything, `finish` once. There are never two of them
    at a time.

    Only `abort` may come at any time after `begin` was called, also while another
    call is under way. It comes at most once, and nothing of this session comes after it.
    A session that succeeds never calls it; it never comes after `finish`.

    Another session may call `begin` again, as for a `StateSink`: the source then gives
    its state from the beginning, or raises at once in `begin`, as a pipe does of which
    something was read.

    Cancellation and errors: as for a `StateSink`.
    """

    async def begin(self) -> bool:
        """Make ready to give state, while the guest runs.

        If it raises, it has cleaned up after itself: no `abort` follows.

        Returns: whether the device gives data before `stop`.
        """
        ...

    async def pending(self) -> Pending:
        """Estimate what there is still to read. Asked only before `stop`."""
        ...

    async def read_into(self, buffers: Sequence[memoryview]) -> list[int]:
        """Read the next data into *buffers*, one after another.

        May be done in a worker thread. Nothing touches the buffers meanwhile, and
        nothing of them may be kept.

        Returns: how many bytes each of the first buffers was given. The list is
            shorter than *buffers* if there is no more for now (the kernel's
            ENOMSG), which before `stop` may be at once. A 0, always the last
            number, says that this was all; before `stop`, that this was all there
            is until then.
        """
        ...

    async def stop(self) -> None:
        """Make the device stand still. The guest no longer runs."""
        ...

    async def config(self) -> bytes:
        """Return the config blob, which goes behind all data; may be empty."""
        ...

    async def finish(self) -> None:
        """Let go of the device: its state lives on at the destination."""
        ...

    async def abort(self) -> None:
        """Let the device run on as if nothing had been, and end any call."""
        ...


class Buffers(Protocol):
    """Empty buffers that a session lends to a `ReadsAll`, one after another.

    For one worker thread at a time, for a call may wait.
    """

    def take(self) -> memoryview | None:
        """Wait for the next buffer; it is lent until it is `filled`.

        Returns: None if the session stops. Then the read is to end, too.
        """
        ...

    def filled(self, count: int) -> None:
        """Say that the buffer that was taken last begins with *count* bytes of data.

        Raises:
          ValueError: if there cannot be so many in it, or there are none.
        """
        ...


@runtime_checkable
class ReadsAll(Protocol):
    """What a `StateSource` may have besides, if it is read in a worker thread anyway.

    That thread then stays for all data behind `StateSource.stop`, while each call of
    `StateSource.read_into` needs one anew, which takes as long as reading 300 KiB.
    """

    async def read_all(self, buffers: Buffers) -> None:
        """Read to the end of the data, into one buffer after another.

        Called once, in place of every `read_into` behind `stop`. It returns when the
        data has ended, or when there are no more buffers.
        """
        ...


@runtime_checkable
class PeerToPeer(Protocol):
    """What a `StateSource` may have besides, if it can access other devices itself.

    A device that stands still cannot answer another one. So before `StateSource.stop`
    of any device, all that have this are asked not to begin such accesses any more.
    Only then is any of them stopped.
    """

    async def stop_p2p(self) -> None:
        """Begin no access to another device from now on, but answer those of others."""
        ...
