"""Pure tests: FULL sections that come in the setup phase, before all RAM."""

from __future__ import annotations

import attrs
import pytest

from trio_vfio._errors import PeerProtocolError
from trio_vfio._wire._main_encode import encode_end
from trio_vfio._wire._main_events import Description, Section

from ..streams import (
    DEVICE,
    DIRTY_BITMAP,
    HEADER,
    RAM,
    SECOND_DEVICE,
    STATE_OF,
    SWITCHOVER,
    TIMER,
    VIRTIO_MEM,
    Handler,
    describe,
    state_of,
)
from .feeding import cut, main_events
from .other_sections import END, FULL, START

EARLY = state_of(VIRTIO_MEM, FULL)
OTHER_EARLY = Handler(8, "0000:00:08.0/virtio-mem-device-early").encode(
    FULL, STATE_OF[VIRTIO_MEM, FULL]
)


@pytest.mark.parametrize(
    ("before", "wrong", "words"),
    [
        (EARLY, EARLY, "section id 6 of"),
        (EARLY, attrs.evolve(VIRTIO_MEM, section_id=7).full(b""), "announced twice"),
        (EARLY, attrs.evolve(DEVICE, section_id=6).start(), "section id 6 of"),
        (DEVICE.start(), attrs.evolve(VIRTIO_MEM, section_id=42).full(b""), "id 42"),
        (EARLY, VIRTIO_MEM.part(b""), "never started"),
        (b"", VIRTIO_MEM.encode(START, b""), "cannot parse the iterable section"),
        (b"", DIRTY_BITMAP.full(b""), "cannot parse the early section"),
        (b"", Handler(6, "xvirtio-mem-device-early").full(b""), "the early section"),
        (b"", DEVICE.full(), "FULL of 0000:00:04.0/vfio, which never started"),
    ],
)
def test_early_sections_that_are_refused(
    before: bytes, wrong: bytes, words: str
) -> None:
    with pytest.raises(PeerProtocolError) as caught:
        main_events([HEADER + before + wrong])
    assert words in caught.value.reason
    assert caught.value.offset == len(HEADER + before)


def test_early_sections_without_end() -> None:
    """Of each, something is kept, so there is a limit."""
    payload = STATE_OF[VIRTIO_MEM, FULL]
    sections = [
        Handler(n, f"{n}/virtio-mem-device-early").encode(FULL, payload)
        for n in range(257)
    ]
    stream = HEADER + b"".join(sections)
    with pytest.raises(PeerProtocolError, match="one more than 256") as caught:
        main_events([stream])
    assert caught.value.offset == len(stream) - len(sections[-1])
    # They do not take the place of VFIO devices.
    device = attrs.evolve(DEVICE, section_id=1000)
    main_events([stream[: -len(sections[-1])] + device.start()], end=False)


@pytest.mark.parametrize("described", [True, False])
def test_early_sections_in_the_description(*, described: bool) -> None:
    """It lists them first, and the sections at the end are told apart all the same."""
    devices = ((DEVICE, 8), (TIMER, 3), (SECOND_DEVICE, 8))
    text = describe((VIRTIO_MEM, 44), (VIRTIO_MEM, 44), *devices)
    stream = b"".join(
        [
            HEADER,
            EARLY,
            state_of(RAM, START),
            OTHER_EARLY,
            DEVICE.start(),
            SECOND_DEVICE.start(),
            SWITCHOVER,
            state_of(RAM, END),
            DEVICE.end(),
            SECOND_DEVICE.end(),
            DEVICE.full(),
            TIMER.full(b"abc"),
            SECOND_DEVICE.full(),
            encode_end(text if described else b"{}"),
        ]
    )
    for sizes in ([1 << 30], [1]):
        events = main_events(cut(stream, sizes))
        full = [
            event.idstr.rpartition("/")[2]
            for event in events
            if isinstance(event, Section) and event.type is FULL
        ]
        early = ["virtio-mem-device-early"] * 2
        timer = ["timer"] if described else []
        assert full == [*early, "vfio", *timer, "vfio"]
        assert isinstance(events[-1], Description)
