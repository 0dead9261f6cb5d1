from __future__ import annotations

import json

from provider_kairos.daemon.lease_file import LeaseFile
from provider_kairos.daemon.lease_service import RoleOnDisk
from provider_kairos.token.codec import NetworkToken, OtpSettings

C = "GFEDCBAzyxwvutsrqponmlkjihgfedcba9876543210"
TOKEN = NetworkToken(OtpSettings(9000, "d" * 43, 43), OtpSettings(9000, C, 43), "room", "rdv", "mdns", 20971520)


def test_the_file_name_is_edgevpns(tmp_path):
    assert LeaseFile(tmp_path, TOKEN).path.name == "62d77ede4dcd337158af61e4169461eb"


def test_a_lease_is_read_back(tmp_path):
    file = LeaseFile(tmp_path / "lease", TOKEN)
    assert file.read() is None
    file.write("10.1.0.7")
    assert file.read() == "10.1.0.7"
    assert file.path.read_text() == "10.1.0.7"
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.remove()
    assert file.read() is None


def test_a_file_of_nonsense_is_no_lease(tmp_path):
    file = LeaseFile(tmp_path, TOKEN)
    for content in (b"", b"hello", b"10.1.0", b"\xff\xfe", b"10.1.0.7/24 and more"):
        file.path.write_bytes(content)
        assert file.read() is None


def test_a_control_plane_role_pins_the_address(tmp_path):
    path = tmp_path / "role.json"
    role = RoleOnDisk(path)
    assert not role.is_control_plane()
    for word, pinned in [("worker", False), ("master", True), ("master/ha", True), ("master/clusterinit", True)]:
        fresh = tmp_path / "fresh"
        fresh.write_text(json.dumps({"role": word}))
        fresh.replace(path)
        assert role.is_control_plane() is pinned
    path.write_text("{ half a file")
    assert not role.is_control_plane()
