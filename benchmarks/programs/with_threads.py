"""Plain threads in Python, without Trio: the same shape as the reference in C."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import final

import attrs

from . import packet
from .arguments import Receive, Send, main
from .buffers import Pool
from .connections import HOST, SETTLE, no_delay, open_connections
from .descriptors import read_into, write_all
from .usage import Usage, announce

# --- Destination


@final
class _Device:
    """Puts the packets of one device in order and writes them."""

    def __init__(self, fd: int, job: Receive, pool: Pool) -> None:
        self._fd = fd
        self._config = job.config
        self._pool = pool
        self._window = packet.window(job.packet)
        self._lock = threading.Lock()
        self._due_came = threading.Condition(self._lock)
        self._moved = threading.Condition(self._lock)
        self._waiting: dict[int, tuple[memoryview, int, bool]] = {}
        self._due = 0
        self.written = 0

    def deliver(self, header: packet.Header, buffer: memoryview) -> None:
        with self._lock:
            while header.idx >= self._due + self._window:
                self._moved.wait()
            self._waiting[header.idx] = buffer, header.size, header.is_config
            if header.idx == self._due:
                self._due_came.notify()

    def write(self) -> None:
        is_config = False
        while not is_config:
            buffer, size, is_config = self._take()
            if is_config:
                if bytes(buffer[:size]) != self._config:
                    raise packet.ProtocolError("another config than was sent")
            else:
                write_all(self._fd, buffer[:size])
                self.written += size
            self._pool.give_back(buffer)

    def _take(self) -> tuple[memoryview, int, bool]:
        with self._lock:
            while self._due not in self._waiting:
                self._due_came.wait()
            taken = self._waiting.pop(self._due)
            self._due += 1
            self._moved.notify_all()
            return taken


@final
class _Destination:
    def __init__(self, job: Receive) -> None:
        self._job = job
        self._pool = Pool(job.packet)
        self._devices = {
            packet.padded_idstr(number): _Device(fd, job, self._pool)
            for number, fd in enumerate(job.fds)
        }
        self._writers: list[threading.Thread] = []
        self.began = 0.0

    @property
    def written(self) -> int:
        return sum(device.written for device in self._devices.values())

    def run(self, listener: socket.socket) -> None:
        connections = [_accept(listener) for _ in range(self._job.channels + 1)]
        _join([_start(self._receive, each) for each in connections])
        _join(self._writers)
        for each in connections:
            each.close()

    def _receive(self, connection: socket.socket) -> None:
        magic = _exactly(connection, 4)
        if magic == packet.MAIN_MAGIC:
            self._receive_main(connection)
        else:
            _exactly(connection, packet.INITIAL_SIZE - 4)
            self._receive_channel(connection)

    def _receive_main(self, connection: socket.socket) -> None:
        _exactly(connection, self._job.switchover_at - 4)
        command = _exactly(connection, len(packet.SWITCHOVER_START))
        if command != packet.SWITCHOVER_START:
            raise packet.ProtocolError("no SWITCHOVER_START")
        self.began = time.monotonic()
        self._writers = [_start(each.write) for each in self._devices.values()]
        while connection.recv(1 << 16):
            pass

    def _receive_channel(self, connection: socket.socket) -> None:
        raw = memoryview(bytearray(packet.HEADER_SIZE))
        got = connection.recv_into(raw)
        while got:
            _fill(connection, [raw[got:]])
            header = packet.parse(raw, self._job.packet)
            device = self._devices[header.idstr]
            buffer = self._pool.take()
            # The rest of this packet and what there is of the next header, at once.
            extra = _fill(connection, [buffer[: header.size], raw])
            device.deliver(header, buffer)
            got = extra or connection.recv_into(raw)


def _receive(job: Receive) -> None:
    destination = _Destination(job)
    with socket.create_server((HOST, 0)) as listener:
        announce(listener.getsockname()[1])
        usage = Usage()
        destination.run(listener)
    seconds = time.monotonic() - destination.began
    usage.finish(moved=destination.written, seconds=seconds)


def _fill(connection: socket.socket, buffers: Sequence[memoryview]) -> int:
    """Fill the first of *buffers*. Returns how much there is in the one behind it."""
    first, *rest = buffers
    while first:
        count, *_ = connection.recvmsg_into([first, *rest])
        if not count:
            raise packet.ProtocolError("a channel ended in a packet")
        if count > len(first):
            return count - len(first)
        first = first[count:]
    return 0


def _exactly(connection: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    if connection.recv_into(buffer, size, socket.MSG_WAITALL) != size:
        raise packet.ProtocolError("a connection ended early")
    return bytes(buffer)


def _accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    no_delay(connection)
    return connection


# --- Source


@attrs.frozen
class _Packet:
    header: packet.Header
    data: memoryview
    buffer: memoryview | None


@final
class _Source:
    def __init__(self, job: Send) -> None:
        self._job = job
        self._unused = queue.SimpleQueue[memoryview]()
        self._queued = queue.SimpleQueue[_Packet | None]()
        self._moved = [0] * len(job.fds)
        pool = Pool(job.packet)
        for _ in range(2 * job.channels + len(job.fds)):
            self._unused.put(pool.take())

    @property
    def moved(self) -> int:
        return sum(self._moved)

    def run(self, channels: Sequence[socket.socket]) -> None:
        readers = [_start(self._read, *each) for each in enumerate(self._job.fds)]
        senders = [_start(self._send, each) for each in channels]
        _join(readers)
        for _ in senders:
            self._queued.put(None)
        _join(senders)

    def _read(self, device: int, fd: int) -> None:
        name = packet.padded_idstr(device)
        idx = 0
        while True:
            buffer = self._unused.get()
            size = read_into(fd, buffer)
            if not size:
                break
            header = packet.Header(name, idx, size, is_config=False)
            self._queued.put(_Packet(header, buffer[:size], buffer))
            self._moved[device] += size
            idx += 1
        self._unused.put(buffer)
        config = self._job.config
        header = packet.Header(name, idx, len(config), is_config=True)
        self._queued.put(_Packet(header, memoryview(config), None))

    def _send(self, channel: socket.socket) -> None:
        while (each := self._queued.get()) is not None:
            header = packet.pack(each.header)
            sent = channel.sendmsg([header, each.data])
            while sent < len(header):
                sent += channel.send(header[sent:])
            channel.sendall(each.data[sent - len(header) :])
            if each.buffer is not None:
                self._unused.put(each.buffer)


def _send(job: Send) -> None:
    source = _Source(job)
    usage = Usage()
    connections = open_connections(job)
    time.sleep(SETTLE)
    began = time.monotonic()
    connections.main.sendall(packet.SWITCHOVER_START)
    source.run(connections.channels)
    connections.finish(job.after)
    usage.finish(moved=source.moved, seconds=time.monotonic() - began)


# --- Threads, of which one that fails ends the program.


def _start(function: Callable[..., None], *arguments: object) -> threading.Thread:
    def run() -> None:
        try:
            function(*arguments)
        # Whatever it is, the others would wait for this thread for ever.
        except Exception:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(_receive, _send)
