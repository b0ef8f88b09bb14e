"""Collaboration: a destination that fails early costs a QEMU neither guest nor monitor.

A QEMU whose channels break while it still sends may abort or hang, depending on how its
threads come to run. So each setting is tried again and again, with the same QEMU: it has
to live, its guest to run, and the next migration to begin. The last one succeeds.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
import trio

from trio_vfio import MigrationFailed, NullSink, StateSink, open_incoming
from trio_vfio.testing import SimulatedSink

from ..forms import form
from . import qemu
from .checks import PAD_BUFFERS, PAD_KIB, Mttys, check_received, make_devices
from .firmware import BUSY, HALT
from .qemu import Qemu, Setup, idstr
from .receiving import receive

TIMES: Final = form(short=3, long=30)
"""How often each setting is tried."""
LIMIT: Final = form(short=120, long=1800)
"""Seconds for all of them."""
LATEST: Final = 0.1
"""Seconds until the latest of those that refuse late."""
SLOW: Final = 8 << 20
"""Bytes per second of RAM where that is throttled."""

MakeSinks = Callable[[float], Mapping[str, StateSink]]
"""Makes sinks of which one refuses, after so many seconds if it can choose."""


def refuses_to_begin(_: float) -> Mapping[str, StateSink]:
    return {idstr(): SimulatedSink(fails={"begin": errno.EREMOTEIO})}


class Late:
    """A device that takes its time to refuse."""

    precopy: bool | None = None

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        other = NullSink()
        self.write, self.load_config = other.write, other.load_config
        self.finish, self.abort = other.finish, other.abort

    async def begin(self) -> None:
        await trio.sleep(self.seconds)
        raise OSError(errno.EREMOTEIO, "Remote I/O error")


def refuses_to_begin_late(seconds: float) -> Mapping[str, StateSink]:
    return {idstr(): Late(seconds)}


def refuses_the_first_write(_: float) -> Mapping[str, StateSink]:
    sink = SimulatedSink(fails={"write": errno.EREMOTEIO}, fails_at_byte=0)
    return {idstr(): sink}


def knows_another_device(_: float) -> Mapping[str, StateSink]:
    return {"0000:00:1f.0/vfio": NullSink()}


@pytest.mark.qemu_11
@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("slow", [False, True], ids=["", "slow"])
@pytest.mark.parametrize("guest", [BUSY, HALT], ids=["busy", "halted"])
@pytest.mark.parametrize(
    "make_sinks",
    [
        refuses_to_begin,
        refuses_to_begin_late,
        refuses_the_first_write,
        knows_another_device,
    ],
    ids=lambda make: make.__name__,
)
async def test_a_guest_outlives_it(
    make_sinks: MakeSinks, guest: bytes, slow: bool, mttys: Mttys, tmp_path: Path
) -> None:
    devices = make_devices(mttys, pad_kib=PAD_KIB)
    setup = Setup(channels=4, firmware=guest)
    async with qemu.source(
        devices, tmp_path, setup, runs=True, deadline=LIMIT
    ) as source:
        await source.wait_running()
        if slow:
            await source.throttle(SLOW)
        for number in range(TIMES):
            await fail(source, make_sinks(LATEST * number / TIMES), tmp_path)
        if slow:
            await source.throttle(1 << 30)
        result = await receive(source, tmp_path)
    check_received(result, devices, buffers=PAD_BUFFERS)


async def fail(source: Qemu, sinks: Mapping[str, StateSink], directory: Path) -> None:
    """Let a migration fail, and see whether its source is none the worse for it."""
    with pytest.raises(MigrationFailed) as failed, trio.fail_after(60):
        where = f"unix:{directory / 'socket'}"
        async with open_incoming(where, sinks) as incoming:
            await source.migrate(incoming.addresses[0])
            await incoming.wait_complete()
    assert len(failed.value.exceptions) == 1, list(map(str, failed.value.exceptions))
    with trio.fail_after(20):
        assert await source.wait_status() == "failed"
        await source.wait_running()
