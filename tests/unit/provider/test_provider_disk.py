"""Role and sentinel on disk, and what the original left (spec/provider.md 4.10)."""

from __future__ import annotations

import pytest

from provider_kairos.errors import HostError
from provider_kairos.provider import disk
from provider_kairos.provider.machine import FakeMachine
from provider_kairos.roles.model import Held, Role

HELD = Held(Role.CLUSTER_INIT, "site-1", "00017-ab")


def test_a_role_survives():
    machine = FakeMachine()
    assert disk.held_role(machine, "site-1") is None
    disk.keep_role(machine, HELD)
    assert disk.held_role(machine, "another") == HELD
    assert machine.modes[disk.ROLE_FILE] == 0o600


def test_the_sentinel_is_empty_and_says_deployed():
    machine = FakeMachine()
    assert not disk.deployed(machine)
    disk.mark_deployed(machine)
    assert disk.deployed(machine)
    assert machine.files[disk.SENTINEL] == ""


def test_without_the_sentinel_the_same_role_is_applied_again():
    machine = FakeMachine()
    disk.keep_role(machine, HELD)
    assert disk.held_role(machine, "site-1") == HELD


@pytest.mark.parametrize(
    ("path", "text", "role"),
    [
        (
            "/etc/systemd/system/k3s.service.d/override.conf",
            "ExecStart=/usr/bin/k3s server --flannel-iface=x",
            Role.MASTER,
        ),
        ("/etc/systemd/system/k3s.service.d/override.conf", "k3s server --cluster-init", Role.CLUSTER_INIT),
        ("/etc/systemd/system/k3s.service.d/override.conf", "k3s server --server=https://10.1.0.1:6443", Role.HA),
        ("/etc/systemd/system/k3s-agent.service.d/override.conf", "k3s agent", Role.WORKER),
        ("/etc/rancher/k3s/k3s-agent.env", "command_args='agent'", Role.WORKER),
        ("/etc/systemd/system/k0sworker.service.d/override.conf", "k0s worker --token-file x", Role.WORKER),
    ],
)
def test_the_role_of_a_machine_that_the_original_bootstrapped(path, text, role):
    machine = FakeMachine({path: text, disk.SENTINEL: ""})
    assert disk.held_role(machine, "kairos") == Held(role, "kairos")


def test_service_files_without_a_sentinel_are_no_role():
    machine = FakeMachine({"/etc/systemd/system/k3s.service.d/override.conf": "k3s server"})
    assert disk.held_role(machine, "kairos") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"role": "auto", "network_id": "a", "generation": ""}', '{"role": 3}']
)
def test_a_role_file_that_cannot_be_read_never_frees_the_node_for_another_role(text):
    with pytest.raises(HostError, match="does not say which role"):
        disk.held_role(FakeMachine({disk.ROLE_FILE: text}), "kairos")
    machine = FakeMachine({disk.ROLE_FILE: text, disk.SENTINEL: "", disk._OVERRIDES["k3s-agent"]: "k3s agent"})
    assert disk.held_role(machine, "kairos") == Held(Role.WORKER, "kairos")
