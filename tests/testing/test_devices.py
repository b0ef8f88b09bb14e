"""Collaboration: the simulated device does in virtual time what it is told to."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vfio.testing import Call, ContractViolation, DeviceFault, SimulatedSink

MIB = 1024 * 1024


def views(*buffers: bytes) -> Iterator[memoryview]:
    return iter([memoryview(buffer) for buffer in buffers])


async def drive(device: SimulatedSink, *calls: str) -> None:
    """Make *calls*, each with something to give it."""
    for name in calls:
        given: dict[str, tuple[Any, ...]] = {
            "write": (views(b"abc", b"def"),),
            "load_config": (b"config",),
        }
        await getattr(device, name)(*given.get(name, ()))


async def test_every_call_is_recorded_with_its_time(autojump_clock: MockClock) -> None:
    device = SimulatedSink(seconds_per_call=1, seconds_per_mib=4, precopy=True)
    await trio.sleep(10)
    await device.begin()
    await device.write(views(bytes(MIB), bytes(MIB // 2)))
    await device.load_config(b"config")
    assert not device.finished
    await device.finish()
    assert device.calls == [
        Call(10, "begin"),
        Call(10, "write", MIB),
        Call(15, "write", MIB // 2),
        Call(18, "load_config", 6),
        Call(19, "finish"),
    ]
    assert trio.current_time() == 20
    assert (device.loaded, device.config) == (bytes(MIB * 3 // 2), b"config")
    assert (device.began, device.finished, device.aborted) == (True, True, False)
    assert device.precopy is True


async def test_data_is_accepted_only_after_its_time(autojump_clock: MockClock) -> None:
    device = SimulatedSink(seconds_per_call=2)
    await device.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, views(b"a", b"b"))
        await trio.sleep(3)
        assert device.loaded == b"a"
    assert device.loaded == b"ab"


async def test_a_cancel_is_seen_after_the_step_it_falls_into(
    autojump_clock: MockClock,
) -> None:
    """What was cancelled meanwhile is accepted, as by a thread that cannot stop."""
    device = SimulatedSink(seconds_per_call=2)
    await device.begin()
    with trio.move_on_after(3) as scope:
        await device.write(views(b"a", b"b", b"c"))
    assert scope.cancelled_caught
    assert trio.current_time() == 4
    assert device.loaded == b"ab"


@pytest.mark.parametrize("name", ["load_config", "finish"])
async def test_a_cancelled_call_is_made_whole_and_says_so(
    autojump_clock: MockClock, name: str
) -> None:
    device = SimulatedSink(seconds_per_call=2)
    await device.begin()
    with trio.move_on_after(1) as scope:
        await drive(device, name)
    assert scope.cancelled_caught
    assert trio.current_time() == 2
    assert (device.config is not None) == (name == "load_config")
    assert device.finished == (name == "finish")


@pytest.mark.parametrize("name", ["begin", "write", "load_config", "finish", "abort"])
async def test_a_call_fails_when_told_to(autojump_clock: MockClock, name: str) -> None:
    device = SimulatedSink(seconds_per_call=1, fails={name: errno.ENOSPC})
    calls = ["begin", "write", "load_config", "finish", "abort"]
    before = calls[: calls.index(name)]
    await drive(device, *before)
    with pytest.raises(OSError, match="No space left") as raised:
        await drive(device, name)
    assert raised.value.errno == errno.ENOSPC
    assert [call.name for call in device.calls if call.name not in before] == [name]
    assert (device.config is None) == ("load_config" not in before)
    assert device.finished == ("finish" in before)


@pytest.mark.parametrize(
    ("byte", "loaded"), [(0, b""), (2, b""), (3, b"abc"), (5, b"abc"), (6, b"abcdef")]
)
async def test_a_write_fails_at_a_byte(
    autojump_clock: MockClock, byte: int, loaded: bytes
) -> None:
    """With EIO unless told otherwise; the buffer that holds it is not accepted."""
    device = SimulatedSink(fails_at_byte=byte)
    await device.begin()
    if loaded == b"abcdef":
        await drive(device, "write")
    else:
        with pytest.raises(OSError, match="Input/output error"):
            await drive(device, "write")
    assert device.loaded == loaded


async def test_fails_at_byte_takes_the_errno_of_write(
    autojump_clock: MockClock,
) -> None:
    device = SimulatedSink(fails_at_byte=4, fails={"write": errno.ENODEV})
    await device.begin()
    with pytest.raises(OSError, match="No such device"):
        await drive(device, "write")
    assert device.loaded == b"abc"


@pytest.mark.parametrize("name", ["begin", "write", "load_config", "finish"])
async def test_a_call_hangs_until_abort(autojump_clock: MockClock, name: str) -> None:
    """No cancel ends it; abort does, and it fails with ECANCELED."""
    device = SimulatedSink(hangs_in=name, seconds_after_abort=5)
    if name != "begin":
        await device.begin()

    async def hang() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(OSError, match="canceled") as raised:
                await drive(device, name)
        assert raised.value.errno == errno.ECANCELED

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        await trio.sleep(100)
        await device.abort()
        assert trio.current_time() == device.aborted_at == 100
    assert trio.current_time() == 105
    assert device.aborted


async def test_a_write_hangs_at_a_byte(autojump_clock: MockClock) -> None:
    device = SimulatedSink(hangs_at_byte=4)
    await device.begin()
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(OSError, match="canceled"):
                await drive(device, "write")

        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        assert device.loaded == b"abc"
        await device.abort()
    assert device.loaded == b"abc"


async def test_abort_ends_a_step_that_merely_takes_long(
    autojump_clock: MockClock,
) -> None:
    device = SimulatedSink(seconds_per_call=100)
    await device.begin()
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(OSError, match="canceled"):
                await drive(device, "write")

        nursery.start_soon(write)
        await trio.sleep(1)
        await device.abort()
    assert trio.current_time() == 1
    assert device.loaded == b""


@pytest.mark.parametrize(
    ("calls", "complaint"),
    [
        ("write", "write before begin"),
        ("abort", "abort before begin"),
        ("begin begin", "begin after begin"),
        ("begin load_config write", "write after load_config"),
        ("begin load_config load_config", "load_config after load_config"),
        ("begin finish write", "write after finish"),
        ("begin finish finish", "finish after finish"),
        ("begin abort write", "write after abort"),
        ("begin abort abort", "abort after abort"),
        ("begin finish abort abort", "abort after abort"),
    ],
)
async def test_calls_out_of_order(calls: str, complaint: str) -> None:
    device = SimulatedSink()
    *legal, illegal = calls.split()
    await drive(device, *legal)
    with pytest.raises(ContractViolation) as raised:
        await drive(device, illegal)
    assert str(raised.value) == complaint


@pytest.mark.parametrize(
    ("failing", "following", "complaint"),
    [
        ("begin", "write", "write after a begin that failed or was cancelled"),
        ("begin", "abort", "abort after a begin that failed or was cancelled"),
        ("write", "finish", "finish after a call that failed or was cancelled"),
    ],
)
async def test_calls_after_one_that_failed(
    failing: str, following: str, complaint: str
) -> None:
    device = SimulatedSink(fails={failing: errno.EIO})
    if failing != "begin":
        await device.begin()
    with pytest.raises(OSError, match="Input/output"):
        await drive(device, failing)
    with pytest.raises(ContractViolation) as raised:
        await drive(device, following)
    assert str(raised.value) == complaint


@pytest.mark.parametrize("failing", ["begin", "write"])
async def test_begin_starts_afresh_after_a_failure(failing: str) -> None:
    fault = DeviceFault(failing, errno=errno.EIO, at_call=0)
    device = SimulatedSink(faults=[fault])
    with pytest.raises(OSError, match="Input/output"):
        await drive(device, *(["begin"] if failing == "write" else []), failing)
    if failing == "write":
        await device.abort()
    await drive(device, "begin")
    assert (device.loaded, device.aborted, device.config) == (b"", False, None)
    await drive(device, "write", "finish")
    assert device.finished
    assert device.violations == []


async def test_abort_may_follow_a_call_that_failed() -> None:
    device = SimulatedSink(fails={"write": errno.EIO})
    await device.begin()
    with pytest.raises(OSError, match="Input/output"):
        await drive(device, "write")
    await device.abort()
    assert device.aborted


async def test_two_calls_at_once(autojump_clock: MockClock) -> None:
    device = SimulatedSink(seconds_per_call=1)
    await device.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drive, device, "write")
        await wait_all_tasks_blocked()
        with pytest.raises(ContractViolation, match="finish while write is under way"):
            await device.finish()


async def test_two_aborts_during_a_call(autojump_clock: MockClock) -> None:
    device = SimulatedSink(hangs_in="begin", seconds_after_abort=1)

    async def begin() -> None:
        with pytest.raises(OSError, match="canceled"):
            await device.begin()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
        await wait_all_tasks_blocked()
        await device.abort()
        with pytest.raises(ContractViolation, match="abort after abort"):
            await device.abort()


async def test_an_empty_buffer() -> None:
    device = SimulatedSink()
    await device.begin()
    with pytest.raises(ContractViolation, match="write of an empty buffer"):
        await device.write(views(b""))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SimulatedSink(fails={"wirte": errno.EIO}),
        lambda: SimulatedSink(hangs_in="wirte"),
    ],
)
def test_a_fault_in_a_call_that_does_not_exist(
    make: Callable[[], SimulatedSink],
) -> None:
    with pytest.raises(ValueError, match="a device has no call 'wirte'"):
        make()


def test_an_abort_that_hangs_would_never_end() -> None:
    with pytest.raises(ValueError, match="abort is what ends"):
        SimulatedSink(hangs_in="abort")


async def test_a_device_that_takes_no_time_lets_others_run() -> None:
    """Every call is a checkpoint, so that nothing hangs on a device without cost."""
    device = SimulatedSink()
    for name in ("begin", "write", "load_config", "finish"):
        with trio.testing.assert_checkpoints():
            await drive(device, name)
