"""Addresses, distribution and files of a role (spec/provider.md 3.7, 6; 13 #9, #18-#20)."""

from __future__ import annotations

import pytest

from provider_kairos.config import load
from provider_kairos.errors import ConfigError, HostError
from provider_kairos.kubernetes import Distribution
from provider_kairos.provider import plan
from provider_kairos.provider.machine import FakeMachine
from provider_kairos.roles.effects import Configure
from provider_kairos.roles.model import Role


class Links:
    ips: dict[str, str] = {"edgevpn0": "10.1.0.4", "eth1": "192.168.1.7", "mesh9": "10.1.0.9"}  # noqa: RUF012  # a fake

    def first_address(self, interface, *, version=0):
        return self.ips.get(interface)

    def default_route_interface(self):
        return "eth1"


def settings(text):
    return load(text).settings


@pytest.mark.parametrize(
    ("config", "own", "told"),
    [
        ("p2p: {network_token: x}", "10.1.0.4", "10.1.0.4"),
        ("p2p: {network_token: x, vpn: {env: {IFACE: mesh9}}}", "10.1.0.9", "10.1.0.9"),
        ("p2p: {network_token: x, vpn: {use: false}}", "192.168.1.7", "192.168.1.7"),
        ("p2p: {network_token: x, vpn: {create: false}}", "192.168.1.7", "192.168.1.7"),
        (
            "p2p: {network_token: x, vpn: {create: false}}\nkubevip: {eip: 192.168.1.110}",
            "192.168.1.7",
            "192.168.1.110",
        ),
        ("p2p: {network_token: x}\nkubevip: {eip: 192.168.1.110, interface: eth1}", "10.1.0.4", "192.168.1.110"),
    ],
)
def test_addresses(config, own, told):
    found = plan.where(settings(config), Links())
    assert (found.own, found.told) == (own, told)


def test_nothing_is_told_without_an_own_address():
    links = Links()
    links.ips = {}
    found = plan.where(settings("p2p: {network_token: x}\nkubevip: {eip: 1.2.3.4}"), links)
    assert (found.own, found.told) == ("", "")


@pytest.mark.parametrize("role", ["", "auto", "none", "master", "worker"])
def test_roles_that_need_no_complaint(role):
    machine = FakeMachine({"/usr/local/bin/k3s": ""})
    assert plan.check(machine, settings(f"p2p: {{network_token: x, role: '{role}'}}")) is Distribution.K3S


def test_an_additional_master_by_configuration_needs_an_enabled_k3s():
    machine = FakeMachine({"/usr/bin/k3s": ""})
    with pytest.raises(ConfigError, match=r"invalid p2p\.role"):
        plan.check(machine, settings("p2p: {network_token: x, role: master/ha}"))
    assert plan.check(machine, settings("p2p: {network_token: x, role: master/ha}\nk3s: {enabled: true}"))


def test_no_binary_is_the_machines_fault_and_k0s_the_configurations():
    with pytest.raises(HostError, match="no k8s binary"):
        plan.check(FakeMachine(), settings("p2p: {network_token: x}"))
    with pytest.raises(ConfigError, match="k0s"):
        plan.check(FakeMachine({"/usr/bin/k0s": ""}), settings("p2p: {network_token: x}"))


WORKER = Configure(Role.WORKER, "g", "10.1.0.1", "K10word")
HERE = plan.Addresses("10.1.0.4", "10.1.0.4", "10.1.0.4")


def worker(machine, effect=WORKER, *, again):
    config = settings("p2p: {network_token: x}")
    made = plan.plan(machine, config, Distribution.K3S, effect, HERE, unique=True, again=again)
    plan.apply_and_start(machine, made)
    return machine.files["/etc/sysconfig/k3s-agent"]


def test_a_worker_that_is_applied_again_keeps_its_server():
    machine = FakeMachine({"/usr/bin/k3s": ""})
    moved = Configure(Role.WORKER, "g", "10.1.0.99", "K10word")
    assert "https://10.1.0.1:6443" in worker(machine, again=False)
    assert "https://10.1.0.1:6443" in worker(machine, moved, again=True)
    assert "https://10.1.0.99:6443" in worker(machine, moved, again=False)


def test_a_service_that_runs_with_something_else_is_restarted():
    machine = FakeMachine({"/usr/bin/k3s": ""})
    worker(machine, again=False)
    machine.done.clear()
    worker(machine, again=False)
    assert machine.done == ["daemon-reload", "start k3s-agent", "enable k3s-agent"]
    worker(machine, Configure(Role.WORKER, "g", "10.1.0.2", "K10word"), again=False)
    assert "restart k3s-agent" in machine.done


@pytest.mark.parametrize(
    ("uuids", "differ"),
    [
        ([f"{'a' * 32}-box1", f"{'b' * 32}-box2"], True),
        ([f"{'a' * 32}-box1", f"{'b' * 32}-box1"], False),
        ([f"{'a' * 32}-box1", "my-own-uuid"], None),
        ([], True),
    ],
)
def test_host_names(uuids, differ):
    assert plan.hostnames_differ(uuids) is differ
