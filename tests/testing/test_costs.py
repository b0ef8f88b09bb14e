"""Pure, and collaboration: costs that vary are the same for the same seed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_vfio.testing import (
    Cost,
    Exponential,
    SimulatedSink,
    SimulatedSource,
    Stalls,
    Uniform,
)

MIB = 1024 * 1024

COSTS = [Uniform(1, 3), Exponential(2.0), Stalls(1, 30, chance=0.25)]


async def times(buffers: int = 8, **options: Any) -> list[float]:
    """Return what each buffer took that a device was given."""
    device = SimulatedSink(**options)
    await device.begin()
    start = trio.current_time()
    await device.write(iter([memoryview(b"x")] * buffers))
    ends = [*(call.time for call in device.calls[2:]), trio.current_time()]
    return [end - begin for begin, end in zip([start, *ends], ends, strict=False)]


@pytest.mark.parametrize("cost", COSTS)
async def test_a_seed_decides(autojump_clock: MockClock, cost: Cost) -> None:
    first, again, other = [
        await times(seconds_per_call=cost, cost_seed=seed) for seed in (1, 1, 2)
    ]
    assert first == pytest.approx(again)
    assert first != pytest.approx(other)
    assert len({round(each, 6) for each in first}) > 1


async def test_the_numbers_are_those_of_any_python(autojump_clock: MockClock) -> None:
    """What `random.Random(0).random()` gives: 0.844, 0.758, 0.421."""
    shares = [0.8444218515250481, 0.7579544029403025, 0.420571580830845]
    assert await times(3, seconds_per_call=Uniform(0, 1)) == pytest.approx(shares)
    took = await times(3, seconds_per_call=Exponential(1))
    assert took == pytest.approx([-math.log(1 - share) for share in shares])
    took = await times(3, seconds_per_call=Stalls(1, 9, chance=0.2))
    assert took == pytest.approx([9, 1, 1])


def test_exponential_is_so_to_the_last_digits() -> None:
    for n in range(1000):
        share = n / 1000
        expected = -math.log(1 - share)
        assert Exponential(1).at(share) == pytest.approx(expected, rel=1e-15, abs=1e-15)
    assert Exponential(5).at(1 - 2**-53) == pytest.approx(5 * 53 * math.log(2))


def test_chances_at_their_limits() -> None:
    assert Stalls(1, 9, chance=0).at(1 - 2**-53) == 1
    assert Stalls(1, 9, chance=1).at(0.0) == 9


async def test_a_step_draws_once_for_both_its_costs(autojump_clock: MockClock) -> None:
    source = SimulatedSource(
        size=2 * MIB,
        seconds_per_call=Uniform(0, 1),
        seconds_per_mib=Uniform(0, 10),
    )
    await source.begin()
    await source.stop()
    assert trio.current_time() == pytest.approx(0.8444218515250481)
    start = trio.current_time()
    await source.read_into([memoryview(bytearray(MIB))])
    assert trio.current_time() - start == pytest.approx(11 * 0.7579544029403025)


async def test_devices_draw_apart(autojump_clock: MockClock) -> None:
    devices = [SimulatedSink(seconds_per_call=Uniform(0, 1)) for _ in range(2)]
    for device in devices:
        await device.begin()
        start = trio.current_time()
        await device.finish()
        assert trio.current_time() - start == pytest.approx(0.8444218515250481)


@pytest.mark.parametrize("cost", COSTS)
def test_a_repr_is_python_that_makes_the_same(cost: Cost) -> None:
    assert eval(repr(cost)) == cost  # noqa: S307


@pytest.mark.parametrize(
    ("make", "numbers", "complaint"),
    [
        (Uniform, (-1, 1), "least cannot be -1"),
        (Uniform, (0, math.inf), "most cannot be inf"),
        (Uniform, (2, 1), "most is not less than least"),
        (Exponential, (math.nan,), "mean cannot be nan"),
        (Stalls, (1, -1, 0.5), "stall cannot be -1"),
        (Stalls, (1, 2, 1.5), "chance is from 0 to 1"),
    ],
)
def test_costs_that_cannot_be(
    make: Any, numbers: tuple[float, ...], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        make(*numbers)
