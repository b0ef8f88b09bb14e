"""Threads that wait for each other, in real time."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from trio_vfio._receive._signal import Signal

from .waiting import LONG, until_waiting


def test_a_thread_that_waits_is_woken() -> None:
    signal = Signal(threading.Lock())
    ready: list[bool] = []
    seen: list[bool] = []

    def wait() -> None:
        with signal.lock:
            signal.wait_for(lambda: bool(ready), LONG)
            seen.append(bool(ready))

    threads = [threading.Thread(target=wait) for _ in range(10)]
    for thread in threads:
        thread.start()
    until_waiting(signal, 10)
    with signal.lock:
        ready.append(True)
        signal.notify_all()
    for thread in threads:
        thread.join(LONG)
    assert seen == [True] * 10
    assert signal._waiting == []


def test_who_is_woken_in_vain_waits_on() -> None:
    signal = Signal(threading.Lock())
    looks = 0

    def ready() -> bool:
        nonlocal looks
        looks += 1
        return looks > 4

    def wait() -> None:
        with signal.lock:
            signal.wait_for(ready, LONG)

    thread = threading.Thread(target=wait)
    thread.start()
    for look in range(1, 5):
        until_waiting(signal)
        with signal.lock:
            assert looks == look
            signal.notify_all()
    thread.join(LONG)
    assert (looks, signal._waiting) == (5, [])


def test_what_is_so_already_is_not_waited_for() -> None:
    signal = Signal(threading.Lock())
    with signal.lock:
        signal.wait_for(lambda: True, LONG)
        signal.notify_all()


def test_patience_has_an_end() -> None:
    signal = Signal(threading.Lock())
    with signal.lock:
        began = time.monotonic()
        signal.wait_for(lambda: False, 0.02)
        assert time.monotonic() - began >= 0.02
        assert signal.lock.locked()
        assert signal._waiting == []


def test_what_the_question_raises_comes_through() -> None:
    signal = Signal(threading.Lock())
    with signal.lock:
        with pytest.raises(ZeroDivisionError):
            signal.wait_for(lambda: bool(1 // 0), LONG)
        assert signal.lock.locked()


def test_no_call_is_lost() -> None:
    """Threads take from each other in turn: one that missed a call would be late."""
    signal = Signal(threading.Lock())
    turns, count = 3000, 4
    taken: list[int] = []
    began = time.monotonic()

    def is_turn(number: int) -> bool:
        return len(taken) == number

    def take_turns(number: int) -> None:
        while number < turns:
            with signal.lock:
                signal.wait_for(partial(is_turn, number), LONG)
                taken.append(number)
                signal.notify_all()
            number += count

    threads = [threading.Thread(target=take_turns, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert taken == list(range(turns))
    assert time.monotonic() - began < LONG
    assert signal._waiting == []
