"""Devices of the kernel, as far as a host without any can show them."""

from __future__ import annotations

import errno
import os

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_vfio import VfioSink, VfioSource, run_devices

DEVICES = (VfioSink, VfioSource)
Either = type[VfioSink] | type[VfioSource]


@pytest.mark.parametrize("kind", DEVICES)
async def test_no_such_device(kind: Either) -> None:
    with pytest.raises(OSError, match="there is no such device") as caught:
        await kind("ffff:ff:1f.7").begin()
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("kind", DEVICES)
async def test_no_name_of_a_device(kind: Either) -> None:
    with pytest.raises(ValueError, match="'eth0' is no PCI address"):
        await kind("eth0").begin()


@pytest.mark.parametrize("kind", DEVICES)
async def test_a_descriptor_of_something_else(kind: Either) -> None:
    fd = os.open(os.devnull, os.O_RDWR)
    try:
        with pytest.raises(OSError, match="^.Errno 25. VFIO_DEVICE_GET_INFO: "):
            await kind(fd).begin()
        # It is not ours to close.
        os.fstat(fd)
    finally:
        os.close(fd)


@attrs.define(eq=False)
class Starting:
    """A device that says when it works, and takes its time for the first step."""

    name: str
    said: list[str]
    seconds: float = 0
    refuses: bool = False

    async def run_p2p(self) -> None:
        await trio.sleep(self.seconds)
        if self.refuses:
            raise OSError(errno.EIO, "no")
        self.said.append(f"{self.name} p2p")

    async def run(self) -> None:
        await trio.lowlevel.checkpoint()
        self.said.append(f"{self.name} runs")


async def test_none_runs_before_all_answer(autojump_clock: MockClock) -> None:
    said: list[str] = []
    await run_devices([Starting("a", said), Starting("b", said, 1)])
    assert said[:2] == ["a p2p", "b p2p"]
    assert sorted(said[2:]) == ["a runs", "b runs"]


async def test_none_runs_if_one_does_not_answer(autojump_clock: MockClock) -> None:
    said: list[str] = []
    refusing = Starting("b", said, 1, refuses=True)
    with pytest.RaisesGroup(OSError):
        await run_devices([Starting("a", said), refusing])
    assert said == ["a p2p"]


async def test_a_cancel_before_all_answer(autojump_clock: MockClock) -> None:
    """Invariant: none runs."""
    said: list[str] = []
    with trio.move_on_after(1):
        await run_devices([Starting("a", said), Starting("b", said, 2)])
    assert said == ["a p2p"]


async def test_a_device_that_is_not_open() -> None:
    device = VfioSink("0000:01:00.1")
    assert device.precopy is None
    assert device.config is None
    with pytest.raises(OSError, match="not open"):
        device.fileno()
    with pytest.raises(OSError, match="not open"):
        await device.run()
    with pytest.RaisesGroup(OSError):
        await run_devices([device])
    await device.aclose()
    await device.abort()
