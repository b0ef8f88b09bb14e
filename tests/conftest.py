"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Generator
from typing import Any

import pytest

from tests.forms import form, use_long_form
from tests.warm import warm_processes

# Set in the VM that `nox -s vm` makes, where only tests/vm runs.
_IN_VM = "TRIO_VFIO_VM" in os.environ

if not _IN_VM:
    # It needs VFIO devices.
    collect_ignore = ["vm"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        help="run long tests in their long form: more seeds, orders and examples",
    )


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until tests run: collection makes little garbage
    # Tests start more than a hundred processes. Without bytecode on disk, each of them
    # compiles the package again, which is a quarter of its start-up.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Under nohup it is ignored, and so it would be in every process that a test starts.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Before test modules are imported, because they choose their parameters by it.
    if config.getoption("long"):
        use_long_form()
    if not _IN_VM:
        from hypothesis import settings

        # The same examples every time, however slow the machine: a test that fails
        # fails again.
        settings.register_profile(
            "trio_vfio",
            derandomize=True,
            deadline=None,
            max_examples=form(short=40, long=100),
        )
        settings.load_profile("trio_vfio")


def pytest_collection_finish() -> None:
    # Modules and thousands of test items live until the end. If the garbage collector
    # looks at them each time, it takes most of the time of simulated campaigns, which
    # collect all garbage often.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def running_clock(mock_clock: Any) -> Any:
    """Return a clock of real time that can jump: a `trio.testing.MockClock`."""
    mock_clock.rate = 1
    return mock_clock


@pytest.fixture(scope="session")
def warm_popen() -> Generator[type[subprocess.Popen[Any]]]:
    """Return a `subprocess.Popen` whose commands and examples need not import."""
    with warm_processes() as popen:
        yield popen


@pytest.fixture
def warm(
    warm_popen: type[subprocess.Popen[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fork commands and examples from a process that has imported them already."""
    monkeypatch.setattr(subprocess, "Popen", warm_popen)


def pytest_report_header() -> str:
    return f"long tests: {form(short='short form', long='long form')}"
