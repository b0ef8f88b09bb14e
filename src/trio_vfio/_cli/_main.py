"""The command's errors and its exit status.

0 complete, 1 failed, 2 usage, 128 + signal if one ended it.
"""

from __future__ import annotations

import errno
import importlib
import signal
import traceback
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

import click

from ._faults import leaves, line
from ._options import traceback_option
from ._plain import Settings, show_error

_MODULES: Final = MappingProxyType(
    {
        "demo": "_demo",
        "devices": "_list_devices",
        "inspect": "_inspect",
        "load": "_load",
        "receive": "_receive",
        "save": "_save",
        "send": "_send",
        "simulate": "_simulate",
    }
)
"""The module of each command. The command and its function have the same name."""


class _Commands(click.Group):
    """A group that imports the module of a command when the command is run.

    Importing all of them would take more time than anything else at start-up.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_MODULES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (name := _MODULES.get(cmd_name)) is None:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f".{name}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. A group holds its EPIPE, which click takes for stdout's.

        Click would then end the process without a word. Stdout raises nothing here
        (`_output`), so a broken pipe is that of a device or a connection.
        """
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            raise ExceptionGroup("a broken pipe", [error]) from error


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    if value and not ctx.resilient_parsing:
        from ._version import version  # noqa: PLC0415 (slow, and seldom needed)

        click.echo(f"{ctx.info_name} {version()}")
        ctx.exit()


@click.group(
    cls=_Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
@traceback_option
def group() -> None:
    """Migrate VFIO devices, from and to QEMU and each other."""


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
