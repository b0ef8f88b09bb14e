"""Which version of the package this is."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """Return the version that is installed, or say that none is."""
    try:
        return importlib.metadata.version("trio-vfio")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
