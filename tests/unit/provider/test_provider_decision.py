"""The decision tree, every row of it, and the answers (spec/provider.md 3.2)."""

from __future__ import annotations

import itertools
import json

import pytest

from provider_kairos.config import load
from provider_kairos.errors import HostError
from provider_kairos.provider import bootstrap as tree
from provider_kairos.provider.daemon_unit import ENV_FILE
from provider_kairos.provider.decision import TABLE, Outcome, decide, outcome_for
from provider_kairos.provider.disk import SENTINEL
from provider_kairos.provider.machine import FakeMachine
from provider_kairos.provider.plugin import Context
from provider_kairos.provider.status import STATUS_FILE


def test_exactly_one_row_fits_every_combination():
    for p2p, token, auto_off, distribution in itertools.product([True, False], repeat=4):
        fitting = [
            row
            for row in TABLE
            if row.p2p is p2p
            and row.token in {None, token}
            and row.auto_off in {None, auto_off}
            and row.distribution in {None, distribution}
        ]
        assert len(fitting) == 1
        assert decide(p2p=p2p, token=token, auto_off=auto_off, distribution=distribution) is fitting[0].outcome


@pytest.mark.parametrize(
    ("config", "outcome"),
    [
        ("hostname: x", Outcome.NOTHING),
        ("p2p:", Outcome.NOTHING),
        ("k3s: {enabled: false}", Outcome.NOTHING),
        ("k3s: {enabled: true}", Outcome.ONE_TIME),
        ("k3s-agent: {enabled: true}", Outcome.ONE_TIME),
        ("p2p: {}", Outcome.NO_TOKEN),
        ("p2p: {role: master}", Outcome.NO_TOKEN),
        ("p2p: {}\nk3s: {enabled: true}", Outcome.ONE_TIME_NO_TOKEN),
        ("p2p: {network_token: x}", Outcome.LOOP),
        ("p2p: {network_token: x}\nk3s: {enabled: true}", Outcome.LOOP),
        ("p2p: {network_token: x, auto: {enable: false}}\nk3s: {enabled: true}", Outcome.ONE_TIME_VPN),
        ("p2p: {network_token: x, auto: {enable: false}}", Outcome.ONE_TIME_VPN),
        ("p2p: {auto: {enable: false}}\nk3s: {enabled: true}", Outcome.ONE_TIME_NO_TOKEN),
        ("p2p: {auto: {enable: false}, role: worker}", Outcome.ONE_TIME_NO_TOKEN),
    ],
)
def test_configurations(config, outcome):
    assert outcome_for(load(config).settings) is outcome


# -- answers and what is on the machine afterwards


def run(config, machine=None, **environ):
    machine = machine or FakeMachine({"/usr/bin/k3s": ""})
    environ = {"KAIROS_P2P_BIN": "/usr/bin/kairos-p2p", "EDGEVPN_API": "unix:///run/edgevpn-kairos.sock"} | environ
    return tree.bootstrap(machine, load(config), "http://127.0.0.1:8080", environ), machine


def test_nothing_to_do_touches_nothing():
    response, machine = run("hostname: x")
    assert response.state == "no P2P or kubernetes configured"
    assert response.error == ""
    assert machine.done == []


def test_stage_and_hook_come_first():
    machine = FakeMachine({"/usr/bin/k3s": "", tree.HOOK: "#!/bin/sh"})
    run("k3s: {enabled: true}", machine)
    assert machine.done[:2] == ["stage kairos-agent.bootstrap", f"hook {tree.HOOK}"]


def test_a_p2p_block_without_token_and_distribution_is_an_error():
    response, _ = run("p2p: {}")
    assert response.error.startswith("No network token provided, ")


def test_one_time_k3s():
    response, machine = run("k3s: {enabled: true, args: [--disable=traefik], env: {A: b}}")
    assert vars_of(response) == ("", "", "")
    assert "k3s server --disable=traefik" in machine.files["/etc/systemd/system/k3s.service.d/override.conf"]
    assert 'A="b"' in machine.files["/etc/sysconfig/k3s"]
    assert {"k3s"} == machine.active == machine.enabled
    assert machine.done[-2:] == [f"write {SENTINEL}", f"write {STATUS_FILE}"]
    assert ENV_FILE not in machine.files


def vars_of(response):
    return response.state, response.data, response.error


def test_one_time_again_does_nothing():
    _, machine = run("k3s: {enabled: true}")
    machine.done.clear()
    response, _ = run("k3s: {enabled: true}", machine)
    assert vars_of(response) == ("", "", "")
    assert [d for d in machine.done if STATUS_FILE not in d] == ["stage kairos-agent.bootstrap"]


