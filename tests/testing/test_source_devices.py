"""Collaboration: the simulated source does in virtual time what it is told to."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vfio import StateSource
from trio_vfio._device._port import Pending
from trio_vfio.testing import Call, ContractViolation, SimulatedSource

MIB = 1024 * 1024

# One call each, in an order that is legal for a source without pre-copy.
CALLS = ("begin", "stop", "read_into", "config", "finish")


async def drive(source: StateSource, *calls: str) -> None:
    """Make *calls*, each with something to give it."""
    for name in calls:
        given = (memories(64, 64),) if name == "read_into" else ()
        await getattr(source, name)(*given)


def memories(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


async def read(source: StateSource, *sizes: int) -> list[bytes]:
    """Read into buffers of these *sizes*; return what each was given."""
    buffers = memories(*sizes)
    given = await source.read_into(buffers)
    for buffer, size in zip(buffers[: len(given)], given, strict=True):
        assert not any(buffer[size:])
    assert not any(map(any, buffers[len(given) :]))
    return [bytes(b[:n]) for b, n in zip(buffers, given, strict=False)]


async def stopped(source: SimulatedSource) -> SimulatedSource:
    await drive(source, "begin", "stop")
    return source


async def test_every_call_is_recorded_with_its_time(autojump_clock: MockClock) -> None:
    source = SimulatedSource(
        size=2 * MIB,
        initial_bytes=MIB // 2,
        config=b"blob",
        seconds_per_call=1,
        seconds_per_mib=4,
    )
    assert not source.began
    await trio.sleep(10)
    assert await source.begin()
    assert await source.pending() == Pending(MIB // 2, 0, 2 * MIB)
    assert await source.read_into(memories(MIB)) == [MIB // 2]
    running = [source.running]
    await source.stop()
    running += [source.running]
    assert await source.read_into(memories(MIB, MIB)) == [MIB, MIB // 2]
    assert await source.read_into(memories(MIB)) == [0]
    assert await source.config() == b"blob"
    await source.finish()
    assert source.calls == [
        Call(10, "begin"),
        Call(10, "pending"),
        Call(10, "read_into", MIB // 2),
        Call(13, "stop"),
        Call(14, "read_into", MIB),
        Call(19, "read_into", MIB // 2),
        Call(22, "read_into"),
        Call(22, "config", 4),
        Call(23, "finish"),
    ]
    assert trio.current_time() == 24
    assert (source.began, source.finished, source.aborted) == (True, True, False)
    assert source.read == 2 * MIB
    assert running == [True, False]


async def test_all_bytes_are_given_in_order() -> None:
    source = await stopped(SimulatedSource(size=1000, most_per_read=100))
    got: list[bytes] = []
    while not got or got[-1]:
        got += await read(source, 64, 200, 130)
    assert b"".join(got) == source.state
    assert [len(each) for each in got] == [64, 100, 100] * 3 + [64, 100, 44, 0]


@pytest.mark.parametrize(
    ("size", "given"), [(0, [0]), (9, [9, 0]), (10, [10, 0]), (11, [10, 1, 0])]
)
async def test_the_end_is_a_zero(size: int, given: list[int]) -> None:
    source = await stopped(SimulatedSource(size=size))
    assert await source.read_into(memories(10, 10, 10)) == given
    with pytest.raises(ContractViolation, match="read_into after the end of all data"):
        await source.read_into(memories(10))


async def test_the_end_behind_full_buffers_is_found_by_the_next_read() -> None:
    source = await stopped(SimulatedSource(size=20))
    assert await source.read_into(memories(10, 10)) == [10, 10]
    with pytest.raises(ContractViolation, match="config after stop and before the end"):
        await source.config()
    assert await source.read_into(memories(10, 10)) == [0]


@pytest.mark.parametrize(("ends_precopy", "end"), [(False, []), (True, [0])])
async def test_precopy_runs_dry(ends_precopy: bool, end: list[int]) -> None:
    """It says so in one of two ways, as often as it is asked; then comes the rest."""
    source = SimulatedSource(
        size=100, initial_bytes=20, dirty_bytes=30, ends_precopy=ends_precopy
    )
    assert await source.begin()
    assert await source.pending() == Pending(20, 30, 100)
    assert await source.read_into(memories(15)) == [15]
    assert await source.pending() == Pending(5, 30, 85)
    assert await source.read_into(memories(15, 40)) == [15, 20]
    assert await source.pending() == Pending(0, 0, 50)
    for _ in range(2):
        assert await source.read_into(memories(10, 10)) == end
    await source.stop()
    assert await read(source, 100, 1) == [source.state[50:], b""]


@pytest.mark.parametrize(("ends_precopy", "end"), [(False, []), (True, [0])])
async def test_precopy_runs_dry_in_the_middle_of_a_read(
    ends_precopy: bool, end: list[int]
) -> None:
    source = SimulatedSource(size=100, dirty_bytes=15, ends_precopy=ends_precopy)
    await source.begin()
    assert await source.read_into(memories(10, 10, 10)) == [10, 5, *end]


async def test_what_is_left_of_precopy_comes_after_stop() -> None:
    source = SimulatedSource(size=100, initial_bytes=50)
    await source.begin()
    assert await read(source, 30) == [source.state[:30]]
    await source.stop()
    assert await read(source, 100) == [source.state[30:]]


@pytest.mark.parametrize(
    ("early", "precopy", "says"),
    [
        (0, None, False),
        (1, None, True),
        (0, True, True),
        (1, False, False),
    ],
)
async def test_what_begin_says(early: int, precopy: bool | None, says: bool) -> None:
    source = SimulatedSource(size=9, initial_bytes=early, precopy=precopy)
    assert await source.begin() == says


async def test_without_precopy_nothing_is_read_before_stop() -> None:
    source = SimulatedSource(size=9, initial_bytes=5, precopy=False)
    await source.begin()
    assert (await source.pending()).stop_copy_bytes == 9
    with pytest.raises(ContractViolation) as raised:
        await drive(source, "read_into")
    assert str(raised.value) == "read_into after a begin that said no to pre-copy"
    await source.stop()
    assert await read(source, 9) == [source.state]


def test_the_content_depends_on_the_seed_and_on_nothing_else() -> None:
    states = [SimulatedSource(size=5000, seed=seed).state for seed in (0, 1, -1, 0)]
    assert states[0] == states[3]
    assert len({*states}) == 3
    assert len(states[0]) == 5000
    assert {SimulatedSource(size=2, seed=seed).state for seed in (0, 1)} != {b"\0\0"}
    assert SimulatedSource().state == b""


def test_no_part_of_the_content_is_like_another() -> None:
    state = SimulatedSource(size=4 * MIB).state
    assert len(state) == 4 * MIB
    assert len({state[at : at + 1024] for at in range(0, 4 * MIB, 1024)}) == 4096


async def test_a_cancel_is_seen_after_the_step_it_falls_into(
    autojump_clock: MockClock,
) -> None:
    """The buffer that was being filled is lost, as in a thread that cannot stop."""
    source = await stopped(SimulatedSource(size=30))
    source.seconds_per_call = 2
    buffers = memories(10, 10, 10)
    with trio.move_on_after(3) as scope:
        await source.read_into(buffers)
    assert scope.cancelled_caught
    assert trio.current_time() == 4
    assert b"".join(buffers) == source.state[:20] + bytes(10)
    assert source.read == 20
    with pytest.raises(ContractViolation, match="read_into after a call that failed"):
        await source.read_into(buffers)
    await source.abort()
    assert source.running


@pytest.mark.parametrize("name", ["stop", "config", "finish"])
async def test_a_cancelled_call_is_made_whole_and_says_so(
    autojump_clock: MockClock, name: str
) -> None:
    source = SimulatedSource()
    await drive(source, *CALLS[: CALLS.index(name)])
    source.seconds_per_call = 2
    with trio.move_on_after(1) as scope:
        await drive(source, name)
    assert scope.cancelled_caught
    assert trio.current_time() == 2
    assert not source.running
    assert source.finished == (name == "finish")


@pytest.mark.parametrize("name", [*CALLS, "pending", "abort"])
async def test_a_call_fails_when_told_to(name: str) -> None:
    source = SimulatedSource(
        size=9, precopy=name == "pending", fails={name: errno.ENOSPC}
    )
    calls = CALLS[:1] if name in ("pending", "abort") else CALLS[: CALLS.index(name)]
    await drive(source, *calls)
    if name in ("config", "finish"):
        assert source.read == 9
    with pytest.raises(OSError, match="No space left") as raised:
        await drive(source, name)
    assert raised.value.errno == errno.ENOSPC
    assert source.read == (9 if name in ("config", "finish") else 0)
    assert source.running == (name in ("begin", "pending", "stop", "abort"))
    assert not source.finished


@pytest.mark.parametrize(
    ("byte", "read_before"), [(0, 0), (9, 0), (10, 10), (29, 20), (30, 30)]
)
async def test_a_read_fails_at_a_byte(byte: int, read_before: int) -> None:
    """With EIO unless told otherwise; the buffer that would hold it is not filled."""
    source = await stopped(SimulatedSource(size=30, fails_at_byte=byte))
    buffers = memories(10, 10, 10, 10)
    if byte == 30:
        await source.read_into(buffers)
    else:
        with pytest.raises(OSError, match="Input/output error"):
            await source.read_into(buffers)
    assert source.read == read_before
    assert b"".join(buffers).rstrip(b"\0") == source.state[:read_before].rstrip(b"\0")


async def test_fails_at_byte_takes_the_errno_of_read_into() -> None:
    source = SimulatedSource(
        size=30, fails_at_byte=4, fails={"read_into": errno.ENODEV}
    )
    await stopped(source)
    with pytest.raises(OSError, match="No such device"):
        await source.read_into(memories(10))


@pytest.mark.parametrize("name", [*CALLS, "pending"])
async def test_a_call_hangs_until_abort(autojump_clock: MockClock, name: str) -> None:
    """No cancel ends it; abort does, and it fails with ECANCELED."""
    source = SimulatedSource(
        precopy=name == "pending", hangs_in=name, seconds_after_abort=5
    )
    calls = CALLS[:1] if name == "pending" else CALLS[: CALLS.index(name)]
    await drive(source, *calls)

    async def hang() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(OSError, match="canceled") as raised:
                await drive(source, name)
        assert raised.value.errno == errno.ECANCELED

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        await trio.sleep(100)
        await source.abort()
        assert trio.current_time() == source.aborted_at == 100
    assert trio.current_time() == 105
    assert source.aborted
    assert source.running
    assert not source.finished


async def test_a_read_hangs_at_a_byte(autojump_clock: MockClock) -> None:
    source = await stopped(SimulatedSource(size=30, hangs_at_byte=14))

    async def read_on() -> None:
        with pytest.raises(OSError, match="canceled"):
            await source.read_into(memories(10, 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_on)
        await wait_all_tasks_blocked()
        assert source.read == 10
        await source.abort()
    assert source.read == 10


@pytest.mark.parametrize(
    ("calls", "complaint"),
    [
        *((name, f"{name} before begin") for name in (*CALLS[1:], "pending", "abort")),
        ("begin begin", "begin after begin"),
        ("begin config", "config after begin"),
        ("begin finish", "finish after begin"),
        ("begin stop stop", "stop after stop and before the end of all data"),
        ("begin stop pending", "pending after stop and before the end of all data"),
        ("begin stop config", "config after stop and before the end of all data"),
        ("begin stop finish", "finish after stop and before the end of all data"),
        (
            "begin stop read_into finish",
            "finish after the end of all data and before config",
        ),
        (
            "begin stop read_into pending",
            "pending after the end of all data and before config",
        ),
        ("begin stop read_into config config", "config after config"),
        ("begin stop read_into config read_into", "read_into after config"),
        ("begin stop read_into config finish finish", "finish after finish"),
        ("begin stop read_into config finish abort", "abort after finish"),
        ("begin abort abort", "abort after abort"),
        ("begin stop abort read_into", "read_into after abort"),
    ],
)
async def test_calls_out_of_order(calls: str, complaint: str) -> None:
    source = SimulatedSource(precopy=True)
    *legal, illegal = calls.split()
    await drive(source, *legal)
    with pytest.raises(ContractViolation) as raised:
        await drive(source, illegal)
    assert str(raised.value) == complaint


@pytest.mark.parametrize("count", range(1, len(CALLS)))
async def test_abort_may_follow_any_call_but_finish(count: int) -> None:
    source = SimulatedSource()
    await drive(source, *CALLS[:count], "abort")
    assert source.aborted
    assert source.running


@pytest.mark.parametrize(
    ("failing", "following"), [("begin", "abort"), ("stop", "read_into")]
)
async def test_calls_after_one_that_failed(failing: str, following: str) -> None:
    source = SimulatedSource(fails={failing: errno.EIO})
    with pytest.raises(OSError, match="Input/output"):
        await drive(source, *CALLS[: CALLS.index(failing) + 1])
    with pytest.raises(ContractViolation, match=f"{following} after a .* that failed"):
        await drive(source, following)


async def test_two_calls_at_once(autojump_clock: MockClock) -> None:
    source = await stopped(SimulatedSource(size=9, hangs_in="read_into"))

    async def read_on() -> None:
        with pytest.raises(OSError, match="canceled"):
            await source.read_into(memories(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_on)
        await wait_all_tasks_blocked()
        with pytest.raises(ContractViolation, match="config while read_into is under"):
            await source.config()
        await source.abort()


@pytest.mark.parametrize("sizes", [(), (0,), (4, 0)])
async def test_a_read_into_nothing(sizes: tuple[int, ...]) -> None:
    """Its answer could not be told from the end."""
    source = await stopped(SimulatedSource(size=9))
    with pytest.raises(ContractViolation, match="no buffer, or an empty one"):
        await source.read_into(memories(*sizes))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"fails": {"write": errno.EIO}}, "a device has no call 'write'"),
        ({"hangs_in": "abort"}, "abort is what ends"),
        ({"size": 9, "initial_bytes": 5, "dirty_bytes": 5}, "part of size"),
        ({"size": 9, "initial_bytes": -1}, "not negative"),
        ({"size": -1}, "part of size"),
        ({"most_per_read": 0}, "most_per_read is 1 or more"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SimulatedSource(**options)


async def test_a_source_that_takes_no_time_lets_others_run() -> None:
    """Every call is a checkpoint, so that nothing hangs on a source without cost."""
    source = SimulatedSource(size=64)
    for name in CALLS:
        with trio.testing.assert_checkpoints():
            await drive(source, name)
