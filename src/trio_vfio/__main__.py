"""The command ``trio-vfio``, also as ``python -m trio_vfio``."""

from __future__ import annotations

import signal
import sys

_NEEDS = frozenset({"click", "rich"})


def main() -> int:
    """Run the command. Returns its exit status, which no signal changes any more."""
    try:
        return _run()
    except KeyboardInterrupt:
        # Wherever there is nothing to cancel yet. While the package itself is loaded,
        # before this module, SIGINT is Python's own.
        return 130
    finally:
        # Python gives both their default action, which ends the process, while it
        # shuts down. It leaves alone what is ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _run() -> int:
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
    return run_command()


if __name__ == "__main__":
    sys.exit(main())
