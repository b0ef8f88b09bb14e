"""What the other side is told: the main channel's bytes and the config, as files."""

from __future__ import annotations

from pathlib import Path

import attrs

from trio_vfio.testing import MainStream, config_packet

from .programs.packet import HEADER_SIZE, SWITCHOVER_START, idstr

# The size of what QEMU sends of a PCI device, more or less.
_CONFIG = bytes(range(256)) * 16


@attrs.frozen
class StreamFiles:
    """Files for programs that have no encoder of their own."""

    before: Path
    """The main channel up to SWITCHOVER_START, as `open_outgoing` sends it."""
    after: Path
    """The main channel behind SWITCHOVER_START."""
    config: Path
    """The data of each device's last packet."""
    switchover_at: int
    """Where SWITCHOVER_START stands in the main channel, in bytes."""

    @classmethod
    def write(cls, folder: Path, devices: int) -> StreamFiles:
        """Write the files for a migration of *devices* devices to *folder*."""
        main = MainStream()
        before = main.begin(*map(idstr, range(devices)), machine="none")
        assert main.switch_over() == SWITCHOVER_START
        contents = {
            "before": before,
            "after": main.end(),
            "config": config_packet(idstr(0), 0, _CONFIG)[HEADER_SIZE:],
        }
        paths = {name: folder / f"{name}-{devices}" for name in contents}
        for name, content in contents.items():
            paths[name].write_bytes(content)
        return cls(**paths, switchover_at=len(before))
