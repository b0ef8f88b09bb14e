"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# tests/vm runs where there are VFIO devices: in the VM that `nox -s vm` makes.
collect_ignore = [] if "TRIO_VFIO_VM" in os.environ else ["vm"]

# The same examples every time, however slow the machine: a test that fails
# fails again.
settings.register_profile("trio_vfio", derandomize=True, deadline=None)
settings.load_profile("trio_vfio")
