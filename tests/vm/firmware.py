"""What a guest runs: nothing, or as much as it can."""

from __future__ import annotations

from typing import Final

_SIZE: Final = 1 << 16
_ENTRY: Final = _SIZE - 16
"""Where a processor begins, at F000:FFF0."""

HALT: Final = bytes([0xF4]) * _SIZE
"""Firmware that leaves the processor to others."""

# Dirties each page between 1 and 48 MiB, for ever, in protected mode.
_DIRTY: Final = bytes.fromhex(
    "fa"  # cli
    "2e660f01166000"  # lgdt cs:[0x60]
    "0f20c06683c8010f22c0"  # cr0 |= 1
    "66ea1a000f000800"  # jmp 8:0xf001a
    "66b810008ed88ec0"  # ds = es = 0x10
    "b901000000"  # ecx = 1
    "bf00001000"  # outer: edi = 1 MiB
    "890f"  # page: [edi] = ecx
    "81c700100000"  # edi += 4096
    "81ff00000003"  # until it is 48 MiB
    "72f0"
    "41"  # ecx += 1
    "890d00000900"  # [0x90000] = ecx
    "ebe2"  # outer
)
_SEGMENTS: Final = bytes.fromhex(
    "0000000000000000"
    "ffff0000009acf00"  # 8: code
    "ffff00000092cf00"  # 0x10: data
)
_TABLE: Final = bytes.fromhex("1700 48000f00")
"""Its size and where it is, for lgdt."""

BUSY: Final = (
    (_DIRTY.ljust(0x48, b"\0") + _SEGMENTS + _TABLE).ljust(_ENTRY, b"\0")
    + bytes.fromhex("ea000000f0")  # jmp F000:0
).ljust(_SIZE, b"\0")
"""Firmware that dirties 47 MiB of memory as fast as it can."""
