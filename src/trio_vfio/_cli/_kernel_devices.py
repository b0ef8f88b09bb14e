"""Devices of the kernel that a command loads: opened before, and let work after."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import click

from .. import (
    DeviceError,
    FileSink,
    StateSink,
    StateSource,
    VfioSink,
    VfioSource,
    run_devices,
)
from .._errors import describe

Sinks: TypeAlias = Mapping[tuple[str, int], StateSink]
"""Where the state of devices goes, by idstr and instance id."""
Sources: TypeAlias = Mapping[tuple[str, int], StateSource]
"""Where it comes from."""

_C = TypeVar("_C", bound=Callable[..., Any])


def run_option(command: _C) -> _C:
    """Give *command* the option ``--run``."""
    return click.option(
        "--run/--no-run",
        "runs",
        default=True,
        show_default=True,
        help="Whether vfio: devices work when they have their state.",
    )(command)


@asynccontextmanager
async def opened(devices: Sinks | Sources) -> AsyncGenerator[None]:
    """Have the kernel's devices among *devices* open while the block runs.

    So one that cannot be had is known before there is a peer, or a source has
    stopped its guest. Files that are replaced are kept until the block ends: if the
    migration fails then, they come back.

    Raises:
      DeviceError: if one cannot be opened.
    """
    async with AsyncExitStack() as stack:
        for key, device in devices.items():
            if isinstance(device, FileSink):
                await stack.enter_async_context(device.keeping_earlier())
            if isinstance(device, (VfioSink, VfioSource)):
                await stack.enter_async_context(device)
                try:
                    await device.open()
                except OSError as error:
                    why = describe(error)
                    raise DeviceError(*key, "open", why, errno=error.errno) from error
        yield


async def let_work(sinks: Sinks) -> None:
    """Let the kernel's devices among *sinks* work, which are loaded.

    Raises:
      ExceptionGroup: of an `OSError` for each that refuses.
    """
    await run_devices(sink for sink in sinks.values() if isinstance(sink, VfioSink))
