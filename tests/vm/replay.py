"""What it takes to play a capture to a real QEMU, or to send it something else."""

from __future__ import annotations

import json
from typing import Any

from ..captures_data import CaptureFiles
from .checks import Mttys
from .mtty import Mtty
from .qemu import Qemu, Setup


def meta_of(files: CaptureFiles) -> dict[str, Any]:
    """Return how a capture was made, and what was seen."""
    return dict(json.loads((files.directory / "meta.json").read_bytes()))


def setup_of(files: CaptureFiles) -> Setup:
    """Return how a destination is set up that takes what a capture holds."""
    settings = meta_of(files)["settings"]
    return Setup(
        machine=machine_of(files),
        channels=settings["channels"] if settings["multifd"] else None,
        transfer=settings["transfer"],
        return_path=settings["rp"],
        switchover_ack=settings["ack"],
    )


def machine_of(files: CaptureFiles) -> str:
    """Return the machine type, which stands behind the header and a mark."""
    raw = files.main
    length = int.from_bytes(raw[9:13])
    return raw[13 : 13 + length].decode()


def devices_for(files: CaptureFiles, mttys: Mttys) -> list[Mtty]:
    """Make the devices that take what a capture holds."""
    sizes = {device["data_bytes"] for device in files.expected["devices"]}
    (size,) = sizes
    return mttys(count=len(files.expected["devices"]), pad_kib=size // 1024)


async def accept(destination: Qemu) -> None:
    """Let the guest run, and then let go of the devices."""
    assert await destination.wait_status("completed") == "completed"
    await destination.cont()
    assert await destination.run_state() == "running"
    assert await destination.quit() == 0
