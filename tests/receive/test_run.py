"""Pure: the buffers of one call, handed out one by one."""

from __future__ import annotations

import hashlib

from trio_vfio._receive._run import Run, Written


def buffers(*data: bytes) -> list[tuple[int | None, memoryview]]:
    """Number *data* from 5 on."""
    return [(idx, memoryview(each)) for idx, each in enumerate(data, 5)]


def test_a_buffer_counts_when_the_next_is_asked_for() -> None:
    written = Written(hashlib.sha256())
    run = Run(written, buffers(b"abc", b"de"))
    assert bytes(next(run)) == b"abc"
    assert (written.bytes, written.idx) == (0, 5)
    assert bytes(next(run)) == b"de"
    assert (written.bytes, written.idx) == (3, 6)
    assert next(run, None) is None
    assert (written.bytes, written.idx, run.exhausted) == (5, None, True)
    assert written.digest is not None
    assert written.digest.hexdigest() == hashlib.sha256(b"abcde").hexdigest()


def test_empty_buffers_are_not_handed_out() -> None:
    written = Written()
    assert [bytes(each) for each in Run(written, buffers(b"", b"a", b"", b""))] == [
        b"a"
    ]
    assert written.bytes == 1


def test_a_run_that_is_told_to_stop_ends_at_the_next_buffer() -> None:
    written = Written()
    run = Run(written, buffers(b"a", b"b"))
    next(run)
    written.stopping = True
    assert next(run, None) is None
    assert (written.bytes, run.exhausted) == (1, True)


def test_a_run_that_was_left_early_is_not_exhausted() -> None:
    run = Run(Written(), buffers(b"a"))
    next(run)
    assert not run.exhausted
