"""Trio's scheduler under a seed: the same order every time, and back to its own."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trio_vfio.testing import deterministic_scheduling


def order(seed: int) -> list[int]:
    """Return in what order ten tasks come up, three times over."""
    came: list[int] = []

    async def come(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            came.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(come, number)

    with deterministic_scheduling(seed):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    return came


def test_a_seed_is_an_order() -> None:
    assert order(1) == order(1)
    assert order(1) != order(2)
    # Every round has all tasks, shuffled.
    assert sorted(order(1)[:10]) == list(range(10)) != order(1)[:10]


def test_the_order_depends_on_numbers_that_no_python_changes() -> None:
    assert order(0)[:10] == [9, 4, 2, 5, 3, 1, 6, 7, 8, 0]


def test_trio_draws_its_own_lots_again() -> None:
    before = vars(trio._core._run).copy()
    with (
        pytest.raises(ZeroDivisionError),
        deterministic_scheduling(1),
        deterministic_scheduling(2),
    ):
        assert trio._core._run._r is not before["_r"]
        raise ZeroDivisionError
    assert vars(trio._core._run) == before


def test_a_system_clock_can_be_made_meanwhile() -> None:
    with deterministic_scheduling(1):
        assert trio.run(trio.sleep, 0) is None


@pytest.mark.parametrize("name", ["_r", "_ALLOW_DETERMINISTIC_SCHEDULING"])
def test_a_trio_that_cannot_be_told_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(trio._core._run, name)
    with (
        pytest.raises(RuntimeError, match=f"^Trio {trio.__version__} .* {name}$"),
        deterministic_scheduling(),
    ):
        raise AssertionError("not reached")
    assert not hasattr(trio._core._run, name)
