"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples every time, however slow the machine: a test that fails
# fails again.
settings.register_profile("trio_vfio", derandomize=True, deadline=None)
settings.load_profile("trio_vfio")
