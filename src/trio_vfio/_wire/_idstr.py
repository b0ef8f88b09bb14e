"""The names that QEMU gives to the things it migrates."""

from __future__ import annotations

from .._errors import PeerProtocolError
from ._limits import MAX_IDSTR


def idstr_untrusted(raw: bytes) -> str:
    """Return *raw* as an idstr.

    Printable ASCII only: an idstr ends up in messages and in file names.

    Raises:
      PeerProtocolError: if it is empty or holds anything else.
    """
    if not raw or not all(0x20 <= byte <= 0x7E for byte in raw):
        raise PeerProtocolError(f"not a printable idstr: {bytes(raw[:64])!r}")
    return str(raw, "ascii")


def is_idstr(text: str) -> bool:
    """Whether *text* can be an idstr: 1 to 255 printable ASCII characters."""
    return 0 < len(text) <= MAX_IDSTR and text.isascii() and text.isprintable()


def is_vfio(idstr: str) -> bool:
    """Whether *idstr* is a VFIO device's: ``<device path>/vfio``, or plain ``vfio``."""
    return idstr == "vfio" or idstr.endswith("/vfio")
