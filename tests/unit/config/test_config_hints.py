"""Old and wrong spellings: mapped where the meaning is certain, always said, with the place."""

from __future__ import annotations

import pytest

from provider_kairos.config import CloudConfig, load


def said(config: CloudConfig, key: str) -> tuple[int, int, str, str]:
    (notice,) = [
        n
        for n in config.warnings
        if n.key == key
        and ("spelling" in n.message or "not read" in n.message or "no effect" in n.message or "list of" in n.message)
    ]
    return notice.line, notice.column, notice.message, notice.hint


@pytest.mark.parametrize("block", ["kairos", "c3os"])
def test_the_blocks_of_2022(block):
    config = load(
        f"{block}:\n  network_token: T\n  role: master\n  network_id: dev\n  dns: true\n  device: /dev/sda\n  offline: true\n"
    )
    p2p = config.settings.p2p
    assert p2p is not None
    assert (p2p.network_token, p2p.role, p2p.network_id, p2p.dns) == ("T", "master", "dev", True)
    assert said(config, f"{block}.network_token") == (
        2,
        3,
        "old spelling, read as p2p.network_token",
        "write p2p.network_token",
    )
    assert said(config, f"{block}.dns")[:2] == (5, 3)
    assert said(config, f"{block}.device")[3] == "write install.device"
    assert said(config, f"{block}.offline")[:2] == (7, 3)


def test_an_old_block_without_a_token_changes_nothing():
    config = load("kairos: {role: master, hybrid: true}")
    assert config.settings.nothing_to_do()
    assert {n.key for n in config.warnings} == {"kairos.role", "kairos.hybrid"}


def test_the_present_name_wins():
    config = load("kairos: {network_token: OLD}\np2p: {network_token: NEW}")
    assert config.settings.token_text() == "NEW"
    assert "ignored because p2p.network_token is there" in said(config, "kairos.network_token")[2]


def test_a_present_name_without_value_does_not_win():
    assert load("kairos: {network_token: OLD}\np2p:\n").settings.token_text() == "OLD"
    assert load("kairos: {network_token: OLD}\np2p: {network_token: }\n").settings.token_text() == "OLD"


def test_hybrid_is_coordination_without_a_vpn():
    config = load("kairos: {network_token: T, hybrid: true}")
    assert not config.settings.vpn_created()
    assert not config.settings.vpn_used()
    assert "kubevip.eip" in said(config, "kairos.hybrid")[3]


def test_hybrid_vpn_is_a_vpn_beside_kubernetes():
    config = load("kairos: {network_token: T, hybrid_vpn: true}")
    assert config.settings.vpn_created()
    assert not config.settings.vpn_used()


@pytest.mark.parametrize("block", ["k3s", "k3s-agent", "k0s", "k0s-worker"])
def test_enable_is_enabled(block):
    config = load(f"{block}:\n  enable: true\n")
    assert config.settings.kubernetes_configured()
    assert said(config, f"{block}.enable")[:2] == (2, 3)


def test_ha_directly_below_p2p():
    config = load("p2p:\n  network_token: T\n  ha:\n    enable: true\n    master_nodes: 2\n")
    assert config.settings.ha_enabled()
    assert config.settings.additional_masters() == 2
    assert said(config, "p2p.ha.master_nodes") == (
        5,
        5,
        "old spelling, read as p2p.auto.ha.master_nodes",
        "write p2p.auto.ha.master_nodes",
    )
    assert len(config.warnings) == 2


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("p2p: {network_token: T, vpn: {vpn: false}}", "p2p.vpn.vpn"),
        ("p2p: {network_token: T, auto: {enabled: false}}\nk3s: {enabled: true}", "p2p.auto.enabled"),
        ("kubevip: {eip: 1.2.3.4, enabled: false}\np2p: {network_token: T}", "kubevip.enabled"),
        ("p2p: {network_token: T, auto: {ha: {enabled: true, master_nodes: 2}}}", "p2p.auto.ha.enabled"),
    ],
)
def test_near_misses(text, key):
    assert said(load(text), key)


def test_near_misses_take_effect():
    assert not load("p2p: {network_token: T, vpn: {vpn: false}}").settings.vpn_created()
    assert load("p2p: {network_token: T, auto: {enabled: false}}").settings.one_time()
    assert load("p2p: {network_token: T, kubevip: {eip: 1.2.3.4}}").settings.kubevip.eip == "1.2.3.4"
    assert not load("kubevip: {eip: 1.2.3.4, enabled: false}").settings.kubevip_enabled()


def test_vpn_at_the_top_is_said_and_not_moved():
    config = load("p2p: {network_token: T}\nvpn: {create: false}")
    assert config.settings.vpn_created()
    assert said(config, "vpn")[:2] == (2, 1)


def test_an_environment_as_a_list():
    config = load('k3s:\n  env: ["A=b", "C=d=e"]\n')
    assert config.settings.k3s.env == {"A": "b", "C": "d=e"}
    assert said(config, "k3s.env")[3] == "write NAME: value"
    assert load('p2p: {network_token: T, vpn: {env: ["DHCP=false"]}}').settings.p2p.vpn.env == {"DHCP": "false"}  # type: ignore[union-attr]


def test_an_unread_key_of_an_old_block():
    assert said(load("kairos: {network_token: T, something: 1}"), "kairos.something")
