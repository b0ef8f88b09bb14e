"""A proxy between two commands, which strikes at an exact byte.

It passes on all that both sides say, until one connection has carried so many
bytes one way. Then it does what it was told to, once, and nothing more goes that
way on that connection. What breaks then breaks as it would without a proxy: a side
that is gone is gone for the other, too, and a reset stays a reset.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, final

import attrs
import trio

from trio_vfio._link._address import address_of, connect, parse_address

_RESET: Final = struct.pack("ii", 1, 0)


@attrs.frozen
class Point:
    """A place on the way, exact to the byte."""

    name: str
    connection: int
    """In the order in which the source opens them: main is 0, channel 0 is 1."""
    carried: int
    """Bytes that get through."""
    held: bool = False
    """Whether to strike only when the next one comes, which is then held back."""
    back: bool = False
    """Whether they are the destination's, to the source."""

    def __str__(self) -> str:
        return self.name


@final
@attrs.define(eq=False)
class Connection:
    """One connection of the source and the one that is its other half."""

    source: trio.SocketStream
    destination: trio.SocketStream
    carried: dict[bool, int] = attrs.field(factory=lambda: {False: 0, True: 0})
    """Bytes that got through, forth and back."""
    _pumps: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    def ends(self, *, back: bool) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Return where bytes come from and where they go to."""
        if back:
            return self.destination, self.source
        return self.source, self.destination

    def finish(self) -> None:
        """End it for both sides, each of which may still send, to no avail."""
        self._pumps.cancel(reason="cut")
        for stream in (self.source, self.destination):
            with suppress(OSError):
                stream.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End it for both sides by a reset, where there is such a thing."""
        self._pumps.cancel(reason="cut")
        for stream in (self.source, self.destination):
            # The other pump may have been here before.
            with suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            stream.socket.close()

    async def serve(self, pump: Callable[[bool], Awaitable[None]]) -> None:
        """Pump both ways until both are done."""
        with self._pumps:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, False)
                nursery.start_soon(pump, True)

    def close(self) -> None:
        """Close it for both sides."""
        self._pumps.cancel(reason="closed")
        self.source.socket.close()
        self.destination.socket.close()


@final
@attrs.define(eq=False)
class Proxy:
    """Sits between a source and a destination."""

    listener: trio.SocketListener
    destination: Callable[[], Awaitable[str]]
    """Waits until it listens, and says where."""
    count: int
    """How many connections the source will open."""
    point: Point

    strike: Callable[[Connection], None] = attrs.field(init=False)
    """Done at the point. Must not wait."""
    killed: bool = attrs.field(default=False, init=False)
    """Whether one of the processes was, so that an end means that it is gone."""
    struck: bool = attrs.field(default=False, init=False)
    connections: list[Connection] = attrs.field(factory=list[Connection], init=False)

    @property
    def address(self) -> str:
        """Where the source is to connect to."""
        address = address_of(self.listener)
        assert address is not None
        return address

    async def run(self) -> None:
        """Pass everything on until all connections have ended."""
        with self.listener.socket:
            sources = [await self.listener.accept() for _ in range(self.count)]
        to = parse_address(await self.destination())
        # Before the first byte passes, so that all are there at any point.
        self.connections += [
            Connection(source, await connect(to)) for source in sources
        ]
        try:
            async with trio.open_nursery() as nursery:
                for number, connection in enumerate(self.connections):
                    nursery.start_soon(self._serve, number, connection)
        finally:
            for connection in self.connections:
                connection.close()

    async def _serve(self, number: int, connection: Connection) -> None:
        async def pump(back: bool) -> None:
            here = (number, back) == (self.point.connection, self.point.back)
            try:
                await self._pump(connection, back, here)
            except trio.ClosedResourceError:
                # By the other pump, or the strike.
                return
            except trio.BrokenResourceError as error:
                cause = error.__cause__
                if getattr(cause, "errno", None) == errno.ECONNRESET:
                    connection.reset()
                else:
                    connection.close()

        await connection.serve(pump)

    async def _pump(self, connection: Connection, back: bool, here: bool) -> None:
        take, give = connection.ends(back=back)
        deaf = False
        async for data in take:
            left = self.point.carried - connection.carried[back]
            through = bytes(data[:left]) if here else bytes(data)
            if not deaf:
                try:
                    await give.send_all(through)
                except trio.BrokenResourceError:
                    # It may have said something before it left.
                    deaf = True
            connection.carried[back] += len(through)
            come = len(data) if self.point.held else len(through)
            if here and not self.struck and come >= left + self.point.held:
                self.struck = True
                self.strike(connection)
                # For the cancel, if that is what it did.
                await trio.lowlevel.checkpoint()
        if self.killed:
            connection.close()
        elif not deaf:
            with suppress(trio.BrokenResourceError):
                await give.send_eof()
