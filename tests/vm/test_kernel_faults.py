"""Devices that refuse, fail, hang or are in use: what is said, and what becomes of them."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_vfio import FileSource, StateSink, StateSource, VfioSink, VfioSource
from trio_vfio.testing import SimulatedSink, SimulatedSource

from . import mtty
from .moving import DEVICE, Moved, move
from .mtty import SCRATCH, Mtty

Create = Callable[..., list[Mtty]]

# The kernel's numbers.
RUNNING: Final = 2
STOP_COPY: Final = 3
RESUMING: Final = 4
PRE_COPY: Final = 6
PRE_COPY_P2P: Final = 7


def saved(path: Path, data: bytes) -> FileSource:
    (path / "state").write_bytes(data)
    return FileSource(path / "state")


async def load(source: StateSource, sink: Mtty) -> Moved:
    """Try to load a device; what holds for each that fails, holds."""
    moved = await move({DEVICE: source}, {DEVICE: VfioSink(sink.uuid)})
    assert not moved.completed
    assert moved.received is not None and moved.sent is not None
    assert moved.received.status == moved.sent.status == "failed"
    assert sink.state() == "RUNNING"
    return moved


def damaged(state: bytes, what: str) -> bytes:
    match what:
        case "truncated":
            return state[:-1]
        case "magic":
            return struct.pack("Q", 0) + state[8:]
        case "too long":
            return state + b"\0"
        case _:
            return b""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("truncated", "finish: EINVAL: VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to STOP:"),
        ("empty", "finish: EINVAL: VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to STOP:"),
        ("magic", "write of buffer 0 at byte 0: EFAULT: Bad address (after 0 of"),
        (
            "too long",
            "write of buffer 0 at byte 0: ENOMEM: Cannot allocate memory (aft",
        ),
    ],
)
async def test_damaged_state(
    mttys: Create, tmp_path: Path, what: str, said: str
) -> None:
    (device,) = mttys()
    device.poke(SCRATCH, 0x11)
    source = saved(tmp_path, damaged(device.saved(), what))
    moved = await load(source, device)
    (fault,) = [each for each in moved.faults if each.startswith(DEVICE)]
    assert fault.startswith(f"{DEVICE}: {said}")
    # A reset leaves this one's registers as they are, and nothing else was loaded.
    assert device.registers()[-1] == 0x11


async def test_state_of_another_kind_of_device(mttys: Create, tmp_path: Path) -> None:
    (two,), (one,) = mttys(ports=2), mttys()
    moved = await load(saved(tmp_path, two.saved()), one)
    (fault,) = [each for each in moved.faults if each.startswith(DEVICE)]
    assert fault.startswith(f"{DEVICE}: write of buffer 0 at byte 0: ENOMEM: ")


@pytest.mark.parametrize("through", ["cdev", "group"])
@pytest.mark.parametrize("kind", [VfioSink, VfioSource])
async def test_a_device_in_use(
    mttys: Create,
    kind: type[VfioSink] | type[VfioSource],
    through: Literal["cdev", "group"],
) -> None:
    (device,) = mttys()
    call = {
        "cdev": "VFIO_DEVICE_BIND_IOMMUFD: Invalid argument",
        "group": f"open of {device.group}: Device or resource busy",
    }
    with device.opened():
        with pytest.raises(OSError, match=re.escape(call[through])) as caught:
            await kind(device.uuid, through=through).begin()
        assert "in use, here or by another process" in str(caught.value)
    assert device.state() == "RUNNING"


async def test_config_of_another_device(mttys: Create, tmp_path: Path) -> None:
    (device,) = mttys()
    source = saved(tmp_path, device.saved())
    blob = bytearray(await config_of(device))
    blob[4:6] = b"\xb3\x15"
    (tmp_path / "state.config").write_bytes(blob)
    moved = await load(source, device)
    (fault,) = [each for each in moved.faults if each.startswith(DEVICE)]
    assert fault == (
        f"{DEVICE}: load_config: EINVAL: the source's device is another one:"
        " Vendor ID (0x00) is 0x15b3 at the source and 0x4348 here"
    )


async def config_of(device: Mtty) -> bytes:
    source = VfioSource(device.uuid)
    await source.open()
    blob = await source.config()
    await source.abort()
    return blob


async def test_a_difference_that_the_caller_allows(
    mttys: Create, tmp_path: Path
) -> None:
    (device,) = mttys()
    source = saved(tmp_path, device.saved())
    blob = bytearray(await config_of(device))
    blob[4:6] = b"\xb3\x15"
    (tmp_path / "state.config").write_bytes(blob)
    async with VfioSink(device.uuid, check_config=False) as sink:
        moved = await move({DEVICE: source}, {DEVICE: sink})
        assert moved.completed
        assert sink.config is not None
        assert sink.config.vendor_id == 0x15B3


async def test_no_config_at_all(mttys: Create, tmp_path: Path) -> None:
    """A source may know of none, and a bus without one has none."""
    (device,) = mttys()
    async with VfioSink(device.uuid) as sink:
        moved = await move({DEVICE: saved(tmp_path, device.saved())}, {DEVICE: sink})
        assert moved.completed
        assert sink.config is None


# --- A step that fails


@pytest.mark.parametrize(
    ("state", "operation", "was", "now"),
    [
        (PRE_COPY, "begin", "PRE_COPY", "RUNNING"),
        (PRE_COPY_P2P, "stop_p2p", "PRE_COPY_P2P", "PRE_COPY"),
        (STOP_COPY, "stop", "STOP_COPY", "PRE_COPY_P2P"),
    ],
)
async def test_a_source_that_does_not_get_there(
    mttys: Create, state: int, operation: str, was: str, now: str
) -> None:
    """Invariant: it runs again, with the state it had."""
    (device,) = mttys()
    device.poke(SCRATCH, 0x77)
    fail(state)
    moved = await move({DEVICE: VfioSource(device.uuid)}, {DEVICE: SimulatedSink()})
    assert moved.sent is not None and moved.sent.status == "failed"
    call = f"VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to {was}: Input/output error"
    text = f"{DEVICE}: {operation}: EIO: {call}; the device is in {now}"
    assert text in moved.sent.errors
    assert device.state() == "RUNNING"
    assert device.registers()[-1] == 0x77


async def test_a_walk_that_ends_half_way(mttys: Create) -> None:
    """Without pre-copy a source has several steps to STOP_COPY."""
    (device,) = mttys()
    fail(STOP_COPY)
    source = VfioSource(device.uuid, precopy=False)
    moved = await move({DEVICE: source}, {DEVICE: SimulatedSink()})
    assert moved.sent is not None
    assert any(
        each.endswith("to STOP_COPY: Input/output error; the device is in STOP")
        for each in moved.sent.errors
    )
    assert device.state() == "RUNNING"


async def test_a_sink_that_does_not_get_ready(mttys: Create) -> None:
    """Invariant: it runs, and is closed."""
    (device,) = mttys()
    fail(RESUMING)
    with pytest.raises(OSError, match=r"to RESUMING: .*; the device is in STOP$"):
        await VfioSink(device.uuid).begin()
    mtty.clear_parameters()
    assert device.state() == "RUNNING"


async def test_a_source_that_must_be_reset(mttys: Create) -> None:
    """Invariant: it runs, and whoever has lost its state hears of that."""
    (device,) = mttys()
    source = VfioSource(device.uuid)
    await source.begin()
    # On the way back to RUNNING, from PRE_COPY.
    fail(RUNNING)
    with pytest.raises(OSError, match="the device was reset, and has lost its state"):
        await source.abort()
    mtty.clear_parameters()
    assert device.state() == "RUNNING"


async def test_a_source_that_breaks(mttys: Create) -> None:
    """Only a reset helps: it runs, without its state, and that is said."""
    (device,) = mttys()
    mtty.parameter("fail_breaks", 1)
    fail(STOP_COPY)
    moved = await move({DEVICE: VfioSource(device.uuid)}, {DEVICE: SimulatedSink()})
    assert moved.sent is not None
    stop, abort = (each for each in moved.sent.errors if each.startswith(DEVICE))
    assert stop.startswith(f"{DEVICE}: stop: EIO: ")
    assert stop.endswith("; the device is in ERROR")
    assert abort.startswith(f"{DEVICE}: abort: EINVAL: no way from ERROR to RUNNING")
    assert abort.endswith("the device was reset, and has lost its state")
    assert device.state() == "RUNNING"


async def test_a_device_that_was_left_broken(mttys: Create, tmp_path: Path) -> None:
    """It can take a state, and has none to give."""
    (device,) = mttys()
    source = saved(tmp_path, device.saved())
    mtty.parameter("fail_breaks", 1)
    fail(STOP_COPY)
    with pytest.raises(OSError):
        device.leave_in("STOP_COPY")
    mtty.clear_parameters()
    assert device.state() == "ERROR"
    with pytest.raises(OSError, match="in ERROR: it has failed; only a reset"):
        await VfioSource(device.uuid).begin()
    async with VfioSink(device.uuid) as sink:
        moved = await move({DEVICE: source}, {DEVICE: sink})
        assert moved.completed
        await sink.run()
    assert device.state() == "RUNNING"


@pytest.mark.parametrize("kind", [VfioSink, VfioSource])
async def test_a_device_that_is_lost(
    mttys: Create, kind: type[VfioSink] | type[VfioSource]
) -> None:
    (found,) = mttys()
    device = kind(found.uuid)
    await device.begin()
    mtty.parameter("fail_reset", errno.EIO)
    fail(RUNNING)
    state = "RESUMING" if kind is VfioSink else "PRE_COPY"
    with pytest.raises(
        OSError,
        match="VFIO_DEVICE_RESET: Input/output error; the device is in"
        f" {state} and lost",
    ):
        await device.abort()
    mtty.clear_parameters()
    # It was closed all the same.
    assert found.state() == state


async def test_the_name_of_a_lost_device_is_in_the_result(
    mttys: Create, tmp_path: Path
) -> None:
    (device,) = mttys()
    source = saved(tmp_path, device.saved()[:-1])
    mtty.parameter("fail_reset", errno.EIO)
    moved = await move({DEVICE: source}, {DEVICE: VfioSink(device.uuid)})
    assert moved.received is not None
    assert [
        each.partition(": ")[2].split(":")[0] for each in moved.received.errors
    ] == [
        "finish",
        "abort",
    ]
    assert moved.received.errors[1].endswith("the device is in RESUMING and lost")


# --- Left by somebody who died


@pytest.mark.parametrize("state", ["STOP_COPY", "PRE_COPY", "RUNNING_P2P", "STOP"])
async def test_a_source_that_was_left_half_saved(mttys: Create, state: str) -> None:
    """It is saved as a whole, and what stood still stands still."""
    a, b = mttys(count=2)
    a.poke(SCRATCH, 0x31)
    a.leave_in(state)
    async with VfioSink(b.uuid) as sink:
        moved = await move({DEVICE: VfioSource(a.uuid)}, {DEVICE: sink})
        assert moved.completed
        await sink.run()
    assert b.registers()[-1] == 0x31


async def test_a_source_that_has_no_state(mttys: Create) -> None:
    (device,) = mttys()
    device.leave_in("RESUMING")
    with pytest.raises(OSError, match="left it with a part of a state") as caught:
        await VfioSource(device.uuid).begin()
    assert caught.value.errno == errno.EBUSY
    # Nothing of it was changed.
    assert device.state() == "RESUMING"


@pytest.mark.parametrize("state", ["STOP_COPY", "PRE_COPY", "RESUMING", "STOP"])
async def test_a_sink_that_was_left_behind(mttys: Create, state: str) -> None:
    a, b = mttys(count=2)
    a.poke(SCRATCH, 0x31)
    b.leave_in(state)
    async with VfioSink(b.uuid) as sink:
        moved = await move({DEVICE: VfioSource(a.uuid)}, {DEVICE: sink})
        assert moved.completed
        await sink.run()
    assert b.registers()[-1] == 0x31


# --- Cancels

Call = Callable[[], Awaitable[object]]


def calls_of_a_sink(sink: VfioSink) -> Iterator[tuple[str, Call]]:
    yield "open", sink.open
    yield "begin", sink.begin
    yield "write", partial(sink.write, iter([memoryview(b"x")]))
    yield "load_config", partial(sink.load_config, b"")
    yield "finish", sink.finish
    yield "run_p2p", sink.run_p2p
    yield "run", sink.run


def calls_of_a_source(source: VfioSource) -> Iterator[tuple[str, Call]]:
    yield "open", source.open
    yield "begin", source.begin
    yield "pending", source.pending
    yield "read_into", partial(source.read_into, [memoryview(bytearray(1))])
    yield "stop_p2p", source.stop_p2p
    yield "stop", source.stop
    yield "config", source.config
    yield "finish", source.finish


async def is_made(call: Call) -> bool:
    """Whether *call* is made although it is cancelled before."""
    with trio.CancelScope() as scope:
        scope.cancel(reason="the test wants to see it")
        await call()
    return not scope.cancelled_caught


async def test_a_cancelled_call_of_a_sink_changes_nothing(mttys: Create) -> None:
    (device,) = mttys()
    sink = VfioSink(device.uuid)
    for name, call in calls_of_a_sink(sink):
        assert not await is_made(call), name
    assert device.state() == "RUNNING"
    await sink.begin()
    for name, call in calls_of_a_sink(sink):
        assert not await is_made(call), name
        assert mtty.state_of(sink.fileno()) == "RESUMING"
    # But what has been begun is closed.
    with trio.CancelScope() as scope:
        scope.cancel(reason="the test wants to see it")
        await sink.aclose()
    assert scope.cancelled_caught
    assert device.state() == "RESUMING"


async def test_a_cancelled_call_of_a_source_changes_nothing(mttys: Create) -> None:
    with mttys()[0].opened() as fd:
        source = VfioSource(fd)
        for name, call in calls_of_a_source(source):
            assert not await is_made(call), name
        assert mtty.state_of(fd) == "RUNNING"
        await source.begin()
        for name, call in calls_of_a_source(source):
            assert not await is_made(call), name
            assert mtty.state_of(fd) == "PRE_COPY"
        await source.abort()
        assert mtty.state_of(fd) == "RUNNING"


async def test_a_cancel_during_a_blocked_write(mttys: Create) -> None:
    """Invariant: the loop goes on meanwhile; the device is reset after the write."""
    (device,) = mttys(pad_kib=3 * 1024)
    state = device.saved()
    mtty.parameter("write_msecs", 2000)
    sink = VfioSink(device.uuid)
    await sink.begin()
    pieces = [memoryview(state)[n << 20 :][: 1 << 20] for n in range(3)]
    taken: list[int] = []

    def run() -> Iterator[memoryview]:
        for number, piece in enumerate(pieces):
            taken.append(number)
            yield piece

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.02)
            ticks += 1
            if ticks == 5:
                nursery.cancel_scope.cancel(reason="the test wants to see it")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await sink.write(run())
    assert nursery.cancel_scope.cancelled_caught
    # It was cancelled in the first write, and asked for the next before it looked.
    assert taken[2:] == []
    assert ticks >= 5
    await sink.abort()
    assert device.state() == "RUNNING"


async def test_an_abort_during_a_blocked_write(mttys: Create) -> None:
    """Invariant: the call ends, with ECANCELED or what the reset makes of it."""
    (device,) = mttys(pad_kib=2 * 1024)
    state = device.saved()
    mtty.parameter("write_msecs", 300)
    sink = VfioSink(device.uuid)
    await sink.begin()
    began = trio.Event()
    raised: list[OSError] = []
    token = trio.lowlevel.current_trio_token()

    def run() -> Iterator[memoryview]:
        trio.from_thread.run_sync(began.set, trio_token=token)
        yield memoryview(state)[: 1 << 20]
        yield memoryview(state)[1 << 20 :]

    async def write() -> None:
        try:
            await sink.write(run())
        except OSError as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await began.wait()
        await sink.abort()
    assert raised[0].errno in (errno.ECANCELED, errno.ENODEV)
    assert device.state() == "RUNNING"


async def test_an_abort_during_a_blocked_read(mttys: Create) -> None:
    """Invariant: the call ends, and the device works as before."""
    (device,) = mttys(pad_kib=1024)
    device.poke(SCRATCH, 0x21)
    mtty.parameter("read_msecs", 300)
    mtty.parameter("short_io", 1000)
    source = VfioSource(device.uuid, precopy=False)
    await source.begin()
    await source.stop()
    raised: list[OSError] = []

    async def read() -> None:
        try:
            await source.read_into([memoryview(bytearray(1 << 20))])
        except OSError as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        # In its thread, for a very long time.
        await wait_all_tasks_blocked()
        await source.abort()
    assert raised[0].errno in (errno.ECANCELED, errno.ENODEV)
    assert device.state() == "RUNNING"
    assert device.registers()[-1] == 0x21


async def test_a_device_that_was_closed(mttys: Create) -> None:
    """Its number may be another file's by then, and is not used again."""
    a, b = mttys(count=2)
    sink, source = VfioSink(a.uuid), VfioSource(b.uuid)
    await sink.begin()
    await sink.aclose()
    await source.begin()
    await source.abort()
    late: list[Call] = [
        sink.finish,
        sink.run,
        sink.run_p2p,
        source.pending,
        source.stop,
        source.stop_p2p,
        source.config,
        partial(source.read_into, [memoryview(bytearray(1))]),
        partial(sink.write, iter([memoryview(b"x")])),
    ]
    for call in late:
        with pytest.raises(OSError, match="the device is not open"):
            await call()


