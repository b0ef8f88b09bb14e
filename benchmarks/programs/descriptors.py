"""Reading and writing all of a buffer, in the thread that asks for it."""

from __future__ import annotations

import os


def read_into(fd: int, buffer: memoryview) -> int:
    """Fill *buffer* as far as there is data. Returns how far."""
    got = 0
    while got < len(buffer):
        count = os.readv(fd, [buffer[got:]])
        if not count:
            break
        got += count
    return got


def write_all(fd: int, data: memoryview) -> None:
    """Write all of *data*."""
    while data:
        data = data[os.write(fd, data) :]
