"""Pure tests of the sources: imports point one way, public names are documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Final

import attrs
import pytest

import trio_vfio

_PACKAGE: Final = "trio_vfio"
_ROOT: Final = Path(trio_vfio.__path__[0])
_LINES: Final = 400


@attrs.frozen
class May:
    """What one part of the package may import; `PUBLIC` is `trio_vfio` itself."""

    ours: str
    """Parts, or modules of them. A part may always import itself."""

    others: str = "attrs"
    """Packages that are neither ours nor the standard library's."""

    not_even: str = ""
    """Modules of the standard library that it is to do without."""


PUBLIC: Final = "trio_vfio"

_IO: Final = "asyncio io os pathlib select selectors signal socket ssl subprocess"
_CLOCKS_AND_THREADS: Final = "concurrent datetime queue random sched threading time"
_SANS_IO: Final = f"{_IO} {_CLOCKS_AND_THREADS} logging"

# Read it from top to bottom: what stands lower may import what stands higher.
ALLOWED: Final = MappingProxyType(
    {
        "_public": May("", ""),
        "_result": May(""),
        "_errors": May("_result"),
        "_deadlines": May(""),
        "_values": May("", "trio_util"),
        "_trace": May("", "attrs trio"),
        "_batch": May("", ""),
        "_wire": May("_errors", "attrs", not_even=_SANS_IO),
        "_link": May("_errors", "attrs trio"),
        "_device": May("_errors _result _batch _wire._config_blob", "attrs trio"),
        "_types": May("_device._port _result", "trio"),
        "_migration": May("_errors _result _values _deadlines _trace", "attrs trio"),
        "_receive": May(
            "_migration _wire _link _device._port _errors _result _values _deadlines"
            " _trace _types _batch",
            "attrs trio",
        ),
        "_send": May(
            "_migration _wire _link _device._port _errors _result _values _deadlines"
            " _trace _types",
            "attrs trio",
        ),
        "_capture": May("_wire _device _errors _result _types", "attrs trio"),
        "__init__": May(
            "_receive _send _migration _capture _device _wire._config_blob _errors"
            " _result _deadlines"
            " _trace _types _public"
        ),
        # Nothing below this line is imported from above it.
        "testing": May(
            f"{PUBLIC} _capture _receive _send _wire _link _device._port _errors"
            " _result _types _public",
            "attrs trio",
        ),
        "_cli": May(
            f"{PUBLIC} testing _capture _link _device _errors _result",
            "attrs click rich trio",
        ),
        "__main__": May("_cli", ""),
    }
)

# Modules that are taken by name, by those who have what they import.
EXTRAS: Final = MappingProxyType(
    {
        "testing/pytest_plugin.py": "pytest",
        "testing/strategies.py": "hypothesis",
        "testing/stateful.py": "hypothesis",
    }
)


@attrs.frozen
class Import:
    """One module that another one imports, by its full name."""

    path: Path
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(_ROOT)}:{self.line} imports {self.name}"


def _modules(part: str) -> list[Path]:
    file = _ROOT / f"{part}.py"
    return [file] if file.exists() else sorted((_ROOT / part).rglob("*.py"))


def _imports(path: Path) -> Iterator[Import]:
    """Every import in a file, those inside functions and for types only included."""
    package = (_PACKAGE, *path.relative_to(_ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            source = ".".join((*base, *filter(None, [node.module])))
            for alias in node.names:
                # `from . import _part` names a module, `from ._part import x` not.
                full = f"{source}.{alias.name}"
                yield Import(path, node.lineno, full if _is_module(full) else source)


def _is_module(name: str) -> bool:
    first, *rest = name.split(".")
    path = _ROOT.joinpath(*rest)
    return first == _PACKAGE and (path.is_dir() or path.with_suffix(".py").exists())


def _within(name: str, prefixes: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in prefixes.split())


def _is_allowed(part: str, imported: Import) -> bool:
    may, name = ALLOWED[part], imported.name
    if _within(name, EXTRAS.get(str(imported.path.relative_to(_ROOT)), "")):
        return True
    if name == _PACKAGE:
        return PUBLIC in may.ours.split()
    if name.startswith(f"{_PACKAGE}."):
        return _within(name.removeprefix(f"{_PACKAGE}."), f"{part} {may.ours}")
    if name.partition(".")[0] in sys.stdlib_module_names:
        return not _within(name, may.not_even)
    return _within(name, may.others)


def _public(module: str) -> Iterator[str]:
    """The names a module gives out: its ``__all__``, or what it imports x as x."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        yield from loaded.__all__
        return
    for node in ast.parse(inspect.getsource(loaded)).body:
        if isinstance(node, ast.ImportFrom):
            yield from (name.name for name in node.names if name.asname == name.name)


def test_the_table_names_every_part() -> None:
    entries = (path for path in _ROOT.iterdir() if list(path.glob("*.py")))
    parts = {path.name for path in entries} | {path.stem for path in _ROOT.glob("*.py")}
    assert parts == set(ALLOWED)


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part: str) -> None:
    found = [each for path in _modules(part) for each in _imports(path)]
    assert found
    assert [str(each) for each in found if not _is_allowed(part, each)] == []


def test_the_table_has_no_circles() -> None:
    seen: set[str] = set()
    for part, may in ALLOWED.items():
        above = {each.partition(".")[0] for each in may.ours.split()} - {PUBLIC}
        assert above <= seen
        seen.add(part)


def test_modules_are_short() -> None:
    lengths = {
        str(path.relative_to(_ROOT)): len(path.read_bytes().splitlines())
        for path in _ROOT.rglob("*.py")
    }
    assert {path: n for path, n in lengths.items() if n > _LINES} == {}


def test_nothing_imports_what_is_taken_by_name() -> None:
    """Not even another module of its kind, but what it is built on."""
    names = {name.removesuffix(".py").replace("/", ".") for name in EXTRAS}
    names -= {"testing.strategies"}
    found = [each for path in _ROOT.rglob("*.py") for each in _imports(path)]
    ours = [each for each in found if each.name.startswith(f"{_PACKAGE}.")]
    assert [
        str(each) for each in ours if each.name.removeprefix(f"{_PACKAGE}.") in names
    ] == []


@pytest.mark.parametrize(
    "module",
    [
        "trio_vfio",
        "trio_vfio.testing",
        "trio_vfio.testing.strategies",
        "trio_vfio.testing.stateful",
    ],
)
def test_public_names_are_documented(module: str) -> None:
    names = list(_public(module))
    assert names
    loaded = importlib.import_module(module)
    # Constants and aliases of types have no docstring of their own.
    documented = {
        name: value
        for name in names
        if inspect.isclass(value := getattr(loaded, name)) or inspect.isroutine(value)
    }
    assert [name for name, value in documented.items() if not value.__doc__] == []
