"""Pure tests of the public names: which there are, and what users can say with them."""

from __future__ import annotations

import ast
import builtins
import enum
import importlib
import inspect
import json
import pickle
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias

import attrs
import pytest

import trio_vfio
from trio_vfio import CaptureStatus, Deadlines, DeviceState, SessionState, Transfer

LIST: Final = Path(__file__).with_name("public_names.txt")
"""One public name per line, with its kind. A change of the interface shows here."""

PACKAGES: Final = ("trio_vfio", "trio_vfio.testing")
BY_NAME: Final = (
    "trio_vfio.testing.pytest_plugin",
    "trio_vfio.testing.stateful",
    "trio_vfio.testing.strategies",
)
"""Public modules that users import by name."""


def public(module: str) -> dict[str, Any]:
    """Return the public names of a module, with their values."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        return {name: getattr(loaded, name) for name in loaded.__all__}
    return {
        name: value
        for name, value in vars(loaded).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and name != "annotations"
        # A package gives out what it imports; a module what it defines.
        and (module in PACKAGES or getattr(value, "__module__", None) == module)
    }


def kind(value: Any) -> str:
    """Say in a word or two what *value* is."""
    if not inspect.isclass(value):
        if not inspect.isroutine(value):
            return "value"
        if inspect.iscoroutinefunction(value):
            return "async function"
        inner = inspect.unwrap(value)
        if inner is not value and inspect.isasyncgenfunction(inner):
            return "async context manager"
        if inner is not value and inspect.isgeneratorfunction(inner):
            return "context manager"
        return "function"
    if issubclass(value, BaseException):
        return "exception"
    if issubclass(value, enum.Enum):
        return "enum"
    return "protocol" if getattr(value, "_is_protocol", False) else "class"


def lines() -> Iterator[str]:
    for module in (*PACKAGES, *BY_NAME):
        for name, value in sorted(public(module).items()):
            yield f"{module}.{name}: {kind(value)}"


def test_list_of_public_names_is_up_to_date() -> None:
    """Write the new list with ``python -m tests.test_public``, and commit it."""
    assert LIST.read_text().splitlines() == list(lines())


# --- Types in public signatures

OURS: Final = {"Connection", "DeviceProgress", "Incoming", "LinkStream", "Outgoing"}
"""Classes that users get from functions, and never construct."""

Annotation: TypeAlias = tuple[str, str, Mapping[str, Any]]
"""Where it stands, its text, and the names that its module knows."""


def modules_of(cls: type) -> Iterator[ModuleType]:
    """Yield the modules that define *cls* and its bases, whatever ``__module__`` is."""
    for base in cls.__mro__:
        for name, module in list(sys.modules.items()):
            if "trio_vfio." in name and vars(module).get(base.__name__) is base:
                yield module


def signatures(name: str, value: Any) -> Iterator[Annotation]:
    """Yield the annotations of *value* and of its public members."""
    if not inspect.isclass(value):
        yield from arguments(name, value)
        return
    for member, found in inspect.getmembers(value):
        if not member.startswith("_") or member in {"__init__", "__new__"}:
            get = found.fget if isinstance(found, property) else found
            yield from arguments(f"{name}.{member}", get)
    if attrs.has(value):
        names = {k: v for module in modules_of(value) for k, v in vars(module).items()}
        for field in attrs.fields(value):
            # A converter hides the type; nobody but us makes the classes of OURS.
            hidden = field.converter is not None or value.__name__ in OURS
            if not field.name.startswith("_") or (field.init and not hidden):
                yield f"{name}.{field.name}", str(field.type), names


def arguments(name: str, value: Any) -> Iterator[Annotation]:
    """Yield the annotations of *value*, if it is a function written by us."""
    function = inspect.unwrap(value) if callable(value) else None
    if not inspect.isfunction(function) or "<attrs" in function.__code__.co_filename:
        return
    if str(function.__globals__["__name__"]).startswith("trio_vfio"):
        for argument, text in function.__annotations__.items():
            yield f"{name}({argument})", text, function.__globals__


def is_ours(value: Any) -> bool:
    """Whether *value*, a name in an annotation, is a type or alias of trio_vfio."""
    if isinstance(value, ModuleType):
        return False
    if inspect.isclass(value):
        return value.__module__.startswith("trio_vfio")
    return not any(value is each for each in vars(typing).values())


def places() -> list[Any]:
    return [
        pytest.param(f"{module}.{name}", value, id=f"{module}.{name}")
        for module in PACKAGES
        for name, value in public(module).items()
        if inspect.isclass(value) or inspect.isroutine(value)
    ]


@pytest.mark.parametrize(("name", "value"), places())
def test_types_in_public_signatures_have_public_names(name: str, value: Any) -> None:
    known = {each for module in PACKAGES for each in public(module)}
    private = {
        f"{place}: {node.id}"
        for place, text, names in signatures(name, value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Name) and node.id not in known
        if is_ours(names.get(node.id, vars(builtins).get(node.id)))
    }
    assert private == set()


# --- Modules and values


@pytest.mark.parametrize("package", PACKAGES)
def test_public_classes_name_their_public_module(package: str) -> None:
    modules = {
        name: value.__module__
        for name, value in public(package).items()
        if inspect.isclass(value) or inspect.isfunction(value)
    }
    assert modules == dict.fromkeys(modules, package)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_classes_can_be_pickled_by_name(package: str) -> None:
    for value in public(package).values():
        if inspect.isclass(value):
            assert pickle.loads(pickle.dumps(value)) is value  # noqa: S301 -- ours


def test_every_raised_deadline_is_a_field_of_deadlines() -> None:
    raised = {
        name
        for path in Path(trio_vfio.__path__[0]).rglob("*.py")
        for name in re.findall(r'DeadlineExceeded\(\s*"(\w+)"', path.read_text())
    }
    assert raised == {field.name for field in attrs.fields(Deadlines)}


@pytest.mark.parametrize("states", [DeviceState, SessionState, CaptureStatus, Transfer])
def test_states_compare_and_print_as_strings(states: type[enum.StrEnum]) -> None:
    for state in states:
        assert isinstance(state, str)
        assert f"{state}" == json.loads(json.dumps(state)) == state.name.lower()


if __name__ == "__main__":
    LIST.write_text("".join(f"{line}\n" for line in lines()))
