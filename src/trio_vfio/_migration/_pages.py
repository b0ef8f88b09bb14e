"""Memory that data passes through."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Final

# Pages of their own: a kernel copies to and from them faster, 10 % more goes over
# loopback; and they go back to the system when they are dropped, while of what the C
# library lends for smaller buffers much stays with the process.
_PAGE: Final = mmap.PAGESIZE


def new_buffer(size: int) -> memoryview:
    """Return *size* bytes of memory."""
    if size >= _PAGE:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        # A process may have only so many mappings.
        with suppress(OSError):
            return memoryview(mmap.mmap(-1, size, flags=flags))
    return memoryview(bytearray(size))
