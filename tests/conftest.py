"""What holds for all tests."""

from __future__ import annotations

import os

# Set in the VM that `nox -s vm` makes, where only tests/vm runs.
if "TRIO_VFIO_VM" not in os.environ:
    from hypothesis import settings

    # It needs VFIO devices.
    collect_ignore = ["vm"]

    # The same examples every time, however slow the machine: a test that fails
    # fails again.
    settings.register_profile("trio_vfio", derandomize=True, deadline=None)
    settings.load_profile("trio_vfio")
