"""What tests in the VM share."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from . import mtty
from .mtty import Mtty
from .saved import Saved


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks of these tests."""
    config.addinivalue_line("markers", "qemu_11: runs with QEMU 11.1, too")


@pytest.fixture
def mttys() -> Generator[Callable[..., list[Mtty]]]:
    """Make devices as `mtty.create` does; all is as before after the test."""
    mtty.remove_all()
    mtty.clear_parameters()
    yield mtty.create
    mtty.close_leftovers()
    mtty.clear_parameters()
    mtty.remove_all()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """What a QEMU has saved, once for all tests."""
    return Saved.make(tmp_path_factory.mktemp("saved"))
