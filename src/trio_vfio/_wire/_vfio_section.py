"""The payload of a VFIO section: marks, and what belongs to them.

QEMU: ``vfio_save_*`` and ``vfio_load_state`` in hw/vfio/migration.c.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, assert_never

from .._errors import PeerProtocolError
from ._limits import DATA_PIECE, MAX_CONFIG
from ._main_events import DeviceConfig, DeviceData, InitDataSent, Section, SectionType
from ._parsing import Parser, Until, be64, refuse

VFIO_VERSION: Final = 1


class Mark(enum.IntEnum):
    """What follows in a VFIO section (``VFIO_MIG_FLAG_*``)."""

    END_OF_STATE = 0xFFFFFFFF_EF100001
    DEV_CONFIG_STATE = 0xFFFFFFFF_EF100002
    DEV_SETUP_STATE = 0xFFFFFFFF_EF100003
    DEV_DATA_STATE = 0xFFFFFFFF_EF100004
    DEV_INIT_DATA_SENT = 0xFFFFFFFF_EF100005
    DEV_CONFIG_LOAD_READY = 0xFFFFFFFF_EF100006

    def encode(self) -> bytes:
        """Return the mark as it travels."""
        return struct.pack("!Q", self)


_END: Final = Mark.END_OF_STATE.encode()
_CONFIG: Final = Mark.DEV_CONFIG_STATE.encode()

# Which marks may stand where. QEMU's loader takes any anywhere, but no source
# sends them so.
_ALLOWED: Final = {
    SectionType.START: {Mark.DEV_SETUP_STATE},
    SectionType.PART: {Mark.DEV_DATA_STATE, Mark.DEV_INIT_DATA_SENT},
    SectionType.END: {Mark.DEV_DATA_STATE},
    SectionType.FULL: {Mark.DEV_CONFIG_STATE, Mark.DEV_CONFIG_LOAD_READY},
}


def footer(section_id: int) -> bytes:
    """Return the 5 bytes that end a section."""
    return struct.pack("!BI", SectionType.FOOTER, section_id)


def vfio_payload(section: Section) -> Parser[None]:
    """Parse the payload of *section* up to its footer.

    Raises:
      PeerProtocolError: if it holds what VFIO does not send there.
    """
    while True:
        mark = yield from _mark(section)
        match mark:
            case Mark.END_OF_STATE | Mark.DEV_CONFIG_LOAD_READY:
                return
            case Mark.DEV_INIT_DATA_SENT:
                yield InitDataSent(section)
                return
            case Mark.DEV_SETUP_STATE:
                if (yield from be64()) != Mark.END_OF_STATE:
                    raise refuse(f"{section.idstr}: setup mark without its end mark")
                return
            case Mark.DEV_DATA_STATE:
                yield from _data(section)
            case Mark.DEV_CONFIG_STATE:
                yield from _config(section)
                return
            case _:
                assert_never(mark)


def config_blob_untrusted(data: bytes | memoryview, idstr: str) -> bytes:
    """Return the config blob that a config packet holds between its marks.

    Raises:
      PeerProtocolError: if the marks are not there.
    """
    raw = bytes(data)
    if not raw.startswith(_CONFIG) or not raw[len(_CONFIG) :].endswith(_END):
        raise PeerProtocolError(f"config of {idstr} without its marks")
    return raw[len(_CONFIG) : -len(_END)]


def encode_config(blob: bytes) -> bytes:
    """Put *blob* between its marks, as both kinds of transfer carry it."""
    return _CONFIG + blob + _END


def _mark(section: Section) -> Parser[Mark]:
    value = yield from be64()
    try:
        mark = Mark(value)
    except ValueError:
        raise refuse(f"{section.idstr}: unknown mark {value:#018x}") from None
    if mark != Mark.END_OF_STATE and mark not in _ALLOWED[section.type]:
        kind = section.type.name
        raise refuse(f"{section.idstr}: {mark.name} in a {kind} section")
    return mark


def _data(section: Section) -> Parser[None]:
    left = yield from be64()
    begins_block = True
    while left or begins_block:
        piece = min(left, DATA_PIECE)
        data = (yield piece) if piece else b""
        yield DeviceData(section, data, begins_block)
        left -= piece
        begins_block = False


def _config(section: Section) -> Parser[None]:
    # The blob has no length. The end mark with the footer behind it is 13
    # bytes that no register image holds by chance.
    blob = yield Until(_END + footer(section.section_id), MAX_CONFIG)
    yield from be64()
    yield DeviceConfig(section, blob)
