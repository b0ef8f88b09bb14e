"""Collaboration: devices go wrong where they are told to, and know when others do."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vfio._device._port import Pending
from trio_vfio.testing import (
    ContractViolation,
    DeviceFault,
    SimulatedSink,
    SimulatedSource,
)

Device = SimulatedSink | SimulatedSource

SINK_CALLS = ("begin", "write", "load_config", "finish", "abort")
SOURCE_CALLS = (
    "begin",
    "pending",
    "read_into",
    "stop",
    "config",
    "finish",
    "abort",
)


def memories(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


async def make(device: Device, *calls: str) -> None:
    """Make *calls*, each with something to give it."""
    for name in calls:
        given: dict[str, tuple[Any, ...]] = {
            "write": (iter([memoryview(b"abc"), memoryview(b"def")]),),
            "load_config": (b"config",),
            "read_into": (memories(64, 64),),
        }
        await getattr(device, name)(*given.get(name, ()))


# --- Where


async def test_the_call_of_that_number(autojump_clock: MockClock) -> None:
    """Calls count, not buffers; what came before in another call is accepted."""
    fault = DeviceFault("write", errno=errno.ENOSPC, at_call=1)
    device = SimulatedSink(faults=[fault], seconds_per_call=1)
    await make(device, "begin", "write")
    with pytest.raises(OSError, match="No space left"):
        await make(device, "write")
    assert device.loaded == b"abcdef"
    assert trio.current_time() == 3


async def test_the_first_step_from_a_time_on(autojump_clock: MockClock) -> None:
    """Counted from begin, and also in the middle of a call."""
    fault = DeviceFault("write", at_time=2.5)
    device = SimulatedSink(faults=[fault], seconds_per_call=1)
    await trio.sleep(100)
    await make(device, "begin", "write")
    with pytest.raises(OSError, match="Input/output"):
        await make(device, "write")
    assert trio.current_time() == 104
    assert device.loaded == b"abcdefabc"


async def test_from_a_time_on_it_fails_always(autojump_clock: MockClock) -> None:
    fault = DeviceFault("stop", at_time=3)
    for seconds, fails in ((2, False), (3, True), (9, True)):
        source = SimulatedSource(faults=[fault])
        await source.begin()
        await trio.sleep(seconds)
        if fails:
            with pytest.raises(OSError, match="Input/output"):
                await source.stop()
        else:
            await source.stop()


async def test_the_buffer_that_holds_a_byte(autojump_clock: MockClock) -> None:
    source = SimulatedSource(
        size=30, faults=[DeviceFault("read_into", errno=errno.ENODEV, at_byte=19)]
    )
    await make(source, "begin", "stop")
    with pytest.raises(OSError, match="No such device"):
        await source.read_into(memories(10, 10, 10))
    assert source.read == 10


async def test_the_first_of_two_counts(autojump_clock: MockClock) -> None:
    device = SimulatedSink(
        faults=[
            DeviceFault("finish", errno=errno.EINVAL, at_call=0),
            DeviceFault("finish", errno=errno.EBUSY),
        ],
        hangs_in="finish",
    )
    await device.begin()
    with pytest.raises(OSError, match="Invalid argument"):
        await device.finish()


async def test_it_hangs_there_until_abort(autojump_clock: MockClock) -> None:
    fault = DeviceFault("write", does="hangs", at_call=1)
    device = SimulatedSink(faults=[fault])
    await make(device, "begin", "write")

    async def hang() -> None:
        with pytest.raises(OSError, match="canceled"):
            await make(device, "write")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        await trio.sleep(1000)
        await device.abort()
    assert device.loaded == b"abcdef"


async def test_an_abort_that_fails(autojump_clock: MockClock) -> None:
    device = SimulatedSink(faults=[DeviceFault("abort", at_time=5)])
    await device.begin()
    await trio.sleep(5)
    with pytest.raises(OSError, match="Input/output"):
        await device.abort()
    assert device.aborted


# --- A state that is short


@pytest.mark.parametrize(
    ("where", "given"),
    [
        ({}, [0]),
        ({"at_byte": 0}, [0]),
        ({"at_byte": 25}, [10, 10, 0]),
        ({"at_call": 0}, [0]),
        ({"at_time": 2}, [10, 0]),
        ({"at_byte": 99}, [10, 10, 10]),
    ],
)
async def test_a_state_that_is_short(
    where: dict[str, Any], given: list[int], autojump_clock: MockClock
) -> None:
    """It looks as its end does, takes no time, and nothing is read behind it."""
    fault = DeviceFault("read_into", does="ends", **where)
    source = SimulatedSource(size=30, seconds_per_call=1, faults=[fault])
    await make(source, "begin", "stop")
    assert await source.read_into(memories(10, 10, 10)) == given
    assert trio.current_time() == 1 + source.read / 10
    if given[-1] == 0:
        assert await source.config() == b""
        assert source.read < 30


async def test_a_state_that_is_short_before_stop_is_short_behind_it() -> None:
    source = SimulatedSource(
        size=30,
        initial_bytes=20,
        faults=[DeviceFault("read_into", does="ends", at_byte=10)],
    )
    await source.begin()
    for given in ([10, 0], [0]):
        assert await source.read_into(memories(10, 10)) == given
    assert await source.pending() == Pending(10, 0, 20)
    await source.stop()
    assert await source.read_into(memories(10, 10)) == [0]
    await source.config()


# --- Bytes that become dirty again


async def test_what_can_be_read_before_stop_grows(autojump_clock: MockClock) -> None:
    """With the time since begin, and never beyond what there is."""
    source = SimulatedSource(
        size=100, initial_bytes=10, dirty_bytes=5, dirty_per_second=10
    )
    await trio.sleep(1000)
    assert await source.begin()
    assert await source.pending() == Pending(10, 5, 100)
    assert await source.read_into(memories(64)) == [15]
    assert await source.read_into(memories(64)) == []
    await trio.sleep(2)
    assert await source.pending() == Pending(0, 20, 85)
    assert await source.read_into(memories(64)) == [20]
    await trio.sleep(1000)
    assert await source.pending() == Pending(0, 65, 65)
    assert await source.read_into(memories(64, 64)) == [64, 1]
    assert await source.pending() == Pending(0, 0, 0)
    await source.stop()
    assert await source.read_into(memories(64)) == [0]


async def test_it_grows_while_it_is_read(autojump_clock: MockClock) -> None:
    source = SimulatedSource(
        size=100, dirty_bytes=4, dirty_per_second=4, seconds_per_call=1
    )
    await source.begin()
    assert await source.read_into(memories(8, 8, 8)) == [4, 4, 4]


async def test_a_dirty_rate_alone_is_precopy(autojump_clock: MockClock) -> None:
    assert await SimulatedSource(size=1, dirty_per_second=1).begin()
    assert not await SimulatedSource(size=0, dirty_per_second=1).begin()


async def test_precopy_that_was_said_to_be_over_is_so(
    autojump_clock: MockClock,
) -> None:
    source = SimulatedSource(
        size=100, dirty_bytes=10, dirty_per_second=10, ends_precopy=True
    )
    await source.begin()
    assert await source.read_into(memories(10, 10)) == [10, 0]
    await trio.sleep(5)
    assert await source.pending() == Pending(0, 0, 90)
    assert await source.read_into(memories(10)) == [0]
    await source.stop()
    assert await source.read_into(memories(100)) == [90]


@pytest.mark.parametrize("rate", [-1, float("inf"), float("nan")])
def test_rates_that_cannot_be(rate: float) -> None:
    with pytest.raises(ValueError, match="dirty_per_second"):
        SimulatedSource(size=9, dirty_per_second=rate)


# --- What cannot be


@pytest.mark.parametrize(
    "fault",
    [
        DeviceFault("begin"),
        DeviceFault("write", errno=errno.ENOSPC, at_byte=7),
        DeviceFault("finish", does="hangs", at_call=0),
        DeviceFault("read_into", does="ends", at_time=2.5),
    ],
)
def test_a_repr_is_python_that_makes_the_same(fault: DeviceFault) -> None:
    assert eval(repr(fault)) == fault  # noqa: S307


def test_a_repr_says_no_more_than_it_has_to() -> None:
    fault = DeviceFault("finish", errno=22, at_call=None)
    assert repr(fault) == "DeviceFault('finish', errno=22)"


@pytest.mark.parametrize(
    ("call", "options", "complaint"),
    [
        ("write", {"at_byte": 1, "at_call": 1}, "only one of them"),
        ("write", {"at_byte": 0, "at_time": 0}, "only one of them"),
        ("write", {"at_call": -1}, "nothing is at -1"),
        ("write", {"at_time": float("nan")}, "nothing is at nan"),
        ("load_config", {"at_byte": 0}, "load_config has no bytes"),
        ("write", {"does": "ends"}, "only read_into can say"),
        ("abort", {"does": "hangs"}, "abort is what ends"),
        ("write", {"does": "explodes"}, "must be in"),
    ],
)
def test_faults_that_cannot_be(
    call: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        DeviceFault(call, **options)


@pytest.mark.parametrize(
    ("kind", "call"), [(SimulatedSink, "read_into"), (SimulatedSource, "write")]
)
def test_a_fault_in_a_call_that_does_not_exist(
    kind: type[SimulatedSink | SimulatedSource], call: str
) -> None:
    with pytest.raises(ValueError, match=f"a device has no call '{call}'"):
        kind(faults=[DeviceFault(call)])


def test_faults_are_not_to_be_set_later() -> None:
    device = SimulatedSink()
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        device.hangs_in = "write"


# --- Every arc that is illegal

# What leads to a stage; the words for it; and what is legal then.
SINK_STAGES = [
    ("", "before begin", "begin"),
    ("begin", "after begin", "write load_config finish abort"),
    ("begin write", "after begin", "write load_config finish abort"),
    ("begin load_config", "after load_config", "finish abort"),
    ("begin load_config finish", "after finish", "abort"),
    ("begin abort", "after abort", "begin"),
    ("begin finish abort", "after abort", "begin"),
    ("begin write!", "after a call that failed or was cancelled", "abort"),
    ("begin write load_config!", "after a call that failed or was cancelled", "abort"),
    ("begin finish!", "after a call that failed or was cancelled", "abort"),
    ("begin!", "after a begin that failed or was cancelled", "begin"),
    ("begin abort!", "after abort", "begin"),
]

SOURCE_STAGES = [
    ("", "before begin", "begin"),
    ("begin", "after begin", "pending read_into stop abort"),
    ("begin pending", "after begin", "pending read_into stop abort"),
    ("begin read_into", "after begin", "pending read_into stop abort"),
    (
        "begin stop",
        "after stop and before the end of all data",
        "read_into abort",
    ),
    (
        "begin stop read_into",
        "after the end of all data and before config",
        "config abort",
    ),
    ("begin stop read_into config", "after config", "finish abort"),
    ("begin stop read_into config finish", "after finish", ""),
    ("begin abort", "after abort", "begin"),
    ("begin stop abort", "after abort", "begin"),
    ("begin read_into!", "after a call that failed or was cancelled", "abort"),
    ("begin pending!", "after a call that failed or was cancelled", "abort"),
    ("begin stop!", "after a call that failed or was cancelled", "abort"),
    (
        "begin stop read_into config finish!",
        "after a call that failed or was cancelled",
        "abort",
    ),
    ("begin!", "after a begin that failed or was cancelled", "begin"),
    ("begin abort!", "after abort", "begin"),
]


async def check_stage(
    kind: type[SimulatedSink | SimulatedSource],
    options: dict[str, Any],
    calls: Sequence[str],
    stage: tuple[str, str, str],
) -> None:
    """See that from *stage* exactly what is legal is let through."""
    path, words, legal = stage
    for name in calls:
        failing = [
            DeviceFault(each[:-1], at_call=0)
            for each in path.split()
            if each[-1] == "!"
        ]
        device = kind(**options, faults=failing)
        for each in path.split():
            if each[-1] == "!":
                with pytest.raises(OSError, match="Input/output"):
                    await make(device, each[:-1])
            else:
                await make(device, each)
        assert device.violations == []
        before = device.calls.copy()
        if name in legal.split():
            await make(device, name)
            assert device.violations == []
        else:
            with pytest.raises(ContractViolation) as raised:
                await make(device, name)
            assert device.violations == [str(raised.value)] == [f"{name} {words}"]
            assert device.calls == before


@pytest.mark.parametrize("stage", SINK_STAGES, ids=lambda stage: stage[0] or "new")
async def test_every_arc_of_a_sink(stage: tuple[str, str, str]) -> None:
    await check_stage(SimulatedSink, {}, SINK_CALLS, stage)


@pytest.mark.parametrize("stage", SOURCE_STAGES, ids=lambda stage: stage[0] or "new")
async def test_every_arc_of_a_source(stage: tuple[str, str, str]) -> None:
    await check_stage(SimulatedSource, {"precopy": True}, SOURCE_CALLS, stage)


@asynccontextmanager
async def hanging(device: Device, name: str) -> AsyncGenerator[None]:
    """Have call *name* hang in a task; at the end, let it go."""

    async def hang() -> None:
        with pytest.raises(OSError, match="canceled"):
            await make(device, name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        await wait_all_tasks_blocked()
        yield
        if not device.aborted:
            await device.abort()


@pytest.mark.parametrize("running", SINK_CALLS[:-1])
async def test_a_sink_is_in_one_call_at_a_time(
    running: str, autojump_clock: MockClock
) -> None:
    await check_one_at_a_time(
        SimulatedSink(hangs_in=running, seconds_after_abort=1),
        running,
        () if running == "begin" else ("begin",),
        SINK_CALLS,
    )


@pytest.mark.parametrize("running", SOURCE_CALLS[:-1])
async def test_a_source_is_in_one_call_at_a_time(
    running: str, autojump_clock: MockClock
) -> None:
    path = ("begin", "stop", "read_into", "config", "finish")
    before = ("begin",) if running == "pending" else path[: path.index(running)]
    await check_one_at_a_time(
        SimulatedSource(hangs_in=running, precopy=True, seconds_after_abort=1),
        running,
        before,
        SOURCE_CALLS,
    )


async def check_one_at_a_time(
    device: Device, running: str, before: Sequence[str], calls: Sequence[str]
) -> None:
    """See that beside a call, or what is left of it, only one abort is let through."""
    await make(device, *before)
    expected: list[str] = []
    async with hanging(device, running):
        for name in calls[:-1]:
            expected.append(f"{name} while {running} is under way")
            with pytest.raises(ContractViolation, match=expected[-1]):
                await make(device, name)
        await device.abort()
        for name in calls[:-1]:
            expected.append(f"{name} while {running} is under way")
            with pytest.raises(ContractViolation, match=expected[-1]):
                await make(device, name)
        expected.append("abort after abort")
        with pytest.raises(ContractViolation, match="abort after abort"):
            await device.abort()
    # Only another `begin` is legal after it.
    for name in filter(lambda name: name != "begin", calls):
        expected.append(f"{name} after abort")
        with pytest.raises(ContractViolation, match=f"{name} after abort"):
            await make(device, name)
    assert device.violations == expected


async def test_buffers_that_break_the_contract_are_kept_too() -> None:
    device, source = SimulatedSink(), SimulatedSource(precopy=True)
    await device.begin()
    await source.begin()
    with pytest.raises(ContractViolation):
        await device.write(iter([memoryview(b"")]))
    with pytest.raises(ContractViolation):
        await source.read_into([])
    assert device.violations == ["write of an empty buffer"]
    assert source.violations == ["read_into no buffer, or an empty one"]
