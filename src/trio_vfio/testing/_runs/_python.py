"""Values as Python that rebuilds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

_WIDTH: Final = 88


def python(value: Any, indent: str = "") -> str:
    """Return the expression for *value*, without what is as it is by default.

    On one line if that fits, or with an item on each line.
    """
    kind = value.__class__
    if hasattr(value, "__attrs_attrs__"):
        items, start, end = _arguments(value, indent), f"{kind.__name__}(", ")"
    elif issubclass(kind, tuple):
        # All of them have an item, or are left out.
        items, start, end = _items(value, indent), "(", ",)" if len(value) == 1 else ")"
    elif issubclass(kind, Mapping):
        items, start, end = _pairs(value, indent), "{", "}"
    elif value == float("inf"):
        return "math.inf"
    else:
        return repr(value)
    parts = list(items)
    line = start + ", ".join(parts) + end
    if len(indent + line) <= _WIDTH and "\n" not in line:
        return line
    inner = f"\n{indent}    "
    return start + "".join(f"{inner}{part}," for part in parts) + f"\n{indent}{end[-1]}"


def _arguments(value: Any, indent: str) -> Iterator[str]:
    for field in value.__attrs_attrs__:
        given = getattr(value, field.name)
        if field.init and given != default_of(field):
            prefix = f"{field.alias}=" if field.kw_only else ""
            yield prefix + python(given, indent + "    ")


def default_of(field: attrs.Attribute[Any]) -> Any:
    """Return what *field* is if nobody says; `attrs.NOTHING` if somebody must."""
    default: Any = field.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return default.factory()
    return default


def _items(value: tuple[Any, ...], indent: str) -> Iterator[str]:
    for item in value:
        yield python(item, indent + "    ")


def _pairs(value: Mapping[Any, Any], indent: str) -> Iterator[str]:
    for key, item in value.items():
        yield f"{key!r}: {python(item, indent + '    ')}"
