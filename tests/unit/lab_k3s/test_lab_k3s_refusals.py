"""What the stand-in refuses, with k3s' texts and ways to end (k3s notes, sections 1.2, 6, 7 and 11)."""

from __future__ import annotations

import socket

import pytest

from provider_kairos.lab.k3s import facts, kubelet, node, tokens
from provider_kairos.lab.k3s.__main__ import main
from provider_kairos.lab.k3s.arguments import parse
from provider_kairos.lab.k3s.cluster import mismatches
from provider_kairos.lab.k3s.control import control_config
from provider_kairos.lab.k3s.join import ServerUrl
from provider_kairos.lab.k3s.life import Fatal, Life, Shutdown

CA = b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the program up to its refusal: status and the last line of the log."""
    monkeypatch.setenv("K3S_STANDIN_ETC", str(tmp_path / "etc"))
    monkeypatch.setenv("K3S_STANDIN_SPEED", "100")
    monkeypatch.setattr(Life, "install_signals", lambda _self: None)

    def runner(command, *arguments):
        status = main([command, f"--data-dir={tmp_path / 'data'}", *arguments])
        return status, capsys.readouterr().err.splitlines()[-1].partition(" ")[2]

    return runner


def options(*arguments, tmp_path):
    return parse("server", arguments, {}, tmp_path)


# -- kubelet: status 0 after "Shutdown request received" -----------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (
            '--node-label=""',
            "kubelet exited: failed to validate kubelet flags: invalid node labels: '\"\"' - name part",
        ),
        (
            "--node-label=a=b c",
            "kubelet exited: failed to validate kubelet flags: invalid node labels: 'a=b c' - a valid",
        ),
        (
            "--node-label=node-role.kubernetes.io/worker=true",
            (
                "kubelet exited: failed to validate kubelet flags: unknown 'kubernetes.io' or 'k8s.io' labels specified "
                "with --node-labels: [node-role.kubernetes.io/worker]"
            ),
        ),
        (
            "--node-taint=xx",
            (
                "failed to start kubelet: prepare default configuration drop-in: failed to parse node taints: "
                "invalid taint spec: xx"
            ),
        ),
        ("--kubelet-arg=nosuch=1", "kubelet exited: failed to parse kubelet flag: unknown flag: --nosuch"),
    ],
)
def test_the_kubelet_refuses(argument, text, tmp_path):
    with pytest.raises(Shutdown) as caught:
        kubelet.check_flags(options(argument, tmp_path=tmp_path))
    assert str(caught.value).startswith(text)


def test_the_kubelet_accepts(tmp_path):
    given = options(
        "--node-label=", "--node-label=a.b/c=d,node.kubernetes.io/e=", "--node-taint=k=v:NoSchedule",
        "--node-taint=k:NoExecute", "--kubelet-arg=max-pods=10", "--kubelet-arg=--v=2", tmp_path=tmp_path,
    )  # fmt: skip
    labels, taints = kubelet.check_flags(given)
    assert labels == {"a.b/c": "d", "node.kubernetes.io/e": ""}
    assert taints == [{"key": "k", "effect": "NoSchedule", "value": "v"}, {"key": "k", "effect": "NoExecute"}]


def test_an_interface_that_went_away_ends_flannel_and_network_policy_with_status_0(tmp_path):
    given = options("--flannel-iface=nosuch0", tmp_path=tmp_path)
    with pytest.raises(Shutdown, match="failed to create vxlan device: no such device"):
        node.check_flannel_interface(given)
    with pytest.raises(Shutdown, match="failed to find interface with specified node ip"):
        node.check_network_policy(given, "127.0.0.1")
    with pytest.raises(Shutdown, match="failed to find interface with specified node ip"):
        node.check_network_policy(options(tmp_path=tmp_path), "192.0.2.1")


# -- status 1 at once ------------------------------------------------------------------------------------------------


def fatal(text):
    quoted = text.replace('"', '\\"')
    return 1, f'level=fatal msg="{quoted}"'


@pytest.mark.parametrize("command", ["server", "agent"])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--node-ip="], "Error: invalid node-ip: invalid ip format ''"),
        (["--node-ip=foo"], "Error: invalid node-ip: invalid ip format 'foo'"),
        (
            ["--flannel-iface=nosuch0", "--node-ip=127.0.0.1"],
            "Error: unable to find interface nosuch0: route ip+net: no such network interface",
        ),
        (
            ["--flannel-iface=nosuch0"],
            (
                "Error: interface nosuch0 does not have a correct global unicast ip: "
                "route ip+net: no such network interface"
            ),
        ),
    ],
)
def test_addresses_are_judged_at_once(run, command, arguments, text):
    join = ["--token=x", "--server=https://127.0.0.1:1"] if command == "agent" else []
    assert run(command, *join, *arguments) == fatal(text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Error: --token is required"),
        (["--server=https://127.0.0.1:1"], "Error: --token is required"),
        (["--token=x"], "Error: --server is required"),
        (
            ["--token=x", "--server=10.1.0.1:6443"],
            'Error: parse "10.1.0.1:6443": first path segment in URL cannot contain colon',
        ),
    ],
)
def test_an_agent_needs_token_and_server(run, arguments, text):
    assert run("agent", *arguments) == fatal(text)


def test_an_unknown_datastore_scheme_is_refused(run):
    status, line = run("server", "--node-ip=127.0.0.1", "--datastore-endpoint=foo://x")
    assert status == 1
    assert "creating storage endpoint" in line
    assert line.endswith('unknown driver"')


def test_an_unreachable_datastore_is_refused_without_a_retry(run):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    status, line = run("server", "--node-ip=127.0.0.1", f"--datastore-endpoint=mysql://u:p@tcp(127.0.0.1:{port})/k")
    assert status == 1
    assert f"failed to create driver for configured endpoint: dial tcp 127.0.0.1:{port}: connect: " in line
    assert "u:p" not in line


def test_a_datastore_that_is_there_is_not_pretended_to_be_used(run):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        status, line = run("server", "--node-ip=127.0.0.1", f"--datastore-endpoint=http://127.0.0.1:{port}")
    assert (status, "stand-in" in line) == (1, True)


@pytest.mark.parametrize("flag", ["--cluster-cidr=10.0.0.0", "--service-cidr=x/24", "--cluster-cidr=10.0.0.0/99"])
def test_networks_are_judged_at_once(run, flag):
    status, line = run("server", "--node-ip=127.0.0.1", flag)
    assert status == 1
    assert "invalid CIDR address" in line


@pytest.mark.parametrize("command", ["server", "agent"])
def test_a_token_file_for_a_server_must_exist(run, tmp_path, command):
    path = tmp_path / "token"
    if command == "server":
        assert run("server", "--node-ip=127.0.0.1", f"--token-file={path}") == fatal(
            f"Error: open {path}: no such file or directory"
        )
    path.write_text("\n")
    if command == "agent":
        assert run("agent", f"--token-file={path}") == fatal("Error: --token is required")


def test_the_port_of_another_is_not_taken(run):
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        status, line = run("server", "--node-ip=127.0.0.1", f"--https-listen-port={port}", "--bind-address=0.0.0.0")
    assert status == 1
    assert f"listen tcp 0.0.0.0:{port}: bind: address already in use" in line


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_a_full_token_names_its_authority():
    token = tokens.JoinToken.parse(tokens.render(CA, "server", "pw") + "\n")
    assert (token.full, token.password) == (True, "pw")
    tokens.check_ca(token, CA)
    with pytest.raises(
        tokens.CaMismatch, match=r"token CA hash does not match the Cluster CA certificate hash: .* != "
    ):
        tokens.check_ca(token, CA + b"\n")


def test_a_hash_of_the_wrong_length_is_said_so():
    with pytest.raises(tokens.CaMismatch, match=r"^invalid token CA hash length$"):
        tokens.check_ca(tokens.JoinToken.parse("K10abc::server:pw"), CA)


def test_a_short_token_is_a_password_and_names_nobody():
    token = tokens.JoinToken.parse(" pw ")
    assert (token.full, token.password) == (False, "pw")
    tokens.check_ca(token, CA)


def test_a_token_is_not_in_its_representation():
    assert "hunter2" not in repr(tokens.JoinToken.parse("hunter2"))


# -- joining servers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "fields"),
    [
        ("--cluster-domain=x.y", ["cluster-domain"]),
        ("--flannel-backend=host-gw", ["flannel-backend"]),
        ("--secrets-encryption", ["secrets-encryption"]),
        ("--disable-network-policy", ["disable-network-policy"]),
        ("--egress-selector-mode=pod", ["egress-selector-mode"]),
        ("--embedded-registry", ["embedded-registry"]),
        ("--cluster-cidr=10.52.0.0/16", ["ClusterIPRange.IP.slice[13]", "ClusterIPRanges.slice[0].IP.slice[13]"]),
        ("--cluster-cidr=10.42.0.0/15", ["ClusterIPRange.Mask.slice[1]", "ClusterIPRanges.slice[0].Mask.slice[1]"]),
        (
            "--service-cidr=10.53.0.0/16",
            ["ClusterDNS", "ServiceIPRange.IP.slice[13]", "ServiceIPRanges.slice[0].IP.slice[13]"],
        ),
        ("--disable=traefik", []),
        ("--tls-san=x", []),
    ],
)
def test_critical_settings_are_compared_by_name(argument, fields, tmp_path):
    ours = control_config(options(argument, tmp_path=tmp_path))
    theirs = control_config(options(tmp_path=tmp_path))
    assert mismatches(ours, theirs) == fields


@pytest.mark.parametrize(
    ("text", "target", "usable"),
    [
        ("https://10.1.0.1:6443", "10.1.0.1:6443", True),
        ("https://10.1.0.1:6443/", "10.1.0.1:6443", True),
        ("https://[fd00::1]:6443", "[fd00::1]:6443", True),
        ("https://name", "name:443", True),
        ("http://10.1.0.1:6443", "10.1.0.1:6443", False),
        ("name", ":443", False),
    ],
)
def test_server_urls(text, target, usable):
    url = ServerUrl(text)
    assert (url.target, url.https) == (target, usable)


@pytest.mark.parametrize("text", ["10.1.0.1:6443", "name:6443/x", "https://a:99999", "https://[x"])
def test_server_urls_that_cannot_be_read(text):
    with pytest.raises(Fatal, match=r"^Error: parse "):
        ServerUrl(text)


# -- names and identity ------------------------------------------------------------------------------------------------


def test_the_node_password_is_made_once(tmp_path):
    first = node.node_password(tmp_path)
    path = tmp_path / "node" / "password"
    assert path.read_text() == f"{first}\n"
    assert (len(first), path.stat().st_mode & 0o777) == (32, 0o600)
    assert node.node_password(tmp_path) == first


def test_the_node_id_is_made_once_and_readable(tmp_path):
    first = facts.node_name("box1", tmp_path, with_id=True)
    path = tmp_path / "node" / "id"
    assert first == f"box1-{path.read_text().strip()}"
    assert path.stat().st_mode & 0o777 == 0o644
    assert facts.node_name("box1", tmp_path, with_id=True) == first


@pytest.mark.parametrize(("name", "valid"), [("box-1.a", True), ("Foo_Bar", False), ("-a", False), ("", False)])
def test_node_names(name, valid):
    assert facts.valid_node_name(name) is valid


def test_the_flannel_interface_gives_the_address_when_none_was_given():
    assert facts.node_addresses((), "lo") == ["127.0.0.1"]
    assert facts.node_addresses(("10.9.9.9",), "lo") == ["10.9.9.9"]
