"""Devices as arguments of a command: ``DEV``, and ``IDSTR=DEV``.

What a DEV can be stands in two tables, one for where state goes and one for where it
comes from. Nothing is opened before the migration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, TypeAlias, TypeVar, final

import attrs
import click

from .. import StateSink, StateSource
from .._device import (
    FdSink,
    FdSource,
    FileSink,
    FileSource,
    NullSink,
    NullSource,
    VfioInterface,
    VfioSink,
    VfioSource,
    sysfs_path,
)
from ._options import Size

_T = TypeVar("_T")

_WAYS: Final[Mapping[str, VfioInterface]] = MappingProxyType(
    {"cdev": "cdev", "group": "group"}
)
_KERNEL_FORMS: Final = ("vfio:DEVICE[,cdev|,group]",)


@attrs.frozen
class SourceOptions:
    """What a command decides about all its sources."""

    precopy_bytes: int = 0
    """How much of one that is no device may go before the switchover."""
    run_on: bool = False
    """Whether a kernel's device goes on in the end."""


MakeSource: TypeAlias = Callable[[SourceOptions], StateSource]
"""Makes a source."""


@attrs.frozen
class Kind(Generic[_T]):
    """One kind of device."""

    forms: tuple[str, ...]
    """How it is written, for people to read."""
    make: Callable[[str], _T | None]
    """Makes what stands for it of the text behind the colon; None if that is wrong."""


def _file_sink(path: str) -> StateSink | None:
    return FileSink(Path(path)) if path else None


def _fd_sink(number: str) -> StateSink | None:
    return FdSink(int(number)) if _is_number(number) else None


def _null_sink(rest: str) -> StateSink | None:
    return None if rest else NullSink()


def _file_source(path: str) -> MakeSource | None:
    if not path:
        return None
    return lambda how: FileSource(Path(path), precopy_bytes=how.precopy_bytes)


def _fd_source(number: str) -> MakeSource | None:
    if not _is_number(number):
        return None
    return lambda how: FdSource(int(number), precopy_bytes=how.precopy_bytes)


def _null_source(size: str) -> MakeSource | None:
    count = Size().convert(size, None, None) if size else 0
    return lambda _: NullSource(count)


def _kernel_sink(text: str) -> StateSink | None:
    parsed = _parse_kernel(text)
    return None if parsed is None else VfioSink(parsed[0], through=parsed[1])


def _kernel_source(text: str) -> MakeSource | None:
    parsed = _parse_kernel(text)
    if parsed is None:
        return None
    where, through = parsed
    return lambda how: VfioSource(where, through=through, run_on=how.run_on)


def _parse_kernel(text: str) -> tuple[str | int, VfioInterface | None] | None:
    """Return which device ``vfio:`` means, and how it is to be opened."""
    where, comma, way = text.partition(",")
    through = _WAYS.get(way)
    if comma and through is None:
        return None
    number = where.removeprefix("fd:")
    if number != where:
        return (int(number), through) if _is_number(number) and not comma else None
    try:
        sysfs_path(where)
    except ValueError:
        return None
    return where, through


SINKS: Final[Mapping[str, Kind[StateSink]]] = MappingProxyType(
    {
        "vfio": Kind(_KERNEL_FORMS, _kernel_sink),
        "file": Kind(("file:PATH",), _file_sink),
        "fd": Kind(("fd:N",), _fd_sink),
        "null": Kind(("null:",), _null_sink),
    }
)

SOURCES: Final[Mapping[str, Kind[MakeSource]]] = MappingProxyType(
    {
        "vfio": Kind(_KERNEL_FORMS, _kernel_source),
        "file": Kind(("file:PATH",), _file_source),
        "fd": Kind(("fd:N",), _fd_source),
        "null": Kind(("null:", "null:SIZE"), _null_source),
    }
)

_KERNEL_HELP: Final = (
    "vfio:DEVICE (of this host: a PCI address, the UUID of a mediated device,"
    " /dev/vfio/devices/vfioN, or fd:N for one that is open; behind it, ',cdev' or"
    " ',group' says how to open it), "
)
SINK_HELP: Final = (
    f"{_KERNEL_HELP}file:PATH (data; the config goes to PATH.config; no device node, FIFO"
    " or socket), fd:N (an open descriptor; if it is stdout, the result is shown on"
    " stderr) or null: (nowhere). No two of these, and no --trace, may be one file"
)
SOURCE_HELP: Final = (
    f"{_KERNEL_HELP}file:PATH (data; the config is in PATH.config, if there is one),"
    " fd:N (an open descriptor), null: or null:SIZE (zeros)"
)


@final
class DeviceType(click.ParamType[_T]):
    """A device: ``DEV``."""

    name = "dev"

    def __init__(self, kinds: Mapping[str, Kind[_T]]) -> None:
        self._kinds = kinds

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> _T:
        """Parse *value*. Opens nothing."""
        name, colon, rest = str(value).partition(":")
        kind = self._kinds.get(name) if colon else None
        made = None if kind is None else kind.make(rest)
        if made is None:
            self.fail(f"{value!r} is no device; known are {self._known()}.", param, ctx)
        return made

    def _known(self) -> str:
        *most, last = [form for kind in self._kinds.values() for form in kind.forms]
        return f"{', '.join(most)} and {last}"


@final
class NamedDeviceType(click.ParamType[tuple[str, _T]]):
    """A device and its name in the migration: ``IDSTR=DEV``."""

    name = "idstr=dev"

    def __init__(self, kinds: Mapping[str, Kind[_T]]) -> None:
        self._device = DeviceType(kinds)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, _T]:
        """Parse *value*. Opens nothing."""
        idstr, equals, device = str(value).partition("=")
        if not (idstr and equals and ":" in device):
            self.fail(f"{value!r} is not IDSTR=DEV.", param, ctx)
        return idstr, self._device.convert(device, param, ctx)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 8
