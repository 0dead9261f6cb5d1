from __future__ import annotations

import socket

import pytest

from provider_kairos.errors import HostError
from provider_kairos.system.machine import machine_id, node_uuid


def place(root, where, text):
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_dbus_wins_and_white_space_goes(tmp_path):
    place(tmp_path, "etc/machine-id", "bbbb\n")
    assert machine_id(tmp_path) == "bbbb"
    place(tmp_path, "var/lib/dbus/machine-id", " aaaa \n")
    assert machine_id(tmp_path) == "aaaa"


@pytest.mark.parametrize("text", ["", "\n", "uninitialized\n"])
def test_no_machine_id_yet(tmp_path, text):
    place(tmp_path, "etc/machine-id", text)
    with pytest.raises(HostError, match="no machine id"):
        machine_id(tmp_path)


def test_node_uuid(tmp_path):
    place(tmp_path, "etc/machine-id", "abc\n")
    assert node_uuid({}, tmp_path) == f"abc-{socket.gethostname()}"
    assert node_uuid({"UUID": ""}, tmp_path) == f"abc-{socket.gethostname()}"
    assert node_uuid({"UUID": "given"}, tmp_path / "nothing") == "given"
