"""Wrong files: every kind of mistake with its key, line, column and words; what is tolerated."""

from __future__ import annotations

import pytest

from provider_kairos.config import InvalidConfigError, load
from provider_kairos.errors import ConfigError, ExitCode, TokenError
from provider_kairos.token import codec


def refused(text: str) -> InvalidConfigError:
    with pytest.raises(InvalidConfigError) as caught:
        load(text, "/oem/90_custom.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("p2p: yes\n", (1, 6), "p2p: expected a mapping of keys to values, not a text"),
        ("p2p: [a]\n", (1, 6), "p2p: expected a mapping of keys to values, not a list"),
        ("p2p:\n  dns: maybe\n", (2, 8), "p2p.dns: expected true or false, not a text"),
        ("p2p:\n  dns: 1\n", (2, 8), "p2p.dns: expected true or false, not a number"),
        ('p2p:\n  dns: "true"\n', (2, 8), "p2p.dns: expected true or false, not a quoted text"),
        ("p2p:\n  minimum_nodes: two\n", (2, 18), "p2p.minimum_nodes: expected a whole number, not a text"),
        (
            "p2p:\n  minimum_nodes: 2.5\n",
            (2, 18),
            "p2p.minimum_nodes: expected a whole number, not a number with a fraction",
        ),
        ("p2p:\n  minimum_nodes: true\n", (2, 18), "p2p.minimum_nodes: expected a whole number, not true or false"),
        ("p2p:\n  minimum_nodes: -1\n", (2, 18), "p2p.minimum_nodes: expected at least 0, not a negative number"),
        ("p2p:\n  minimum_nodes: 99999999\n", (2, 18), "p2p.minimum_nodes: expected at most 1000000, not a number"),
        ("p2p:\n  network_token: [a]\n", (2, 18), "p2p.network_token: expected a text, not a list"),
        ("p2p:\n  network_token: {a: b}\n", (2, 18), "p2p.network_token: expected a text, not a mapping"),
        ("p2p:\n  vpn:\n    env: .....\n", (3, 10), "p2p.vpn.env: expected a mapping of names to values, not a text"),
        ("p2p:\n  vpn:\n    env: {A: [1]}\n", (3, 14), "p2p.vpn.env.A: expected a text, not a list"),
        ("p2p:\n  auto:\n    ha: 3\n", (3, 9), "p2p.auto.ha: expected a mapping of keys to values, not a number"),
        ("k3s:\n  args: --debug\n", (2, 9), "k3s.args: expected a list, not a text"),
        ("k3s:\n  args: {a: b}\n", (2, 9), "k3s.args: expected a list, not a mapping"),
        ("k3s:\n  args:\n    - a\n    -\n    - b: c\n", (5, 7), "k3s.args[2]: expected a text, not a mapping"),
        ("k3s-agent:\n  enabled: {}\n", (2, 12), "k3s-agent.enabled: expected true or false, not a mapping"),
        ("k0s-worker:\n  env: [x]\n", (2, 8), "k0s-worker.env: expected a mapping of names to values, not a list"),
        ("kubevip:\n  config: 3\n", (2, 11), "kubevip.config: expected a mapping of names to values, not a number"),
        ("kubevip:\n  static_pod: pod\n", (2, 15), "kubevip.static_pod: expected true or false, not a text"),
    ],
)
def test_wrong_types(text, place, words):
    error = refused(text)
    assert (error.line, error.column) == place
    assert error.message == words
    assert error.others == ()
    assert str(error).startswith(f"/oem/90_custom.yaml:{place[0]}:{place[1]}: ")
    assert error.exit_code is ExitCode.CONFIG


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("k3s: {args: --debug}", "after a dash"),
        ('p2p: {dns: "true"}', "quotes"),
        ('p2p: {minimum_nodes: "3"}', "quotes"),
        ("p2p: {vpn: {env: x}}", "name: value"),
        ("p2p: {role: {a: b}}", "quote"),
    ],
)
def test_wrong_types_have_a_remedy(text, hint):
    assert hint in refused(text).hint


def test_all_mistakes_are_found_at_once_in_the_order_of_the_file():
    error = refused("k3s: {args: x, env: 3}\np2p: {dns: 7, vpn: {create: maybe}}\n")
    assert [error.key, *(other.key for other in error.others if isinstance(other, InvalidConfigError))] == [
        "k3s.args",
        "k3s.env",
        "p2p.dns",
        "p2p.vpn.create",
    ]
    assert [(e.line, e.column) for e in (error, *error.others)] == [(1, 13), (1, 21), (2, 12), (2, 29)]


