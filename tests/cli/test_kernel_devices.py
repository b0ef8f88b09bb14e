"""Devices of the kernel on the command line, on a host that has none."""

from __future__ import annotations

import json

import pytest

from trio_vfio._cli._devices import SINKS, SOURCES, SourceOptions
from trio_vfio._cli._main import run_command
from trio_vfio._device import VfioSink, VfioSource, _kernel_devices

ABSENT = "ffff:ff:1f.7"
UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


@pytest.mark.parametrize("way", ["", ",cdev", ",group"])
@pytest.mark.parametrize("where", [ABSENT, UUID, "/dev/vfio/devices/vfio12"])
def test_names(where: str, way: str) -> None:
    assert isinstance(SINKS["vfio"].make(where + way), VfioSink)
    make = SOURCES["vfio"].make(where + way)
    assert make is not None
    assert isinstance(make(SourceOptions()), VfioSource)


def test_a_descriptor() -> None:
    assert isinstance(SINKS["vfio"].make("fd:3"), VfioSink)


@pytest.mark.parametrize(
    "text",
    ["", "eth0", "fd:", "fd:-1", "fd:3,group", f"{UUID},", f"{UUID},iommufd", ",group"],
)
def test_what_is_no_device(text: str) -> None:
    assert SINKS["vfio"].make(text) is None
    assert SOURCES["vfio"].make(text) is None


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """It is known before anybody can connect."""
    device = f"--device=a/vfio=vfio:{ABSENT}"
    assert run_command(["receive", "tcp:127.0.0.1:0", device]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"trio-vfio: error: a/vfio: open: ENODEV: there is no such device: {ABSENT}"
    ]


def test_a_source_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """It is known before there is a connection, which nobody would take here."""
    device = f"--device=a/vfio=vfio:{ABSENT}"
    assert run_command(["send", "tcp:127.0.0.1:1", device]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"trio-vfio: error: a/vfio: open: ENODEV: there is no such device: {ABSENT}"
    ]


def test_no_devices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever this host has is not to be opened by a test.
    monkeypatch.setattr(_kernel_devices, "vfio_devices", list)
    assert run_command(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"devices": []}
    assert run_command(["devices"]) == 0
    said = capsys.readouterr().out
    assert said == "no device is bound to a driver for VFIO\n"
