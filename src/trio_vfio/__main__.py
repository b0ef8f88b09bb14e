"""The command ``trio-vfio``, also as ``python -m trio_vfio``."""

from __future__ import annotations

import sys

_NEEDS = frozenset({"click", "rich"})


def main() -> int:
    """Run the command. Returns its exit status."""
    try:
        from ._cli._main import run_command  # noqa: PLC0415 (may be missing)
    except ModuleNotFoundError as error:
        # Only what the extra brings: anything else missing is a fault of ours.
        if error.name is None or error.name.partition(".")[0] not in _NEEDS:
            raise
        sys.stderr.write(
            "trio-vfio: error: the command needs more packages:"
            " pip install 'trio-vfio[cli]'\n"
        )
        return 1
    try:
        return run_command()
    except KeyboardInterrupt:
        # Before Trio has taken the signals over, or after.
        return 130


if __name__ == "__main__":
    sys.exit(main())
