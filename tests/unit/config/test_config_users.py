"""The configurations that people run, at their smallest: each loads without a remark and gives the known decision."""

from __future__ import annotations

from typing import Literal

import pytest

from provider_kairos.config import CloudConfig, load

Decision = Literal["nothing", "one-time", "coordinated", "error"]


def decide(config: CloudConfig) -> Decision:
    """spec/provider.md 3.2, in short."""
    settings = config.settings
    if settings.nothing_to_do():
        return "nothing"
    if settings.one_time():
        return "one-time"
    return "coordinated" if settings.token_text() else "error"


COORDINATED = {
    "A": "p2p: {network_token: T}",
    "B": "p2p: {network_token: T, disable_dht: true}",
    "C": "p2p: {network_token: T, disable_dht: true, role: master}",
    "D": "p2p: {network_token: T, auto: {enable: true, ha: {enable: true, master_nodes: 2}}}",
    "E": """
kubevip: {eip: 192.168.1.110, interface: ens18}
p2p:
  network_token: T
  vpn: {create: false, use: false}
  auto: {ha: {master_nodes: 2}}
""",
    "F": 'p2p: {network_token: T, auto: {ha: {enable: true, master_nodes: 2, external_db: "mysql://..."}}}',
    "G": "p2p: {network_token: T, network_id: dev}",
    "H": 'p2p: {network_token: T, dns: true, vpn: {env: {DNSFORWARD: "false", DNSCACHESIZE: "200"}}}',
    "I": 'p2p: {network_token: T, vpn: {env: {DHCP: "false", ADDRESS: 10.2.0.30/24}}}',
    "K": "k3s: {embedded_registry: true}\np2p: {network_token: T}",
    "L": """
k3s: {args: ["--disable=traefik,servicelb"]}
k3s-agent: {enabled: true, args: ["--node-label=zone=a"]}
p2p: {network_token: T}
""",
    "M": "k3s: {enabled: true}\np2p: {network_token: T, dns: true}",
    "N": """
install: {auto: true, device: auto, reboot: true}
hostname: "node-{{ trunc 4 .MachineID }}"
p2p: {network_token: T, disable_dht: true}
""",
}

ONE_TIME = {
    "single server": "k3s: {enabled: true}",
    "first of HA": "k3s: {enabled: true, args: [--cluster-init], env: {K3S_TOKEN: S}}",
    "next server": 'k3s: {enabled: true, args: ["--server https://S1:6443"], env: {K3S_TOKEN: S}}',
    "datastore": 'k3s: {enabled: true, args: ["--datastore-endpoint mysql://..."], env: {K3S_TOKEN: S}}',
    "agent": 'k3s-agent: {enabled: true, args: [--with-node-id], env: {K3S_TOKEN: S, K3S_URL: "https://S1:6443"}}',
    "k0s single": "k0s: {enabled: true, args: [--single]}",
    "k0s": "k0s: {enabled: true}",
    "k0s worker too": "k0s: {enabled: true, args: [--enable-worker]}",
    "k0s worker": 'k0s-worker: {enabled: true, args: ["--token-file /etc/k0s/token"]}',
    "k0s joiner": 'k0s: {enabled: true, args: ["--token-file /etc/k0s/token"]}',
    "VPN for management": "p2p: {network_token: T, auto: {enable: false}}\nk3s: {enabled: true}",
}


NOT_YET = {"E": ["kubevip"]}
"""What this version reads and does not act on is said, and nothing else."""


@pytest.mark.parametrize(("name", "text"), COORDINATED.items(), ids=COORDINATED.keys())
def test_with_coordination(name, text):
    config = load(text)
    assert [notice.key for notice in config.warnings] == NOT_YET.get(name, [])
    assert decide(config) == "coordinated"


def test_kubernetes_beside_the_vpn():
    config = load("p2p: {network_token: T, vpn: {create: true, use: false}}")
    assert decide(config) == "coordinated"
    assert config.errors() == ()
    assert config.settings.vpn_created()
    assert not config.settings.vpn_used()


@pytest.mark.parametrize("text", ONE_TIME.values(), ids=ONE_TIME.keys())
def test_without_coordination(text):
    config = load(text)
    assert config.warnings == ()
    assert decide(config) == "one-time"


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("hostname: x\nusers: []", "nothing"),
        ("stages: {boot: [{commands: [a]}]}\nk3s-agent: {args: [a]}", "nothing"),
        ("p2p:", "nothing"),
        ("k3s: {enabled: true}", "one-time"),
        ("p2p: {}", "error"),
        ("p2p: {auto: {enable: true}}", "error"),
        ("p2p: {}\nk3s: {enabled: true}", "one-time"),
        ("p2p: {network_token: T}\nk3s: {enabled: true}", "coordinated"),
        ("p2p: {network_token: T, auto: {enable: false}}", "one-time"),
        ("p2p: {auto: {enable: false}}\nk3s: {enabled: true}", "one-time"),
        ("p2p: {auto: {enable: false}, role: master}", "one-time"),
    ],
)
def test_the_decision_table(text, decision):
    assert decide(load(text)) == decision


def test_settings_of_the_examples():
    kube = load(COORDINATED["E"]).settings
    assert kube.kubevip_enabled()
    assert kube.ha_enabled()
    assert not kube.vpn_created()
    assert load(COORDINATED["F"]).settings.external_db() == "mysql://..."
    assert load(COORDINATED["G"]).settings.network_id() == "dev"
    fixed = load(COORDINATED["I"]).settings.p2p
    assert fixed is not None
    assert fixed.vpn.env == {"DHCP": "false", "ADDRESS": "10.2.0.30/24"}
