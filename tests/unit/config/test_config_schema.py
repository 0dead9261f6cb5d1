"""Typed values as the Go decoder takes them, predicates, repr, schema."""

from __future__ import annotations

import json

import pytest

from provider_kairos.config import P2P, K3s, Settings, json_schema, load
from provider_kairos.config.notice import InvalidConfigError


def settings(text: str) -> Settings:
    return load(text).settings


@pytest.mark.parametrize(
    "word", ["true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y", '"yes"', "'on'"]
)
def test_words_for_true(word):
    assert settings(f"k3s: {{enabled: {word}}}").k3s.enabled is True


@pytest.mark.parametrize("word", ["false", "False", "no", "No", "NO", "off", "OFF", "n", "N", '"no"'])
def test_words_for_false(word):
    assert settings(f"k3s: {{enabled: {word}}}").k3s.enabled is False


def test_string_maps_keep_the_text_as_it_stands():
    env = settings('k3s: {env: {DHCP: true, MTU: 1200, F: 1.10, OCT: 0600, YES: yes, Q: "x y", NONE: , 5: 6}}').k3s.env
    assert env == {
        "DHCP": "true",
        "MTU": "1200",
        "F": "1.10",
        "OCT": "0600",
        "YES": "yes",
        "Q": "x y",
        "NONE": "",
        "5": "6",
    }
    assert all(type(value) is str for value in env.values())


def test_texts_take_any_scalar():
    loaded = settings("p2p: {network_id: 42, role: }\nk3s: {args: [1, true, --x, null]}")
    assert loaded.p2p is not None
    assert loaded.p2p.network_id == "42"
    assert loaded.p2p.role == ""
    assert loaded.k3s.args == ("1", "true", "--x")


def test_all_keys_of_p2p():
    p2p = settings(
        """
        p2p:
          network_token: T
          network_id: dev
          role: worker
          dns: true
          loglevel: info
          minimum_nodes: 3
          disable_dht: true
          dynamic_roles: true
          vpn: {create: false, use: false, env: {A: b}}
          auto: {enable: true, ha: {enable: true, master_nodes: 2, external_db: "mysql://x"}}
        """
    ).p2p
    assert p2p is not None
    assert p2p.model_dump() == {
        "network_token": "T",
        "network_id": "dev",
        "role": "worker",
        "dns": True,
        "loglevel": "info",
        "minimum_nodes": 3,
        "disable_dht": True,
        "dynamic_roles": True,
        "vpn": {"create": False, "use": False, "env": {"A": "b"}},
        "auto": {"enable": True, "ha": {"enable": True, "master_nodes": 2, "external_db": "mysql://x"}},
    }


def test_kubevip_fields_in_both_places():
    kubevip = settings(
        "kubevip: {eip: 10.0.0.9, vipSubnet: /24, enableBGP: false, config: {enableBGP: true, bgppeers: [a], port: 6443}}"
    ).kubevip
    assert kubevip.eip == "10.0.0.9"
    assert kubevip.config == {"enableBGP": False, "bgppeers": ["a"], "port": 6443, "vipSubnet": "/24"}


def test_defaults():
    empty = Settings()
    assert empty.network_id() == "kairos"
    assert empty.minimum_nodes() == 2
    assert empty.nothing_to_do()
    assert not empty.one_time()


@pytest.mark.parametrize(("text", "configured"), [("p2p: {}", True), ("p2p:", False), ("p2p: ~", False), ("", False)])
def test_the_presence_of_p2p_counts(text, configured):
    assert settings(text).p2p_configured() is configured


@pytest.mark.parametrize(
    ("text", "p2p", "block"),
    [
        ("p2p: {}", False, True),
        ("p2p: {network_token: T}", True, True),
        ("p2p: {auto: {enable: true}}", True, True),
        ("p2p: {auto: {enable: false}}", False, False),
        ("p2p: {network_token: T, auto: {enable: false}}", True, False),
        ("k3s: {enabled: true}", False, False),
        ("p2p: {network_token: '  '}", False, True),
    ],
)
def test_auto_enabled(text, p2p, block):
    assert settings(text).auto_enabled() is p2p
    assert settings(text).auto_block_enabled() is block