async def test_a_source_that_is_closed_as_it_is(mttys: Create) -> None:
    (device,) = mttys()
    async with VfioSource(device.uuid) as source:
        await source.open()
        with pytest.raises(OSError, match="in use"):
            await VfioSource(device.uuid).open()
    assert device.state() == "RUNNING"


async def test_a_blocked_read_blocks_nobody(mttys: Create) -> None:
    a, b = mttys(count=2)
    mtty.parameter("read_msecs", 300)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.02)
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async with VfioSink(b.uuid) as sink:
            moved = await move({DEVICE: VfioSource(a.uuid)}, {DEVICE: sink})
        nursery.cancel_scope.cancel(reason="the test has seen enough")
    assert moved.completed
    assert ticks > 5


async def test_one_device_fails_and_both_are_reset(mttys: Create) -> None:
    """Invariant: also the one that had accepted its state."""
    a, b = mttys(count=2)
    other = "0000:00:05.0/vfio"
    sources: dict[str, StateSource] = {
        DEVICE: VfioSource(a.uuid),
        other: SimulatedSource(size=1000),
    }
    failing = SimulatedSink(seconds_per_call=0.2, fails={"finish": errno.EIO})
    sinks: dict[str, StateSink] = {DEVICE: VfioSink(b.uuid), other: failing}
    moved = await move(sources, sinks)
    assert not moved.completed
    assert {a.state(), b.state()} == {"RUNNING"}


def fail(state: int) -> None:
    """Let every step into *state* fail."""
    mtty.parameter("fail_errno", errno.EIO)
    mtty.parameter("fail_state", state)
