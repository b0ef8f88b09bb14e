"""Pure: the buffers of one call, handed out one by one."""

from __future__ import annotations

import hashlib

from trio_vfio._migration._position import Position
from trio_vfio._receive._run import Run


def buffers(*data: bytes) -> list[tuple[int | None, memoryview]]:
    """Number *data* from 5 on."""
    return [(idx, memoryview(each)) for idx, each in enumerate(data, 5)]


def test_a_buffer_counts_when_the_next_is_asked_for() -> None:
    position = Position(hashlib.sha256())
    run = Run(position, buffers(b"abc", b"de"))
    assert bytes(next(run)) == b"abc"
    assert (position.bytes, position.idx) == (0, 5)
    assert bytes(next(run)) == b"de"
    assert (position.bytes, position.idx) == (3, 6)
    assert next(run, None) is None
    assert (position.bytes, position.idx, run.exhausted) == (5, None, True)
    assert position.digest is not None
    assert position.digest.hexdigest() == hashlib.sha256(b"abcde").hexdigest()


def test_empty_buffers_are_not_handed_out() -> None:
    position = Position()
    assert [bytes(each) for each in Run(position, buffers(b"", b"a", b"", b""))] == [
        b"a"
    ]
    assert position.bytes == 1


def test_a_run_that_is_told_to_stop_ends_at_the_next_buffer() -> None:
    position = Position()
    run = Run(position, buffers(b"a", b"b"))
    next(run)
    position.stopping = True
    assert next(run, None) is None
    assert (position.bytes, run.exhausted) == (1, True)


def test_a_run_that_was_left_early_is_not_exhausted() -> None:
    run = Run(Position(), buffers(b"a"))
    next(run)
    assert not run.exhausted
