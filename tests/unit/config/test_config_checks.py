"""Combinations that cannot work, or not as meant, each with a sentence and a place."""

from __future__ import annotations

import pytest

from provider_kairos.config import load


@pytest.mark.parametrize(
    ("text", "key", "place", "words", "severity"),
    [
        ("p2p: {}\n", "p2p.network_token", (1, 1), "no network token", "error"),
        ('p2p:\n  network_token: ""\n', "p2p.network_token", (2, 3), "no network token", "error"),
        ("p2p: {}\nk3s: {enabled: true}\n", "p2p", (1, 1), "no VPN", "warning"),
        ("p2p: {network_token: T, role: boss}\n", "p2p.role", (1, 25), "none of master", "error"),
        ("p2p: {network_token: T, role: master/ha}\n", "p2p.role", (1, 25), "needs k3s.enabled", "error"),
        (
            "p2p: {network_token: T, role: master, auto: {ha: {master_nodes: 2}}}\n",
            "p2p.role",
            (1, 25),
            "does not count",
            "warning",
        ),
        (
            "p2p: {network_token: T, auto: {ha: {enable: true}}}\n",
            "p2p.auto.ha",
            (1, 32),
            "no control-plane node beyond",
            "warning",
        ),
        (
            "p2p: {network_token: T, auto: {ha: {master_nodes: 1}}}\n",
            "p2p.auto.ha.master_nodes",
            (1, 37),
            "2 control-plane nodes",
            "warning",
        ),
        (
            "p2p: {network_token: T, auto: {ha: {master_nodes: 3}}}\n",
            "p2p.auto.ha.master_nodes",
            (1, 37),
            "no more failures than 3",
            "warning",
        ),
        (
            "p2p: {network_token: T, vpn: {create: false}}\n",
            "p2p.vpn",
            (1, 25),
            "without the VPN and kubevip.eip",
            "warning",
        ),
        (
            "p2p: {network_token: T, vpn: {create: false}, auto: {ha: {master_nodes: 2}}}\n",
            "p2p.vpn",
            (1, 25),
            "no common address",
            "warning",
        ),
        (
            "p2p: {network_token: T, vpn: {create: false, use: true}}\nkubevip: {eip: 1.2.3.4}\n",
            "p2p.vpn.use",
            (1, 46),
            "needs the VPN",
            "warning",
        ),
        ("k3s: {enabled: true}\nk3s-agent: {enabled: true}\n", "k3s-agent.enabled", (2, 13), "k3s is used", "error"),
        ("k3s: {enabled: true}\nk0s: {enabled: true}\n", "k0s.enabled", (2, 7), "two distributions", "error"),
        (
            "k3s-agent: {embedded_registry: true}\n",
            "k3s-agent.embedded_registry",
            (1, 13),
            "no effect on agents",
            "warning",
        ),
        (
            "p2p: {network_token: T}\nk0s: {enabled: true}\nkubevip: {eip: 1.2.3.4}\n",
            "kubevip",
            (3, 1),
            "not available with k0s",
            "error",
        ),
        (
            "p2p: {network_token: T, auto: {ha: {master_nodes: 2, external_db: x}}}\nk0s: {enabled: true}\n",
            "p2p.auto.ha.external_db",
            (1, 54),
            "not available with k0s",
            "error",
        ),
        ("kubevip: {eip: 1.2.3.4}\nk3s: {enabled: true}\n", "kubevip", (1, 1), "coordinated nodes only", "warning"),
        ("kubevip: {enable: true}\np2p: {network_token: T}\n", "kubevip.enable", (1, 11), "no elastic IP", "warning"),
        ("k3s: {env: {MODE: 0600}}\n", "k3s.env.MODE", (1, 19), "re-written by the agent", "warning"),
        ("k3s: {env: {V: 1.10}}\n", "k3s.env.V", (1, 16), "re-written by the agent", "warning"),
    ],
)
def test_combinations(text, key, place, words, severity):
    # kube-vip is not built in yet, which is said beside whatever else there is to say about it
    (notice,) = (n for n in load(text, "f").warnings if "not part of this version" not in n.message)
    assert notice.key == key
    assert (notice.line, notice.column) == place
    assert words in notice.message
    assert notice.severity == severity
    assert notice.path == "f"


def test_k0s_beside_the_vpn():
    config = load("p2p: {network_token: T, vpn: {use: false}}\nk0s: {enabled: true}\n")
    assert "k0s needs to be on the VPN" in [n.message for n in config.errors()]


@pytest.mark.parametrize(
    "text",
    [
        "p2p: {network_token: T}",
        "p2p: {network_token: T, role: none}",
        "p2p: {network_token: T, auto: {ha: {master_nodes: 2}}}",
        "p2p: {network_token: T}\nk3s: {enabled: true}",
        "p2p: {network_token: T}\nk3s: {enabled: true}\nk3s-agent: {enabled: true}",
        "p2p: {network_token: T, auto: {enable: false}}\nk3s: {enabled: true}",
        "p2p: {network_token: T, role: master/ha}\nk3s: {enabled: true}",
        "k3s: {enabled: true, env: {MODE: '0600', N: 12, F: 1.5}}",
        "p2p: {network_token: T, auto: {ha: {master_nodes: 1, external_db: x}}}",
    ],
)
def test_what_is_fine_is_not_remarked_on(text):
    assert load(text).warnings == ()


def test_errors_are_the_notices_that_validate_fails_on():
    config = load("p2p: {network_token: T, role: boss, minimum_node: 3}")
    assert [n.severity for n in config.warnings] == ["error", "warning"]
    assert [n.key for n in config.errors()] == ["p2p.role"]
    assert str(load("p2p: {}", "f").errors()[0]).startswith("f:1:1: p2p.network_token: there is no network token (")
