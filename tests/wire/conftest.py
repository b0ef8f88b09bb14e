"""Settings of the tests of the wire."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is no reason to fail. What may not take long has its own test.
settings.register_profile("wire", deadline=None)
settings.load_profile("wire")
