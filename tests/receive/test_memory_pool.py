"""Pure: buffers that are used over and over."""

from __future__ import annotations

import errno
import mmap

import pytest
from hypothesis import given, strategies as st

from trio_vfio._receive._memory import Memory

KIB = 1 << 10


def test_what_was_given_back_last_is_taken_first() -> None:
    memory = Memory(100)
    first, second = memory.take(10), memory.take(10)
    memory.give_back(first)
    memory.give_back(second)
    assert memory.take(10) is second
    assert memory.take(10) is first
    assert memory.kept == 0


def test_a_buffer_is_for_packets_of_its_size() -> None:
    memory = Memory(100)
    small, large = memory.take(10), memory.take(20)
    memory.give_back(small)
    memory.give_back(large)
    assert memory.take(10) is small
    assert len(memory.take(5)) == 5
    assert memory.take(20) is not small


def test_what_others_are_in_need_of_is_not_kept() -> None:
    memory = Memory(100)
    small = memory.take(10)
    memory.give_back(small)
    assert (memory.used, memory.kept) == (0, 10)
    memory.take(8)
    assert (memory.used, memory.kept) == (8, 0)


def test_what_is_kept_can_be_dropped() -> None:
    memory = Memory(100)
    memory.give_back(memory.take(10))
    memory.drop()
    assert (memory.used, memory.kept) == (0, 0)
    assert len(memory.take(10)) == 10


def test_there_is_room_up_to_the_limit() -> None:
    memory = Memory(100)
    buffer = memory.take(60)
    assert memory.has_room(40)
    assert not memory.has_room(41)
    memory.give_back(buffer)
    # What is kept is no less free for that.
    assert memory.has_room(100)


def test_a_packet_without_data_takes_nothing() -> None:
    memory = Memory(0)
    for _ in range(3):
        buffer = memory.take(0)
        assert len(buffer) == 0
        memory.give_back(buffer)
    assert (memory.used, memory.kept) == (0, 0)


def test_where_there_are_too_many_mappings_memory_is_found_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(fd: int, size: int, flags: int) -> None:
        raise OSError(errno.ENOMEM, "no more mappings")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert len(Memory(1 << 20).take(1 << 20)) == 1 << 20


@pytest.mark.parametrize("size", [mmap.PAGESIZE, 3 * mmap.PAGESIZE + 1])
def test_what_fills_a_page_has_pages_of_its_own(size: int) -> None:
    """So they go back to the system when they are dropped."""
    buffer = Memory(size).take(size)
    assert isinstance(buffer.obj, mmap.mmap)
    assert (len(buffer), buffer.readonly) == (size, False)


@given(
    st.lists(
        st.one_of(
            st.sampled_from([0, 1, 2, 3, 50, 64]),
            st.integers(0, 9).map(lambda number: -number - 1),
        ),
        max_size=60,
    )
)
def test_it_never_takes_more_than_was_in_use_at_one_time(steps: list[int]) -> None:
    """And what is in use is nobody else's. Steps: a size is taken, or one given back."""
    memory = Memory(1000)
    in_use: list[memoryview] = []
    owned: list[bytes] = []
    most = 0
    for step in steps:
        if step >= 0:
            buffer = memory.take(step)
            assert len(buffer) == step
            # What is in the others stays as it is.
            if step:
                buffer[:] = bytes([len(in_use)]) * step
            in_use.append(buffer)
            owned.append(bytes(buffer))
        elif in_use:
            which = -step % len(in_use)
            memory.give_back(in_use.pop(which))
            owned.pop(which)
        assert [bytes(each) for each in in_use] == owned
        most = max(most, sum(map(len, in_use)))
        assert memory.used == sum(map(len, in_use))
        free = [each for buffers in memory._free.values() for each in buffers]
        assert memory.kept == sum(map(len, free))
        assert memory.used + memory.kept <= most
        assert all(memory._free.values())
