"""Devices that a QEMU has saved, for whoever sends them on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self, final

import attrs
import trio

from . import mtty, qemu
from .checks import PAD_KIB, make_devices, registers
from .mtty import Mtty
from .qemu import FIRST_MULTIFD_MACHINE, Setup
from .receiving import receive

COUNT: Final = 2
"""How many they are."""


@final
@attrs.frozen
class Saved:
    """A snapshot of devices from `make_devices`, padded, with configs of QEMU's."""

    directory: Path

    @classmethod
    def make(cls, where: Path) -> Self:
        """Make it in *where*. There are no mtty devices before and after."""
        mtty.remove_all()
        devices = make_devices(mtty.create, COUNT, pad_kib=PAD_KIB)

        async def save() -> None:
            setup = Setup(machine=FIRST_MULTIFD_MACHINE)
            async with qemu.source(devices, where, setup) as source:
                await receive(source, where)

        trio.run(save)
        mtty.remove_all()
        return cls(where / "snapshot")

    @property
    def paths(self) -> list[Path]:
        """Where the data of each is; beside it, with ``.config``, its config."""
        manifest = json.loads((self.directory / "manifest.json").read_bytes())
        return [self.directory / each["data"] for each in manifest["devices"]]

    def check_loaded(self, devices: Sequence[Mtty]) -> None:
        """Assert that *devices* are now as those were."""
        for number, (device, path) in enumerate(zip(devices, self.paths, strict=True)):
            assert device.registers() == registers(number)
            assert device.saved() == path.read_bytes()