def test_one_time_with_a_token_brings_the_vpn_up_before_k3s(p2p):
    response, machine = run(p2p("  auto: {enable: false}\n") + "k3s: {enabled: true}\n")
    assert response.error == ""
    assert machine.done.index("start edgevpn@kairos") < machine.done.index("start k3s")


def test_one_time_without_a_token_starts_no_vpn():
    response, machine = run("p2p: {}\nk3s: {enabled: true}\n")
    assert response.error == ""
    assert machine.active == {"k3s"}


def test_one_time_by_role_alone():
    _, machine = run("p2p: {auto: {enable: false}, role: worker}\n")
    assert machine.active == {"k3s-agent"}


def test_one_time_without_anything_to_run_is_an_error():
    response, _ = run("p2p: {auto: {enable: false}}")
    assert response.error.startswith("Failed setup: no k8s configuration found but p2p is configured")


def said(machine):
    return json.loads(machine.files[STATUS_FILE])


@pytest.mark.parametrize(
    ("spoil", "mend", "words"),
    [
        (
            lambda m: m.refuse.update({"start k3s": HostError("systemctl start k3s ended with status 1")}),
            lambda m: m.refuse.clear(),
            "systemctl start k3s",
        ),
        (
            lambda m: m.files.pop("/usr/bin/k3s"),
            lambda m: m.files.update({"/usr/bin/k3s": ""}),
            "no k8s binary is available",
        ),
    ],
)
def test_what_a_machine_refuses_is_tried_again_and_no_error(spoil, mend, words):
    machine, seen = FakeMachine({"/usr/bin/k3s": ""}), []
    spoil(machine)

    def pause(seconds):
        assert SENTINEL not in machine.files
        seen.append((seconds, said(machine)["waiting"][0]["text"]))
        if len(seen) == 3:
            mend(machine)

    response = tree.bootstrap(machine, load("k3s: {enabled: true}"), "", {}, pause=pause)
    assert vars_of(response) == ("", "", "")
    assert [seconds for seconds, _ in seen] == [2, 4, 8]
    assert all(words in text for _, text in seen)
    assert SENTINEL in machine.files
    assert said(machine)["waiting"] == []
    assert said(machine)["configured"] is True


def test_a_one_time_bootstrap_has_one_phase():
    _, machine = run("k3s: {enabled: true}")
    assert [(p["name"], p["state"]) for p in said(machine)["phases"]] == [("service", "done")]


def test_a_role_that_is_none_is_an_error_with_its_place(p2p):
    response, machine = run(p2p("  role: boss\n"))
    assert "invalid p2p.role specified" in response.error
    assert response.error.startswith("line:4:9: ")
    assert said(machine)["error"] == response.error


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("p2p: {}", "No network token"),
        ("p2p: {auto: {enable: false}}", "no k8s configuration found"),
        ("p2p: {network_token: c2VjcmV0LXdvcmQ=}", "network token"),
        ("p2p: {network_token: c2VjcmV0LXdvcmQ=, auto: {enable: false}}\nk3s: {enabled: true}", "network token"),
    ],
)
def test_what_cannot_work_is_where_status_looks_and_in_the_log(config, words, caplog):
    response, machine = run(config)
    assert words in response.error
    assert words in said(machine)["error"]
    assert words in caplog.text
    assert said(machine)["configured"] is False
    assert "c2VjcmV0" not in machine.files[STATUS_FILE]


def test_a_token_that_is_none_is_an_error_that_names_no_secret():
    response, _ = run("p2p: {network_token: c2VjcmV0LXdvcmQ=}")
    assert response.error.startswith("Failed setup VPN: ")
    assert "network token" in response.error
    assert "secret-word" not in response.error
    assert "c2VjcmV0" not in response.error


def test_broken_yaml_is_an_error_with_its_place():
    machine = FakeMachine()
    response = tree.handle({"config": "p2p:\n  - a\n b: [\n"}, Context("agent.bootstrap", {}), machine)
    assert response.error.startswith("Failed reading JSON input: ")
    assert "cloud-config:3:2" in response.error
    assert "cloud-config:3:2" in said(machine)["error"]


def test_a_payload_that_is_no_json_is_an_error():
    assert tree.handle({"": "{"}, Context("agent.bootstrap", {})).error.startswith("Failed reading JSON input: ")


def test_an_api_address_that_nobody_can_listen_on_is_an_error(p2p):
    response, _ = run(p2p(), EDGEVPN_API="https://1.2.3.4:1")
    assert response.error.startswith("Failed setup VPN: API address")
