"""Property tests run without a deadline: how fast this machine is today proves nothing."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("plain", deadline=None)
settings.load_profile("plain")
