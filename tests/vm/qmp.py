"""QEMU's monitor in Trio: the client of `qemu.qmp`, whose event loop has a thread."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, final

import attrs
import trio
from qemu.qmp import EventListener, QMPClient, QMPError

_T = TypeVar("_T")


@final
@attrs.define(eq=False)
class Monitor:
    """A monitor, while its block runs."""

    events: list[dict[str, Any]] = attrs.field(factory=list[dict[str, Any]], init=False)
    """All that it has reported by itself, in order."""
    _client: QMPClient = attrs.field(factory=QMPClient, init=False)
    _token: trio.lowlevel.TrioToken = attrs.field(
        factory=trio.lowlevel.current_trio_token, init=False
    )
    _opened: trio.Event = attrs.field(factory=trio.Event, init=False)
    _reported: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set and replaced with each event."""
    # Of the other thread, there once `_opened` is set.
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)
    _closing: asyncio.Event | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    async def execute(self, command: str, **arguments: object) -> Any:
        """Execute *command*, in whose arguments underscores stand for hyphens.

        Cancellation: the answer, if there is one, is dropped.

        Returns: the answer.

        Raises:
          QMPError: if QEMU refuses, or goes away before it has answered.
        """
        named = {name.replace("_", "-"): each for name, each in arguments.items()}
        return await self._in_loop(self._client.execute(command, named))

    async def wait_event(self, name: str, *, after: int = 0) -> dict[str, Any]:
        """Wait until *name* is among `events`, the first *after* of which do not count.

        Returns: its data.
        """
        while True:
            reported = self._reported
            for event in self.events[after:]:
                if event["event"] == name:
                    return dict(event.get("data", {}))
            await reported.wait()

    async def _in_loop(self, work: Awaitable[_T]) -> _T:
        """Wait for *work* in the thread of the loop."""

        async def working() -> _T:
            return await work

        assert self._loop is not None
        done = trio.Event()
        future = asyncio.run_coroutine_threadsafe(working(), self._loop)
        future.add_done_callback(lambda _: self._token.run_sync_soon(done.set))
        try:
            await done.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        return future.result()

    def _report(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._reported.set()
        self._reported = trio.Event()

    async def _serve(self, connection: socket.socket) -> None:
        """Be connected until told to close. Runs in the thread."""
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        listener = EventListener()
        self._client.register_listener(listener)
        await self._client.connect(connection)
        self._token.run_sync_soon(self._opened.set)
        listening = asyncio.create_task(self._listen(listener))
        if not self._closed:
            await self._closing.wait()
        listening.cancel()
        # A QEMU that is gone is no news to who has closed it.
        with suppress(EOFError, OSError, QMPError):
            await self._client.disconnect()

    async def _listen(self, listener: EventListener) -> None:
        async for event in listener:
            self._token.run_sync_soon(self._report, dict(event))

    async def _run(self, connection: socket.socket) -> None:
        # Not abandoned when cancelled: the block, when it ends, ends the thread.
        await trio.to_thread.run_sync(asyncio.run, self._serve(connection))

    def _close(self) -> None:
        self._closed = True
        if self._loop is not None and self._closing is not None:
            self._loop.call_soon_threadsafe(self._closing.set)


@asynccontextmanager
async def open_monitor(connection: socket.socket) -> AsyncGenerator[Monitor]:
    """Talk to a monitor, over *connection*, while the block runs.

    Raises:
      ExceptionGroup: with a `QMPError`, if it does not say hello.
      Whatever the block itself raises, as it is.
    """
    monitor = Monitor()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(monitor._run, connection)
        try:
            await monitor._opened.wait()
            yield monitor
        except Exception as exc:  # noqa: BLE001 (raised below)
            failure = exc
        finally:
            monitor._close()
    if failure is not None:
        raise failure
