"""What tests in the VM share."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.warm import warm_processes

from . import mtty
from .mtty import Mtty
from .saved import Saved


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests here time, and let tests from elsewhere run in each system.

    All that tests here start has a deadline of its own, which is shorter. Others come
    for the system's Python and libraries.
    """
    for item in items:
        here = item.path.parent == Path(__file__).parent
        item.add_marker(pytest.mark.timeout(180) if here else pytest.mark.qemu_11)


@pytest.fixture(scope="session", autouse=True)
def warm() -> Generator[None]:
    """Processes of the command and the example need not import."""
    with warm_processes() as popen, pytest.MonkeyPatch.context() as patch:
        patch.setattr("subprocess.Popen", popen)
        yield


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
