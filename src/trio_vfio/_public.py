"""Make public names say where users import them from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping


def set_public_module(names: Mapping[str, object]) -> None:
    """Set ``__module__`` of each public class and function in *names*.

    Tracebacks, ``repr`` and pickles then name the public package, e.g.
    ``trio_vfio.DeviceError``, and not the private module that defines the class.

    Args:
      names: ``globals()`` of a public package.
    """
    package = names["__name__"]
    for name, value in names.items():
        if name.startswith("_") or not (
            inspect.isclass(value) or inspect.isfunction(value)
        ):
            continue
        # A name that was imported from another public package keeps its module.
        if "._" in value.__module__:
            value.__module__ = str(package)
