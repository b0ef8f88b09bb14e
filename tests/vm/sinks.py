"""Where ``trio-vfio receive`` puts the state of devices, for tests that try them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

import attrs

from trio_vfio._wire._limits import KIB

from .mtty import Mtty
from .qemu import idstr


@final
@attrs.frozen
class Sinks:
    """One sink for each device of a migration."""

    options: Sequence[str]
    """Of the command."""
    loaded: Callable[[], Sequence[bytes]]
    """Returns what each has taken, after the migration; nothing if it keeps nothing."""


MakeSinks = Callable[[Path, Sequence[Mtty], Callable[..., list[Mtty]]], Sinks]
"""Makes sinks, given a directory, the devices they are for, and what makes devices."""


def snapshot(
    directory: Path, devices: Sequence[Mtty], _: Callable[..., list[Mtty]]
) -> Sinks:
    """``--into DIR``."""
    into = directory / "snapshot"

    def loaded() -> list[bytes]:
        kept = json.loads((into / "manifest.json").read_bytes())["devices"]
        assert [each["idstr"] for each in kept] == [*map(idstr, range(len(devices)))]
        return [(into / each["data"]).read_bytes() for each in kept]

    return Sinks([f"--into={into}"], loaded)


def files(
    directory: Path, devices: Sequence[Mtty], _: Callable[..., list[Mtty]]
) -> Sinks:
    """``file:PATH``."""
    paths = [directory / f"state{number}" for number in range(len(devices))]
    options = [
        f"--device={idstr(number)}=file:{path}" for number, path in enumerate(paths)
    ]
    return Sinks(options, lambda: [path.read_bytes() for path in paths])


def nothing(_: Path, devices: Sequence[Mtty], __: Callable[..., list[Mtty]]) -> Sinks:
    """``null:``."""
    options = [f"--device={idstr(number)}=null:" for number in range(len(devices))]
    return Sinks(options, list)


def kernel(_: Path, devices: Sequence[Mtty], make: Callable[..., list[Mtty]]) -> Sinks:
    """``vfio:UUID``, of devices like those."""
    taking = [
        made
        for device in devices
        for made in make(ports=device.ports, pad_kib=len(device.saved()) // KIB)
    ]
    options = [
        f"--device={idstr(number)}=vfio:{device.uuid}"
        for number, device in enumerate(taking)
    ]
    return Sinks(options, lambda: [device.saved() for device in taking])


SINKS: Final = MappingProxyType(
    {"snapshot": snapshot, "file": files, "null": nothing, "kernel": kernel},
)
"""All that there are."""
