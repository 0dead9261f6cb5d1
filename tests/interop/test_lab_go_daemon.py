"""Whole clusters in the lab of either program's provider on either program's daemon (spec/provider.md 4.1, 4.12)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from provider_kairos.token.codec import encode, generate


@pytest.fixture
def lab():
    """``lab(verb, ...)`` on a lab of its own, which is taken down at the end."""
    name = f"t{os.getpid()}-go"

    def run(verb: str, *arguments: str, check: bool = True, program: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "provider_kairos.lab", verb, "--name", name, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **({"EDGEVPN_BIN": program} if program else {})},
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    yield run
    run("down", check=False)


def ready(document: str) -> list[str]:
    """Roles of a cluster of which every node is Ready, sorted."""
    cluster = json.loads(document)
    assert all(node["ready"] for node in cluster["cluster"]["nodes"])
    assert len({box["address"] for box in cluster["boxes"]}) == len(cluster["boxes"])
    return sorted(box["role"] for box in cluster["boxes"])


def test_a_cluster_of_three_on_edgevpn(edgevpn_bin, lab):
    assert ready(lab("up", "--boxes", "3", "--daemon", "go", "--json", "--timeout", "300")) == [
        "master",
        "worker",
        "worker",
    ]
    before = {box["name"]: box for box in json.loads(lab("status", "--json"))["boxes"]}
    master = next(name for name, box in before.items() if box["role"] == "master")
    lab("reboot", "--wait", master)
    after = {box["name"]: box for box in json.loads(lab("status", "--json"))["boxes"]}
    assert after[master]["role"] == "master"
    assert after[master]["address"] == before[master]["address"]


def test_one_edgevpn_among_ours(edgevpn_bin, lab):
    roles = ready(lab("up", "--boxes", "3", "--daemon", "box1=go", "--json", "--timeout", "300"))
    assert roles == ["master", "worker", "worker"]


def test_a_cluster_on_the_old_edgevpn(edgevpn_old_bin, lab, tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"#cloud-config\np2p:\n  network_token: {encode(generate())}\n  disable_dht: true\n"
        '  vpn: {env: {EDGEVPNOWNERSHIP: "off", EDGEVPNLISTENMADDRS: /ip4/0.0.0.0/tcp/0}}\n'
    )
    options = ("--boxes", "3", "--daemon", "go", "--config", str(config), "--json", "--timeout", "300")
    assert ready(lab("up", *options, program=edgevpn_old_bin)) == ["master", "worker", "worker"]


@pytest.mark.parametrize("daemon", ["ours", "go"])
def test_the_go_provider(lab, tmp_path: Path, daemon: str):
    provider = os.environ.get("KAIROS_PROVIDER_BIN", "")
    if not provider:
        pytest.skip("KAIROS_PROVIDER_BIN is not set: the Go provider did not run on either daemon")
    if daemon == "go" and not os.environ.get("EDGEVPN_BIN"):
        pytest.skip("EDGEVPN_BIN is not set: the Go provider did not run on its own daemon")
    config = tmp_path / "config.yaml"
    config.write_text(f"#cloud-config\np2p:\n  network_token: {encode(generate())}\n  disable_dht: true\n")
    options = ("--boxes", "3", "--provider", provider, "--daemon", daemon, "--config", str(config))
    cluster = json.loads(lab("up", *options, "--json", "--timeout", "400"))["cluster"]
    assert sorted((node["ready"], node["roles"]) for node in cluster["nodes"]) == [
        (True, "<none>"),
        (True, "<none>"),
        (True, "control-plane"),
    ]
