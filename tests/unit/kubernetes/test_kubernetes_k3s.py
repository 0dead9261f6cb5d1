"""k3s' command line and environment: the whole table of scenarios, and the mends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provider_kairos.config import InvalidConfigError, Settings, load
from provider_kairos.errors import LocalError, PeerError
from provider_kairos.kubernetes import NodeFacts, NodeRole
from provider_kairos.kubernetes.k3s import Command, command, server_url

TOKEN = "K10aa::server:pw"

FACTS = NodeFacts(
    role=NodeRole.MASTER,
    binary="/usr/bin/k3s",
    virtual_ip="10.1.0.2",
    interface="ens18",
    interface_ip="192.168.1.5",
    master_address="10.1.0.1",
    join_token=TOKEN,
    hostname_unique=True,
)


def settings(text: str) -> Settings:
    return load(text).settings


def run(text: str, role: str, **facts: object) -> Command:
    return command(settings(text), replace(FACTS, role=NodeRole(role), **facts))  # type: ignore[arg-type]


VPN = "p2p: {network_token: T}"
VPN_KV = "p2p: {network_token: T}\nkubevip: {eip: 192.168.1.110}"
LAN_KV = "p2p: {network_token: T, vpn: {create: false}}\nkubevip: {eip: 192.168.1.110}"
LAN = "p2p: {network_token: T, vpn: {create: false}}"
BESIDE = "p2p: {network_token: T, vpn: {use: false}}"
DB = 'p2p: {network_token: T, auto: {ha: {master_nodes: 2, external_db: "mysql://u:pw@db/k3s"}}}'
JOIN = {"K3S_TOKEN": TOKEN}
AGENT = {"K3S_URL": "https://10.1.0.1:6443", "K3S_TOKEN": TOKEN}
ENDPOINT = {"K3S_DATASTORE_ENDPOINT": "mysql://u:pw@db/k3s"}


@pytest.mark.parametrize(
    ("text", "role", "arguments", "environment"),
    [
        ("k3s: {enabled: true}", "server", "server", {}),
        (
            "k3s-agent: {enabled: true, env: {K3S_TOKEN: S, K3S_URL: 'https://S1:6443'}}",
            "agent",
            "agent",
            {"K3S_TOKEN": "S", "K3S_URL": "https://S1:6443"},
        ),
        (VPN, "master", "server --flannel-iface=edgevpn0 --node-ip=10.1.0.2", {}),
        (VPN_KV, "master", "server --flannel-iface=edgevpn0 --tls-san=192.168.1.110 --node-ip=192.168.1.5", {}),
        (LAN_KV, "master", "server --tls-san=192.168.1.110 --node-ip=192.168.1.5", {}),
        (LAN, "master", "server --node-ip=192.168.1.5", {}),
        (BESIDE, "master", "server --tls-san=10.1.0.2 --node-ip=192.168.1.5", {}),
        (VPN, "master/clusterinit", "server --flannel-iface=edgevpn0 --node-ip=10.1.0.2 --cluster-init", {}),
        (LAN_KV, "master/clusterinit", "server --tls-san=192.168.1.110 --node-ip=192.168.1.5 --cluster-init", {}),
        (VPN, "master/ha", "server --flannel-iface=edgevpn0 --node-ip=10.1.0.2 --server=https://10.1.0.1:6443", JOIN),
        (
            LAN_KV,
            "master/ha",
            "server --tls-san=192.168.1.110 --node-ip=192.168.1.5 --server=https://10.1.0.1:6443",
            JOIN,
        ),
        (DB, "master", "server --flannel-iface=edgevpn0 --node-ip=10.1.0.2", ENDPOINT),
        (DB, "master/clusterinit", "server --flannel-iface=edgevpn0 --node-ip=10.1.0.2", ENDPOINT),
        (
            DB,
            "master/ha",
            "server --flannel-iface=edgevpn0 --node-ip=10.1.0.2 --server=https://10.1.0.1:6443",
            ENDPOINT | JOIN,
        ),
        (VPN, "worker", "agent --node-ip=10.1.0.2 --flannel-iface=edgevpn0", AGENT),
        (LAN, "worker", "agent --node-ip=192.168.1.5", AGENT),
        (LAN_KV, "worker", "agent --node-ip=192.168.1.5", AGENT),
        (
            VPN + "\nk3s: {embedded_registry: true}",
            "master/ha",
            "server --flannel-iface=edgevpn0 --node-ip=10.1.0.2 --embedded-registry --server=https://10.1.0.1:6443",
            JOIN,
        ),
        (
            DB + "\nk3s: {embedded_registry: true}",
            "master/clusterinit",
            "server --flannel-iface=edgevpn0 --node-ip=10.1.0.2 --embedded-registry",
            ENDPOINT,
        ),
        (
            "k3s: {enabled: true, embedded_registry: true, args: [--debug]}",
            "server",
            "server --debug --embedded-registry",
            {},
        ),
    ],
)
def test_the_table_of_scenarios(text, role, arguments, environment):
    made = run(text, role)
    assert made.arguments == tuple(arguments.split())
    assert made.environment == environment
    assert made.warnings == ()


def test_user_arguments_follow_everything_whether_the_block_is_enabled_or_not():
    text = (
        VPN + "\nk3s: {args: [--disable=traefik], env: {A: s}}\nk3s-agent: {args: [--node-label=zone=a], env: {B: a}}"
    )
    assert run(text, "master").arguments[-1] == "--disable=traefik"
    assert run(text, "master").environment == {"A": "s"}
    assert run(text, "worker").arguments[-1] == "--node-label=zone=a"
    assert run(text, "worker").environment == AGENT | {"B": "a"}


@pytest.mark.parametrize(
    ("text", "role", "arguments", "environment"),
    [
        (
            "k3s: {enabled: true, args: [--cluster-init], env: {K3S_TOKEN: S}}",
            "server",
            ["--cluster-init"],
            {"K3S_TOKEN": "S"},
        ),
        (
            'k3s: {enabled: true, args: ["--server https://S1:6443"], env: {K3S_TOKEN: S}}',
            "server",
            ["--server=https://S1:6443"],
            {"K3S_TOKEN": "S"},
        ),
        (
            'k3s: {enabled: true, args: ["--datastore-endpoint mysql://..."], env: {K3S_TOKEN: S}}',
            "server",
            [],
            {"K3S_TOKEN": "S", "K3S_DATASTORE_ENDPOINT": "mysql://..."},
        ),
        (
            'k3s-agent: {enabled: true, args: [--with-node-id], env: {K3S_TOKEN: S, K3S_URL: "https://S1:6443"}}',
            "agent",
            ["--with-node-id"],
            {"K3S_TOKEN": "S", "K3S_URL": "https://S1:6443"},
        ),
    ],
)
def test_examples_without_coordination(text, role, arguments, environment):
    made = run(text, role)
    assert list(made.arguments[1:]) == arguments
    assert made.environment == environment


def test_replace_args_and_replace_env_mean_only_these():
    text = VPN + "\nk3s: {args: [--debug], replace_args: true, env: {A: b}, replace_env: true}"
    assert run(text, "master") == Command(("server", "--debug"), {"A": "b"}, ())
    agent = (
        VPN + "\nk3s-agent: {args: [--debug], replace_args: true, env: {K3S_URL: u, K3S_TOKEN: t}, replace_env: true}"
    )
    assert run(agent, "worker") == Command(("agent", "--debug"), {"K3S_URL": "u", "K3S_TOKEN": "t"}, ())


@pytest.mark.parametrize("flag", ["--node-ip=10.9.9.9", "--flannel-iface=eth1", "-i=10.9.9.9"])
def test_a_generated_flag_gives_way_to_the_users_own(flag):
    made = run(VPN + f"\nk3s: {{args: ['{flag}']}}", "master")
    name = "--flannel-iface" if "iface" in flag else "--node-ip"
    assert [a for a in made.arguments if a.startswith(name)] == [f"{name}={flag.partition('=')[2]}"]
    assert [n.message for n in made.warnings] == [f"replaces the generated {name}"]


def test_names_for_the_certificate_add_up():
    made = run(
        VPN_KV.replace("192.168.1.110", "'192.168.1.110, api.example'") + "\nk3s: {args: [--tls-san=x]}", "master"
    )
    assert [a for a in made.arguments if "san" in a] == [
        "--tls-san=192.168.1.110",
        "--tls-san=api.example",
        "--tls-san=x",
    ]


def test_kube_vip_without_an_elastic_ip_announces_the_virtual_ip():
    assert "--tls-san=10.1.0.2" in run(VPN + "\nkubevip: {enable: true}", "master").arguments


# --- secrets


@pytest.mark.parametrize(
    ("flag", "variable"),
    [
        ("--token", "K3S_TOKEN"),
        ("-t", "K3S_TOKEN"),
        ("--agent-token", "K3S_AGENT_TOKEN"),
        ("--datastore-endpoint", "K3S_DATASTORE_ENDPOINT"),
        ("--vpn-auth", "K3S_VPN_AUTH"),
        ("--etcd-s3-secret-key", "AWS_SECRET_ACCESS_KEY"),
    ],
)
@pytest.mark.parametrize("form", ["{}=S3CR3T", "{} S3CR3T"])
def test_secrets_move_from_the_command_line_to_the_environment(flag, variable, form):
    made = run(f"k3s: {{enabled: true, env: {{{variable}: OLD}}, args: ['{form.format(flag)}']}}", "server")
    assert made.arguments == ("server",)
    assert made.environment == {variable: "S3CR3T"}
    assert "S3CR3T" not in repr(made)


def test_no_scenario_has_a_secret_in_its_arguments_or_its_repr():
    for role in NodeRole:
        made = command(settings(DB), replace(FACTS, role=role))
        assert TOKEN not in repr(made)
        assert "pw@db" not in repr(made)
    assert TOKEN not in repr(FACTS)


# --- joining


def test_an_additional_master_is_never_rendered_without_its_token():
    with pytest.raises(LocalError, match="join token"):
        run(VPN, "master/ha", join_token="")
    with pytest.raises(LocalError, match="join token"):
        run(VPN, "worker", join_token="")
    with pytest.raises(LocalError, match="first master's address"):
        run(VPN, "master/ha", master_address="")


@pytest.mark.parametrize(
    ("k3s", "role", "key"),
    [
        ("{replace_env: true}", "master/ha", "k3s.replace_env"),
        ("{replace_env: true, env: {A: b}}", "master/ha", "k3s.replace_env"),
        ("{env: {K3S_TOKEN: ''}}", "master/ha", "k3s.env"),
        ("{args: ['--server=https://S1:6443'], enabled: true}", "server", "k3s"),
        ("{args: ['--server=https://S1:6443']}", "master", "k3s"),
        ("{env: {K3S_URL: 'https://S1:6443'}, enabled: true}", "server", "k3s.env"),
        ("{replace_args: true, args: [--debug]}", "master/ha", "k3s.replace_args"),
        ("{args: ['--server=']}", "master/ha", "k3s.args"),
    ],
)
def test_a_server_that_would_silently_found_its_own_cluster_is_refused(k3s, role, key):
    with pytest.raises(InvalidConfigError, match="a cluster of its own") as caught:
        run(f"{VPN}\nk3s: {k3s}", role)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("k3s", "role", "facts"),
    [
        ("{replace_env: true, env: {K3S_TOKEN: S}}", "master/ha", {}),
        ("{replace_env: true, env: {K3S_TOKEN_FILE: /a}}", "master/ha", {}),
        ("{replace_env: true, args: [--token=S]}", "master/ha", {}),
        ("{replace_env: true, args: [--token-file=/a]}", "master/ha", {}),
        ("{replace_env: true}", "master/ha", {"config_keys": frozenset({"token"})}),
        ("{replace_args: true, args: ['--server=https://S1:6443']}", "master/ha", {}),
        ("{replace_args: true}", "master/ha", {"config_keys": frozenset({"server"})}),
        ("{args: ['--server=https://S1:6443'], enabled: true}", "server", {"config_keys": frozenset({"token-file"})}),
    ],
)
def test_a_token_or_server_from_elsewhere_counts(k3s, role, facts):
    assert run(f"{VPN}\nk3s: {k3s}", role, **facts)


def test_an_external_datastore_joins_by_itself():
    assert run(DB + "\nk3s: {replace_args: true}", "master/ha").environment == ENDPOINT | JOIN


@pytest.mark.parametrize("role", ["master", "master/clusterinit", "master/ha"])
def test_a_server_url_never_stands_in_a_masters_environment(role):
    made = run(VPN + "\nk3s: {env: {K3S_URL: 'https://S1:6443', K3S_TOKEN: S}}", role)
    assert "K3S_URL" not in made.environment
    assert "--server=https://S1:6443" not in made.arguments
    assert [n.key for n in made.warnings] == ["k3s.env.K3S_URL"]


def test_a_manual_server_with_a_url_in_its_environment_joins_there():
    made = run("k3s: {enabled: true, env: {K3S_URL: 'https://S1:6443', K3S_TOKEN: S}}", "server")
    assert made.arguments == ("server", "--server=https://S1:6443")
    assert made.environment == {"K3S_TOKEN": "S"}


def test_an_agent_without_a_server_or_token():
    with pytest.raises(InvalidConfigError, match=r"k3s-agent.replace_env leaves out K3S_URL and K3S_TOKEN"):
        run(VPN + "\nk3s-agent: {replace_env: true}", "worker")
    with pytest.raises(InvalidConfigError, match=r"k3s-agent.env leaves out K3S_TOKEN"):
        run(VPN + "\nk3s-agent: {env: {K3S_TOKEN: ''}}", "worker")
    made = run("k3s-agent: {enabled: true}", "agent")
    assert [n.message for n in made.warnings] == ["no K3S_URL and K3S_TOKEN: this agent cannot join"]
    assert run("k3s-agent: {enabled: true}", "agent", config_keys=frozenset({"server", "token"})).warnings == ()


def test_an_agents_server_url_is_kept():
    assert run(VPN, "worker", server_url="https://10.1.0.9:6443").environment["K3S_URL"] == "https://10.1.0.9:6443"
    assert (
        run(VPN, "worker", server_url="https://10.1.0.9:6443", master_address="").environment["K3S_URL"]
        == "https://10.1.0.9:6443"
    )


# --- node ids, addresses


@pytest.mark.parametrize(
    ("option", "unique", "with_id"),
    [("", True, False), ("", False, True), ("", None, True), ("true", True, True), ("false", None, False)],
)
def test_node_ids_only_where_host_names_clash_or_are_not_known(option, unique, with_id):
    text = VPN + (f"\nk3s-agent: {{with_node_id: {option}}}" if option else "")
    assert ("--with-node-id" in run(text, "worker", hostname_unique=unique).arguments) is with_id
    assert "--with-node-id" not in run(text, "master", hostname_unique=unique).arguments


@pytest.mark.parametrize("role", ["master", "master/clusterinit", "master/ha", "worker"])
def test_an_address_that_is_not_there_yet_is_the_callers_to_wait_for(role):
    with pytest.raises(LocalError, match="virtual IP"):
        run(VPN, role, virtual_ip="")
    with pytest.raises(LocalError, match="interface address"):
        run(LAN, role, interface_ip="")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("10.1.0.1", "https://10.1.0.1:6443"),
        ("fd00::1", "https://[fd00::1]:6443"),
        ("api.example.org", "https://api.example.org:6443"),
    ],
)
def test_server_urls(address, url):
    assert server_url(address) == url


@pytest.mark.parametrize(
    "address", ["10.1.0.1 --x", "https://10.1.0.1", "a/b", "10.1.0.1\n", "-x", "x" * 300, "ü", "a@b"]
)
def test_an_address_from_the_ledger_that_is_none_is_a_peers_fault(address):
    with pytest.raises(PeerError):
        run(VPN, "worker", master_address=address)


@pytest.mark.parametrize("token", ["a b", "a\nK3S_URL=x", "\x00", "ü", "x" * 5000])
def test_a_token_from_the_ledger_that_is_none_is_a_peers_fault(token):
    with pytest.raises(PeerError) as caught:
        run(VPN, "worker", join_token=token)
    assert token not in str(caught.value)


def test_white_space_around_a_token_is_no_part_of_it():
    assert run(VPN, "worker", join_token=f" {TOKEN}\n").environment["K3S_TOKEN"] == TOKEN


def test_the_words_about_odd_arguments_reach_the_caller_and_have_places():
    config = load(f'{VPN}\nk3s:\n  args:\n    - --debug\n    - "--disable traefik"\n', "f")
    made = command(config.settings, FACTS)
    (notice,) = [config.locate_notice(n) for n in made.warnings]
    assert str(notice).startswith("f:5:7: k3s.args[1]: --disable and its value")
