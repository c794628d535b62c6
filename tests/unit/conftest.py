"""Settings of the unit tests."""

from __future__ import annotations

from hypothesis import settings

# A deadline per example fails on a busy machine and says nothing about the code: pytest's timeout does.
settings.register_profile("ckptfs", deadline=None)
settings.load_profile("ckptfs")
