"""Unit tests of how threads are scheduled while they move state."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from trio_vfio._batch import as_batch
from trio_vfio._device._writing import write_buffers


def policy() -> int:
    return os.sched_getscheduler(0)


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """A thread that dies with what it was given."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


def in_block(*, fails: bool = False) -> tuple[int, int]:
    """Return the policy in the block, and behind it."""
    within = -1
    try:
        with as_batch():
            within = policy()
            if fails:
                raise LookupError
    except LookupError:
        assert fails
    return within, policy()


@pytest.mark.parametrize("fails", [False, True])
def test_a_thread_is_one_of_a_batch_for_a_while(
    fails: bool, thread: ThreadPoolExecutor
) -> None:
    found = thread.submit(in_block, fails=fails).result()
    assert found == (os.SCHED_BATCH, os.SCHED_OTHER)
    assert policy() == os.SCHED_OTHER


def test_what_somebody_has_chosen_stays(thread: ThreadPoolExecutor) -> None:
    lowest = os.sched_param(0)
    thread.submit(os.sched_setscheduler, 0, os.SCHED_IDLE, lowest).result()
    found = thread.submit(in_block).result()
    assert found == (os.SCHED_IDLE, os.SCHED_IDLE)


def test_what_is_chosen_meanwhile_stays(thread: ThreadPoolExecutor) -> None:
    def choose() -> int:
        with as_batch():
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return policy()

    assert thread.submit(choose).result() == os.SCHED_IDLE


@pytest.mark.parametrize("call", ["sched_getscheduler", "sched_setscheduler"])
def test_who_may_not_choose_goes_on(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with as_batch():
            pass
    assert policy() == os.SCHED_OTHER


def test_who_writes_to_a_device_is_one(thread: ThreadPoolExecutor) -> None:
    def buffers() -> Iterator[memoryview]:
        policies.append(policy())
        yield memoryview(b"data")

    policies: list[int] = []
    reading, writing = os.pipe()
    thread.submit(write_buffers, writing, buffers(), lambda: None).result()
    os.close(writing)
    os.close(reading)
    assert policies == [os.SCHED_BATCH]
    assert thread.submit(policy).result() == os.SCHED_OTHER