def test_an_error_never_shows_a_secret():
    for text in ("p2p: {network_token: [SECRET]}", "k3s: {env: {K3S_TOKEN: {a: SECRET}}}", "k3s: {args: SECRET}"):
        error = refused(text)
        assert "SECRET" not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__


def test_other_peoples_keys_are_left_alone():
    config = load(
        """#cloud-config
hostname: "node-{{ trunc 4 .MachineID }}"
users: [{name: kairos, passwd: x, groups: [admin]}]
install: {auto: true, device: auto, reboot: true, bind_mounts: [/a]}
stages: {initramfs: [{name: x, commands: [a, b], if: '[ -f /x ]'}]}
write_files: [{path: /a, permissions: 0644, content: "x"}]
bundles: [{targets: ["container://a"]}]
cluster: {cluster_token: x, role: y}
strict: true
debug: false
runcmd: [a]
anything: [1, {b: 3}]
"""
    )
    assert config.warnings == ()
    assert config.settings.nothing_to_do()


@pytest.mark.parametrize(
    ("text", "place", "key", "hint"),
    [
        (
            "p2p:\n  network_token: T\n  minimum_node: 3\n",
            (3, 3),
            "p2p.minimum_node",
            "did you mean p2p.minimum_nodes?",
        ),
        ("p2p:\n  network_token: T\n  vpn: {creat: true}\n", (3, 9), "p2p.vpn.creat", "did you mean p2p.vpn.create?"),
        ("p2p:\n  network_token: T\n  zzz: 1\n", (3, 3), "p2p.zzz", ""),
        ("k3s:\n  arg: [a]\n", (2, 3), "k3s.arg", "did you mean k3s.args?"),
        ("k0s:\n  embedded_registry: true\n", (2, 3), "k0s.embedded_registry", ""),
        ("kubevip:\n  intrface: eth0\n", (2, 3), "kubevip.intrface", "did you mean kubevip.interface?"),
        ("kubevip:\n  vipSubnett: /32\n", (2, 3), "kubevip.vipSubnett", "did you mean kubevip.vipSubnet?"),
    ],
)
def test_unknown_keys(text, place, key, hint):
    (notice,) = load(text, "f").warnings
    assert (notice.line, notice.column) == place
    assert notice.key == key
    assert notice.message.startswith("unknown key")
    assert notice.hint == hint
    assert notice.severity == "warning"


def test_known_fields_of_kubevip_are_no_unknown_keys():
    text = (
        "p2p: {network_token: T}\nkubevip: {eip: 1.2.3.4, vipSubnet: /32, enableServices: true, config: {whatever: 1}}"
    )
    assert [notice.key for notice in load(text).warnings] == ["kubevip"]  # as a whole: not part of this version


def test_the_network_token_is_decoded_late_and_its_error_has_a_place():
    config = load("#cloud-config\np2p:\n  network_token: 'not a token'\n", "/oem/x.yaml")
    with pytest.raises(TokenError) as caught:
        config.network_token()
    assert (caught.value.path, caught.value.line, caught.value.column) == ("/oem/x.yaml", 3, 18)
    assert "not a token" not in str(caught.value)
    assert isinstance(caught.value, ConfigError)


def test_a_missing_network_token_says_what_to_do():
    with pytest.raises(TokenError) as caught:
        load("p2p: {}\n").network_token()
    assert "generate-token" in caught.value.hint


def test_a_good_network_token_with_white_space_around_it():
    token = codec.generate()
    config = load(f'p2p:\n  network_token: " {codec.encode(token)} "\n')
    assert config.network_token() == token


def test_places_for_what_others_found():
    config = load("k3s:\n  args:\n    - a\n    - b\n", "f")
    assert (config.place("k3s.args[1]").line, config.place("k3s.args[1]").column) == (4, 7)
    located = config.locate_error(InvalidConfigError("x", key="k3s.args[0]"))
    assert (located.path, located.line, located.column) == ("f", 3, 7)
    assert config.place("").line == 0
    assert config.place("nobody.there").line == 1


def test_the_text_as_the_agent_hands_it_over():
    text = """#cloud-config

# Sources:
# - /oem/90_custom.yaml
# - cmdline

k3s:
    args:
        - --disable=traefik
    enabled: "yes"
p2p:
    disable_dht: true
    network_token: T
    vpn:
        env:
            DHCP: "true"
            MODE: 384
"""
    config = load(text)
    assert config.warnings == ()
    assert config.settings.k3s.enabled is True
    assert config.settings.p2p is not None
    assert config.settings.p2p.vpn.env == {"DHCP": "true", "MODE": "384"}


def test_windows_line_ends():
    config = load("p2p:\r\n  network_token: T\r\n  dns: yes\r\n")
    assert config.settings.token_text() == "T"
