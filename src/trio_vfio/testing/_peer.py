"""A peer that follows a script: what to send over which connection, and when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self, TypeAlias, final

import attrs
import trio

from .._link._stream import end, reset
from .._types import Connect
from ._capture_script import capture_script
from ._faults import ConnectionName
from ._script import Close, Piece, ScriptStep, Wait

Listeners: TypeAlias = Sequence[trio.abc.Listener[trio.abc.Stream]]
"""Listeners for the connections of a script."""


@final
@attrs.define(eq=False)
class ScriptedPeer:
    """One end of all connections of a migration, which says what its script says.

    A source that talks HTTP, in five lines::

        connect, there = link()
        peer = ScriptedPeer(connect, [Piece(60.0, "main", b"GET / HTTP/1.1")])
        with pytest.raises(MigrationFailed):
            async with open_incoming(there, {"0000:00:04.0/vfio": SimulatedSink()}):
                await peer.run()

    What it takes for a source, piece by piece, is made by `MainStream`,
    `initial_packet`, `data_packet` and `config_packet`. The steps of one connection
    are taken in the order of the script, each at its time, or as soon as those
    before it are done. Connections do not hold each other up.

    For a peer that acts on what it hears, `ScriptedSource` and
    `ScriptedDestination` may be shorter.
    """

    where: Connect | Listeners
    """What opens a connection, as a `link` does: then this is a source. Or listeners:
    then it is a destination. Those stay the caller's to close."""
    script: Sequence[ScriptStep] = ()
    channels: int | None = attrs.field(default=None, kw_only=True)
    """How many channels besides main; None: as many as the script names."""

    heard: dict[ConnectionName, bytearray] = attrs.field(init=False)
    """All that came on each connection, by its name."""
    sent: dict[ConnectionName, int] = attrs.field(init=False)
    """How many bytes of whole pieces were sent over each."""
    ended: dict[ConnectionName, float] = attrs.field(
        factory=dict[ConnectionName, float], init=False
    )
    """When each ended or broke, or was closed here, in Trio's time."""
    _steps: dict[ConnectionName, list[ScriptStep]] = attrs.field(init=False, repr=False)
    _names: list[ConnectionName] = attrs.field(init=False, repr=False)
    _news: trio.lowlevel.ParkingLot = attrs.field(
        factory=trio.lowlevel.ParkingLot, init=False, repr=False
    )

    def __attrs_post_init__(self) -> None:
        self._steps = _by_connection(self.script)
        numbers = [name for name in self._steps if name != "main"]
        named = max(numbers, default=-1) + 1
        if self.channels is not None and named > self.channels:
            raise ValueError(f"the script names {named} channels, not {self.channels}")
        channels = range(named if self.channels is None else self.channels)
        self._names = ["main", *channels]
        self.heard = {name: bytearray() for name in self._names}
        self.sent = dict.fromkeys(self._names, 0)

    @classmethod
    def from_capture(
        cls, where: Connect | Listeners, path: str | Path, *, speed: float = 1.0
    ) -> Self:
        """Make a source that sends what the source of a capture sent.

        Each read of the recorder is a piece, at the time when it came. As the
        recorded source did, main waits for the destination's answers before
        SWITCHOVER_START, and the channels wait for that. It leaves when the
        destination has said SHUT; without a return path, when all was sent.

        Channels are numbered in order, whatever their ids. A capture that does
        not say when its bytes came is sent as fast as they are taken.

        Args:
          where: as in the constructor.
          path: the directory of the capture; all of it is read into memory.
          speed: how many times as fast as recorded; `math.inf`: at once.

        Raises:
          ValueError: if there is no capture at *path*, or *speed* makes no sense.
          OSError: if it cannot be read.
        """
        return cls(where, capture_script(Path(path), speed))

    async def run(self) -> None:
        """Open or take the connections, main first, and play the script.

        A source opens all of them before it sends anything. A destination begins
        with each as it comes, and calls the first one main. A connection that the
        peer ends or breaks drops what is left of its own script.

        Returns when the script is over and, for a source, main has ended; for a
        destination, when all connections have. To be run once.

        Cancellation: all connections are closed. What was heard stays to be
        looked at.

        Raises:
          Whatever opening or accepting a connection raises.
        """
        began = trio.current_time()
        is_source = callable(self.where)
        async with AsyncExitStack() as stack, trio.open_nursery() as hearing:
            async with trio.open_nursery() as sending:
                opened: list[tuple[ConnectionName, trio.abc.Stream]] = []
                for name in self._names:
                    stream = await stack.enter_async_context(await self._next())
                    opened.append((name, stream))
                    if is_source and name != self._names[-1]:
                        continue
                    for each in opened:
                        hearing.start_soon(self._hear, *each)
                        sending.start_soon(self._play, *each, began)
                    opened.clear()
            awaited = ["main"] if is_source else self._names
            while not self.ended.keys() >= set(awaited):
                await self._news.park()
            hearing.cancel_scope.cancel(reason="the script is over")

    async def _next(self) -> trio.abc.Stream:
        if callable(self.where):
            return await self.where()
        return await self.where[0].accept()

    async def _hear(self, name: ConnectionName, stream: trio.abc.Stream) -> None:
        try:
            async for data in stream:
                self.heard[name] += data
                self._news.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.ended[name] = trio.current_time()
        self._news.unpark_all()

    async def _play(
        self, name: ConnectionName, stream: trio.abc.Stream, began: float
    ) -> None:
        for step in self._steps[name]:
            await trio.sleep_until(began + step.time)
            try:
                if not await self._take(step, stream):
                    return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The peer has left.
                return
            self._news.unpark_all()

    async def _take(self, step: ScriptStep, stream: trio.abc.Stream) -> bool:
        """Take one step. Returns whether there is a next one."""
        name = step.connection
        match step:
            case Piece():
                await stream.send_all(step.data)
                self.sent[name] += len(step.data)
            case Close(how="eof"):
                await end(stream, close=True)
            case Close(how="reset"):
                await reset(stream)
            case Close():
                await stream.aclose()
            case Wait():
                while not step.until(self):
                    if name in self.ended:
                        return False
                    await self._news.park()
        return True


def _by_connection(
    script: Iterable[ScriptStep],
) -> dict[ConnectionName, list[ScriptStep]]:
    steps: dict[ConnectionName, list[ScriptStep]] = defaultdict(list)
    for step in script:
        name = step.connection
        if name != "main" and not str(name).isdecimal():
            raise ValueError(f"there is no connection {name!r}")
        if isinstance(step, Piece) and any(
            isinstance(before, Close) for before in steps[name]
        ):
            raise ValueError(f"{step} comes after the end of its connection")
        steps[name].append(step)
    return steps
