"""Aliases for the types of arguments that users pass in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import trio

from ._device._port import StateSink, StateSource
from ._result import MigrationResult

DeviceName: TypeAlias = str | tuple[str, int]
"""An idstr, or an idstr and an instance id that is not 0."""

Sinks: TypeAlias = (
    Mapping[str, StateSink]
    | Mapping[tuple[str, int], StateSink]
    | Mapping[DeviceName, StateSink]
    | Callable[[str, int], StateSink | None]
)
"""Sinks by device name, or a function that makes a sink for any device.

The function gets the idstr and the instance id. It returns None to refuse the device.
"""

Sources: TypeAlias = (
    Mapping[str, StateSource]
    | Mapping[tuple[str, int], StateSource]
    | Mapping[DeviceName, StateSource]
)
"""Sources by device name."""

AcceptFrom: TypeAlias = (
    str | Sequence[trio.abc.Listener[trio.abc.Stream] | trio.abc.Stream]
)
"""An address to listen on, or listeners and connected streams of the caller's."""

Connect: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]
"""Opens one connection to the destination. The main channel's connection is the first."""

BeforeSwitchover: TypeAlias = Callable[[], Awaitable[None]]
"""Stops the source's guest. Called once, after the last round of pre-copy."""

BeforeShut: TypeAlias = Callable[[MigrationResult], Awaitable[None]]
"""Called at the destination when all devices are loaded, before the source is told."""
