"""What tests of the command have in common."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Have SIGINT interrupt this process and those it starts; undo what a test sets.

    A shell without job control lets what it runs in the background ignore SIGINT, and
    ``nohup`` lets it ignore SIGHUP. The command's own handlers stay when it has ended.
    """
    ours = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = {each: signal.getsignal(each) for each in ours}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
