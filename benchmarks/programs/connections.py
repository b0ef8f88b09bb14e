"""Connections over plain sockets, for programs that have no library for them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

from .arguments import Send
from .packet import ProtocolError, pack_initial

HOST: Final = "127.0.0.1"

SETTLE: Final = 0.1
"""Seconds before SWITCHOVER_START, as in C: the destination takes its connections."""


class Connections(NamedTuple):
    """All that a source has opened."""

    main: socket.socket
    channels: Sequence[socket.socket]

    def finish(self, after: bytes) -> None:
        """Send the rest of the main channel; wait until the destination has closed it.

        Raises:
          ProtocolError: if it says something instead.
        """
        self.main.sendall(after)
        for channel in self.channels:
            channel.close()
        self.main.shutdown(socket.SHUT_WR)
        if self.main.recv(1):
            raise ProtocolError("the destination answers")


def open_connections(job: Send) -> Connections:
    """Open the main channel and then the others, and say what each is."""
    main = _connect(job.port)
    channels = [_connect(job.port) for _ in range(job.channels)]
    for number, channel in enumerate(channels):
        channel.sendall(pack_initial(number))
    main.sendall(job.before)
    return Connections(main, channels)


def no_delay(connection: socket.socket) -> None:
    """Let small pieces go at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection((HOST, port))
    no_delay(connection)
    return connection