@pytest.mark.parametrize(
    ("ha", "enabled", "extra"),
    [
        ("{}", False, 0),
        ("{enable: true}", True, 0),
        ("{master_nodes: 2}", True, 2),
        ("{enable: false, master_nodes: 2}", False, 0),
        ("{enable: true, master_nodes: 4}", True, 4),
    ],
)
def test_ha_enabled(ha, enabled, extra):
    loaded = settings(f"p2p: {{auto: {{ha: {ha}}}}}")
    assert loaded.ha_enabled() is enabled
    assert loaded.additional_masters() == extra


@pytest.mark.parametrize(
    ("vpn", "created", "used"),
    [
        ("{}", True, True),
        ("{create: true}", True, True),
        ("{create: false}", False, False),
        ("{use: false}", True, False),
        ("{create: false, use: true}", False, False),
    ],
)
def test_vpn(vpn, created, used):
    loaded = settings(f"p2p: {{vpn: {vpn}}}")
    assert loaded.vpn_created() is created
    assert loaded.vpn_used() is used


def test_no_vpn_without_p2p():
    assert not Settings().vpn_created()
    assert not Settings().vpn_used()


@pytest.mark.parametrize(
    ("text", "enabled"),
    [("{}", False), ("{eip: 1.2.3.4}", True), ("{eip: 1.2.3.4, enable: false}", False), ("{enable: true}", True)],
)
def test_kubevip_enabled(text, enabled):
    assert settings(f"kubevip: {text}").kubevip_enabled() is enabled


@pytest.mark.parametrize("block", ["k3s", "k3s-agent", "k0s", "k0s-worker"])
def test_kubernetes_configured(block):
    assert settings(f"{block}: {{enabled: true}}").kubernetes_configured()
    assert not settings(f"{block}: {{enabled: false, args: [a]}}").kubernetes_configured()


def test_secrets_are_in_no_repr():
    loaded = load(
        """
        p2p: {network_token: SECRET, vpn: {env: {A: SECRET}}, auto: {ha: {external_db: "mysql://SECRET"}}}
        k3s: {env: {K3S_TOKEN: SECRET}, args: [--token=SECRET]}
        kubevip: {config: {bgppeers: [SECRET]}, bgpconfig: {password: SECRET}}
        """
    )
    assert "SECRET" not in repr(loaded)
    assert "SECRET" not in repr(loaded.settings)
    assert "SECRET" not in "".join(map(str, loaded.warnings))


def test_settings_can_be_made_in_python_and_are_immutable():
    made = Settings(p2p=P2P(network_token="T", minimum_nodes=3), k3s=K3s(args=("--debug",)))
    assert made.minimum_nodes() == 3
    with pytest.raises(ValueError, match="frozen"):
        made.k3s = K3s()  # type: ignore[misc]


def test_json_schema_describes_the_file():
    schema = json_schema()
    json.dumps(schema)
    assert set(schema["properties"]) == {"p2p", "k3s", "k3s-agent", "k0s", "k0s-worker", "kubevip"}
    assert schema["additionalProperties"] is True
    p2p = schema["$defs"]["P2P"]["properties"]
    assert p2p["dns"]["type"] == "boolean"
    assert p2p["minimum_nodes"]["type"] == "integer"
    assert all(prop.get("description") for prop in p2p.values())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a/b", "p2p.network_id: expected a name without a slash"),
        ("machines", "p2p.network_id: expected a name that the mesh does not use itself"),
        ("kairos-p2p.lease", "p2p.network_id: expected a name that the mesh does not use itself"),
    ],
)
def test_a_network_id_that_no_bucket_of_a_cluster_can_have(value, words):
    with pytest.raises(InvalidConfigError, match=words) as caught:
        load(f"p2p: {{network_id: {value}}}")
    assert (caught.value.line, caught.value.column) == (1, 19)
