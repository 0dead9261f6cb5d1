"""Which distribution and role: every row of the table, with the texts that people search for."""

from __future__ import annotations

import pytest

from provider_kairos.config import load
from provider_kairos.errors import ConfigError, HostError
from provider_kairos.kubernetes import (
    Binaries,
    Choice,
    Distribution,
    NodeRole,
    UnsupportedError,
    binary_path,
    choose_distribution,
    refuse_unsupported,
)

K3S = Binaries(k3s="/usr/bin/k3s")
K0S = Binaries(k0s="/usr/bin/k0s")
BOTH = Binaries("/usr/bin/k3s", "/usr/bin/k0s")


@pytest.mark.parametrize(
    ("text", "binaries", "distribution", "role"),
    [
        ("k3s: {enabled: true}", K3S, "k3s", "master"),
        ("k3s-agent: {enabled: true}", K3S, "k3s", "worker"),
        ("k0s: {enabled: true}", K0S, "k0s", "master"),
        ("k0s-worker: {enabled: true}", K0S, "k0s", "worker"),
        ("k3s: {enabled: true}\nk3s-agent: {enabled: true}", K3S, "k3s", "master"),
        ("k0s: {enabled: true}\nk3s-agent: {enabled: true}", BOTH, "k3s", "worker"),
        ("k3s: {enabled: true}", K0S, "k3s", "master"),
        ("p2p: {role: master}", K3S, "k3s", "master"),
        ("p2p: {role: worker}", K0S, "k0s", "worker"),
        ("p2p: {role: worker}", BOTH, "k3s", "worker"),
        ("p2p: {role: boss}\nk3s: {enabled: true}", K3S, "k3s", "master"),
        ("p2p: {network_token: T}", K3S, "k3s", ""),
        ("p2p: {network_token: T}", K0S, "k0s", ""),
        ("p2p: {network_token: T}", BOTH, "k3s", ""),
        ("p2p: {network_token: T, auto: {enable: false}}", BOTH, "k3s", ""),
        ("p2p: {auto: {enable: true}}", K3S, "k3s", ""),
    ],
)
def test_the_first_row_that_matches(text, binaries, distribution, role):
    assert choose_distribution(load(text).settings, binaries) == Choice(Distribution(distribution), role)


def test_no_binary():
    with pytest.raises(HostError) as caught:
        choose_distribution(load("k3s: {enabled: true}").settings, Binaries())
    assert caught.value.message == "no k8s binary is available"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no k8s configuration found"),
        ("k3s: {args: [a]}", "no k8s configuration found"),
        ("p2p: {role: none}", "invalid p2p.role specified, must be 'master' or 'worker'"),
        ("p2p: {network_token: T, role: master/ha}", "invalid p2p.role specified, must be 'master' or 'worker'"),
        ("p2p: {}", "no k8s configuration found but p2p is configured"),
        ("p2p: {auto: {enable: false}}", "no k8s configuration found but p2p is configured"),
    ],
)
def test_nothing_to_choose(text, message):
    with pytest.raises(ConfigError) as caught:
        choose_distribution(load(text).settings, K3S)
    assert caught.value.message == message


def test_a_chosen_distribution_whose_binary_is_not_there():
    assert binary_path(Distribution.K3S, BOTH) == "/usr/bin/k3s"
    assert binary_path(Distribution.K0S, BOTH) == "/usr/bin/k0s"
    with pytest.raises(HostError) as caught:
        binary_path(Distribution.K3S, K0S)
    assert caught.value.message == "no k3s binary found"


def test_roles_of_a_one_time_bootstrap():
    assert Choice(Distribution.K3S, "master").standalone_role() is NodeRole.SERVER
    assert Choice(Distribution.K3S, "worker").standalone_role() is NodeRole.AGENT


def test_k0s_is_refused_clearly():
    with pytest.raises(UnsupportedError, match="k0s is not supported yet by this version"):
        refuse_unsupported(load("k0s: {enabled: true}").settings, Distribution.K0S, NodeRole.SERVER)


@pytest.mark.parametrize("role", [NodeRole.MASTER, NodeRole.CLUSTERINIT, NodeRole.HA])
def test_kube_vip_is_refused_clearly_where_it_would_have_to_be_deployed(role):
    config = load("p2p: {network_token: T}\nkubevip:\n  eip: 1.2.3.4\n", "f")
    with pytest.raises(UnsupportedError, match="kubevip is not supported yet by this version") as caught:
        refuse_unsupported(config.settings, Distribution.K3S, role)
    located = config.locate_error(caught.value)
    assert (located.line, located.column) == (3, 8)


@pytest.mark.parametrize("role", [NodeRole.WORKER, NodeRole.SERVER, NodeRole.AGENT])
def test_others_join_a_cluster_with_kube_vip(role):
    refuse_unsupported(load("kubevip: {eip: 1.2.3.4}").settings, Distribution.K3S, role)
