"""The command's errors and its exit status.

0 complete, 1 failed, 2 usage, 128 + signal if one ended it.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Sequence

import click

from ._demo import demo
from ._faults import leaves, line
from ._inspect import inspect
from ._list_devices import devices
from ._load import load
from ._options import traceback_option
from ._plain import Settings, show_error
from ._receive import receive
from ._save import save
from ._send import send
from ._version import version


class _Commands(click.Group):
    """All commands; `simulate` is loaded when it is asked for.

    What it needs takes longer to load than all else together.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "simulate"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "simulate":
            from ._simulate import simulate  # noqa: PLC0415

            return simulate
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(version(), message="%(prog)s %(version)s")
@traceback_option
def group() -> None:
    """Migrate VFIO devices, from and to QEMU and each other."""


group.add_command(demo)
group.add_command(receive)
group.add_command(send)
group.add_command(devices)
group.add_command(save)
group.add_command(load)
group.add_command(inspect)


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status. Errors are lines on stderr.

    Args:
      arguments: without the name of the command; None: those of this process.
    """
    settings = Settings()
    try:
        return _run(arguments, settings)
    except click.UsageError as error:
        show_error(_usage(error))
        return 2
    except click.Abort:
        return 128 + signal.SIGINT
    except Exception as error:  # noqa: BLE001 (the last resort)
        for fault in leaves(error):
            show_error(line(fault))
        if settings.traceback:
            traceback.print_exception(error)
        return 1


def _run(arguments: Sequence[str] | None, settings: Settings) -> int:
    status = group.main(
        arguments, prog_name="trio-vfio", standalone_mode=False, obj=settings
    )
    return int(status or 0)


def _usage(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split())
    if error.ctx is None:
        return message
    return f"{message.removesuffix('.')} (see {error.ctx.command_path} --help)"
