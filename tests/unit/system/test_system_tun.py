"""What can be said about the TUN device without one; the rest is in tests/net."""

from __future__ import annotations

import pytest

from provider_kairos.errors import HostError, LocalError
from provider_kairos.system import tun


def test_no_device_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(tun, "_DEVICE", tmp_path / "tun")
    with pytest.raises(HostError, match=r"there is no .*/tun \(load the module"):
        tun.open_tun("edgevpn7")


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b"])
def test_bad_names(name):
    with pytest.raises(LocalError):
        tun.open_tun(name)
