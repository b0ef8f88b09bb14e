"""The command ``trio-vfio``, also as ``python -m trio_vfio``."""

from __future__ import annotations

import signal
import sys

from ._cli._output import protect_output, report_lost_result

_NEEDS = frozenset({"click", "rich"})


def main() -> int:
    """Run the command. Returns its exit status.

    No signal changes the status any more, and neither does Python when it exits,
    whatever has become of stdout and stderr.
    """
    try:
        results = protect_output()
        status = _run()
        report_lost_result(results)
        return status
    except KeyboardInterrupt:
        # Wherever there is nothing to cancel yet. While the package itself is loaded,
        # before this module, SIGINT is Python's own.
        return 130
    finally:
        # Python gives them their default action, which ends the process, while it
        # shuts down. It leaves alone what is ignored.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
