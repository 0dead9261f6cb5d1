"""Files for systemd and OpenRC: paths, modes, texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provider_kairos.config import load
from provider_kairos.errors import ConfigError
from provider_kairos.kubernetes import (
    Distribution,
    InitKind,
    NodeFacts,
    NodeRole,
    UnsupportedError,
    render,
)
from provider_kairos.quoting import parse_env_file

FACTS = NodeFacts(
    role=NodeRole.HA,
    binary="/usr/bin/k3s",
    virtual_ip="10.1.0.2",
    master_address="10.1.0.1",
    join_token="K10aa::server:p$w",
    after=("edgevpn@kairos.service",),
)
SETTINGS = load("p2p: {network_token: T}\nk3s: {args: ['--node-label=a=b c', '--kubelet-arg=x=50%$HOME']}").settings


def test_systemd_files_of_an_additional_master():
    made = render(SETTINGS, FACTS)
    assert made.service == "k3s"
    assert made.argv == (
        "/usr/bin/k3s",
        "server",
        "--flannel-iface=edgevpn0",
        "--node-ip=10.1.0.2",
        "--server=https://10.1.0.1:6443",
        "--node-label=a=b c",
        "--kubelet-arg=x=50%$HOME",
    )
    assert [(f.path, f.mode) for f in made.files] == [
        ("/etc/sysconfig/k3s", 0o600),
        ("/etc/systemd/system/k3s.service.d/override.conf", 0o600),
    ]
    assert made.env_file.content == (
        '# Written by the Kairos provider when this node was configured.\nK3S_TOKEN="K10aa::server:p\\$w"\n'
    )
    assert made.drop_in is not None
    assert made.drop_in.content == (
        "# Written by the Kairos provider when this node was configured.\n"
        "[Unit]\n"
        "StartLimitIntervalSec=0\n"
        "Wants=edgevpn@kairos.service\n"
        "After=edgevpn@kairos.service\n"
        "\n"
        "[Service]\n"
        "EnvironmentFile=-/etc/sysconfig/k3s\n"
        "ExecStart=\n"
        "ExecStart=/usr/bin/k3s server --flannel-iface=edgevpn0 --node-ip=10.1.0.2"
        ' --server=https://10.1.0.1:6443 "--node-label=a=b c" --kubelet-arg=x=50%%$$HOME\n'
        "# k3s ends with status 0 on many fatal errors\n"
        "Restart=always\n"
        "RestartSec=2\n"
    )


def test_systemd_files_of_a_worker():
    made = render(SETTINGS, replace(FACTS, role=NodeRole.WORKER, after=()))
    assert made.service == "k3s-agent"
    assert [f.path for f in made.files] == [
        "/etc/sysconfig/k3s-agent",
        "/etc/systemd/system/k3s-agent.service.d/override.conf",
    ]
    assert made.drop_in is not None
    assert "After=" not in made.drop_in.content
    assert parse_env_file(made.env_file.content) == made.environment


def test_openrc_has_one_file_with_command_and_environment():
    made = render(SETTINGS, replace(FACTS, init=InitKind.OPENRC))
    assert [(f.path, f.mode) for f in made.files] == [("/etc/rancher/k3s/k3s.env", 0o600)]
    variables = parse_env_file(made.env_file.content)
    assert variables.pop("command_args") == (
        "server --flannel-iface=edgevpn0 --node-ip=10.1.0.2 --server=https://10.1.0.1:6443"
        " '--node-label=a=b c' '--kubelet-arg=x=50%$HOME' >>/var/log/k3s.log 2>&1"
    )
    assert variables == made.environment
    agent = render(SETTINGS, replace(FACTS, init=InitKind.OPENRC, role=NodeRole.WORKER))
    assert agent.env_file.path == "/etc/rancher/k3s/k3s-agent.env"


def test_a_plain_server_has_an_empty_environment():
    made = render(load("k3s: {enabled: true}").settings, NodeFacts(NodeRole.SERVER, "/usr/bin/k3s"))
    assert made.argv == ("/usr/bin/k3s", "server")
    assert parse_env_file(made.env_file.content) == {}


def test_the_join_token_is_in_the_env_file_alone():
    for init in InitKind:
        made = render(SETTINGS, replace(FACTS, init=init))
        assert "K10aa" not in repr(made)
        assert "K10aa" not in " ".join(made.argv)
        assert [f.path for f in made.files if "K10aa" in f.content] == [made.env_file.path]
        assert made.env_file.mode == 0o600


def test_the_same_facts_give_the_same_files():
    assert render(SETTINGS, FACTS) == render(SETTINGS, FACTS)


@pytest.mark.parametrize("env", ["{'A B': c}", '{A: "\\x01"}', '{A: "x\\r"}'])
def test_an_environment_that_no_file_can_hold_is_refused(env):
    with pytest.raises(ConfigError, match="env: "):
        render(load(f"k3s: {{enabled: true, env: {env}}}").settings, NodeFacts(NodeRole.SERVER, "/usr/bin/k3s"))


def test_what_is_not_here_yet_is_refused_before_anything_is_rendered():
    with pytest.raises(UnsupportedError):
        render(load("k0s: {enabled: true}").settings, FACTS, Distribution.K0S)
    with pytest.raises(UnsupportedError):
        render(load("p2p: {network_token: T}\nkubevip: {eip: 1.2.3.4}").settings, FACTS)
