"""asyncio as it comes: buffered protocols, devices in threads of an executor."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, cast, final

from . import packet
from .arguments import Receive, Send, main
from .buffers import Pool
from .connections import HOST, SETTLE, Connections, open_connections
from .descriptors import read_into, write_all
from .usage import Usage, announce

_RUN: Final = 16
"""How many buffers are written by one call of a thread, at most."""


# --- Destination


class _Waiting(NamedTuple):
    header: packet.Header
    buffer: memoryview

    @property
    def data(self) -> memoryview:
        return self.buffer[: self.header.size]


@final
class _Device:
    """Puts the packets of one device in order and has them written, in runs."""

    def __init__(self, fd: int, job: Receive, pool: Pool) -> None:
        self._fd = fd
        self._config = job.config
        self._pool = pool
        self._window = packet.window(job.packet)
        self._due_came = asyncio.Event()
        self._waiting: dict[int, _Waiting] = {}
        self._held: list[_Connection] = []
        self._due = 0
        self.written = 0

    def admits(self, idx: int) -> bool:
        return idx < self._due + self._window

    def hold(self, connection: _Connection) -> None:
        """Let *connection* go on as soon as its packet is admitted."""
        self._held.append(connection)

    def deliver(self, header: packet.Header, buffer: memoryview) -> None:
        self._waiting[header.idx] = _Waiting(header, buffer)
        if header.idx == self._due:
            self._due_came.set()

    async def write(self, executor: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        is_config = False
        while not is_config:
            while self._due not in self._waiting:
                self._due_came.clear()
                await self._due_came.wait()
            run = list(self._take_run())
            for connection in [each for each in self._held if each.is_admitted()]:
                self._held.remove(connection)
                connection.go_on()
            data = [each.data for each in run if not each.header.is_config]
            await loop.run_in_executor(executor, self._write_all, data)
            is_config = run[-1].header.is_config
            if is_config and bytes(run[-1].data) != self._config:
                raise packet.ProtocolError("another config than was sent")
            for each in run:
                self._pool.give_back(each.buffer)

    def _take_run(self) -> Iterator[_Waiting]:
        for _ in range(_RUN):
            if self._due not in self._waiting:
                return
            yield self._waiting.pop(self._due)
            self._due += 1

    def _write_all(self, run: Sequence[memoryview]) -> None:
        for data in run:
            write_all(self._fd, data)
            self.written += len(data)


@final
class _Connection(asyncio.BufferedProtocol):
    """A main channel or another: its first bytes tell.

    It says what is to be filled next, and what is to be done when that is full.
    """

    def __init__(self, destination: _Destination) -> None:
        self._destination = destination
        self._transport: asyncio.Transport | None = None
        self._raw = memoryview(bytearray(packet.HEADER_SIZE))
        self._magic = memoryview(bytearray(4))
        self._header = packet.Header(b"", 0, 0, is_config=False)
        self._buffer = self._raw
        self._rest = self._magic
        self._when_full = self._begin
        self.ended = asyncio.Event()
        self.is_main = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._destination.came(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._rest

    def buffer_updated(self, nbytes: int) -> None:
        self._rest = self._rest[nbytes:]
        if not self._rest:
            self._when_full()

    def eof_received(self) -> bool:
        self.ended.set()
        return True  # closed when everything is written

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def _begin(self) -> None:
        if bytes(self._magic) == packet.MAIN_MAGIC:
            self.is_main = True
            before = self._destination.job.switchover_at - 4
            self._rest = memoryview(bytearray(before + len(packet.SWITCHOVER_START)))
            self._buffer = self._rest
            self._when_full = self._switch_over
        else:
            self._rest = self._raw[: packet.INITIAL_SIZE - 4]
            self._when_full = self._next

    def _switch_over(self) -> None:
        if not bytes(self._buffer).endswith(packet.SWITCHOVER_START):
            raise packet.ProtocolError("no SWITCHOVER_START")
        self._destination.switch_over()
        self._when_full = self._drop
        self._drop()

    def _drop(self) -> None:
        self._rest = self._raw

    def _next(self) -> None:
        self._rest = self._raw
        self._when_full = self._parse

    def _parse(self) -> None:
        self._header = packet.parse(self._raw, self._destination.job.packet)
        if self.is_admitted():
            self._receive_data()
        else:
            assert self._transport is not None
            self._transport.pause_reading()
            self._device.hold(self)

    @property
    def _device(self) -> _Device:
        return self._destination.devices[self._header.idstr]

    def is_admitted(self) -> bool:
        return self._device.admits(self._header.idx)

    def go_on(self) -> None:
        assert self._transport is not None
        self._receive_data()
        self._transport.resume_reading()

    def _receive_data(self) -> None:
        self._buffer = self._destination.pool.take()
        self._rest = self._buffer[: self._header.size]
        self._when_full = self._deliver

    def _deliver(self) -> None:
        self._device.deliver(self._header, self._buffer)
        self._next()


@final
class _Destination:
    def __init__(self, job: Receive) -> None:
        self.job = job
        self.pool = Pool(job.packet)
        self.devices = {
            packet.padded_idstr(number): _Device(fd, job, self.pool)
            for number, fd in enumerate(job.fds)
        }
        self._connections: list[_Connection] = []
        self._all_came = asyncio.Event()
        self._switched_over = asyncio.Event()
        self.began = 0.0

    def came(self, connection: _Connection) -> None:
        self._connections.append(connection)
        if len(self._connections) > self.job.channels:
            self._all_came.set()

    def switch_over(self) -> None:
        self.began = time.monotonic()
        self._switched_over.set()

    async def run(self) -> None:
        await self._switched_over.wait()
        with ThreadPoolExecutor(len(self.devices)) as executor:
            async with asyncio.TaskGroup() as group:
                for device in self.devices.values():
                    group.create_task(device.write(executor))
        await self._all_came.wait()
        for connection in self._connections:
            await connection.ended.wait()
        for connection in self._connections:
            connection.close()


async def _receive(job: Receive) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_die)
    destination = _Destination(job)
    server = await loop.create_server(lambda: _Connection(destination), HOST, 0)
    async with server:
        announce(server.sockets[0].getsockname()[1])
        usage = Usage()
        await destination.run()
        seconds = time.monotonic() - destination.began
    moved = sum(device.written for device in destination.devices.values())
    usage.finish(moved=moved, seconds=seconds)


# --- Source


class _Packet(NamedTuple):
    header: packet.Header
    data: memoryview
    buffer: memoryview | None


@final
class _Source:
    def __init__(self, job: Send) -> None:
        self._job = job
        self._unused = asyncio.Queue[memoryview]()
        self._queued = asyncio.Queue[_Packet | None]()
        self._moved = 0
        pool = Pool(job.packet)
        for _ in range(2 * job.channels + len(job.fds)):
            self._unused.put_nowait(pool.take())

    async def run(self, connections: Connections) -> int:
        """Send all state. Returns how much it was."""
        with ThreadPoolExecutor(len(self._job.fds)) as executor:
            async with asyncio.TaskGroup() as senders:
                for channel in connections.channels:
                    senders.create_task(self._send(channel))
                async with asyncio.TaskGroup() as readers:
                    for device, fd in enumerate(self._job.fds):
                        readers.create_task(self._read(executor, device, fd))
                for _ in connections.channels:
                    self._queued.put_nowait(None)
        return self._moved

    async def _read(self, executor: ThreadPoolExecutor, device: int, fd: int) -> None:
        loop = asyncio.get_running_loop()
        name = packet.padded_idstr(device)
        idx = 0
        buffer = await self._unused.get()
        while size := await loop.run_in_executor(executor, read_into, fd, buffer):
            header = packet.Header(name, idx, size, is_config=False)
            self._queued.put_nowait(_Packet(header, buffer[:size], buffer))
            self._moved += size
            idx += 1
            buffer = await self._unused.get()
        self._unused.put_nowait(buffer)
        config = memoryview(self._job.config)
        header = packet.Header(name, idx, len(config), is_config=True)
        self._queued.put_nowait(_Packet(header, config, None))

    async def _send(self, channel: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while (each := await self._queued.get()) is not None:
            await loop.sock_sendall(channel, packet.pack(each.header))
            await loop.sock_sendall(channel, each.data)
            if each.buffer is not None:
                self._unused.put_nowait(each.buffer)


async def _send(job: Send) -> None:
    source = _Source(job)
    usage = Usage()
    connections = open_connections(job)
    for channel in connections.channels:
        channel.settimeout(0)
    await asyncio.sleep(SETTLE)
    began = time.monotonic()
    connections.main.sendall(packet.SWITCHOVER_START)
    moved = await source.run(connections)
    connections.finish(job.after)
    usage.finish(moved=moved, seconds=time.monotonic() - began)


def _die(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """End the program: what a protocol raises would only be logged."""
    loop.default_exception_handler(context)
    os._exit(1)


if __name__ == "__main__":
    main(lambda job: asyncio.run(_receive(job)), lambda job: asyncio.run(_send(job)))
