"""The whole path in boxes: cloud-config in, Kubernetes nodes out, and what `kairos-p2p lab` promises on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.errors import ExitCode

pytestmark = pytest.mark.root

PROGRAM = str(Path(sys.prefix, "bin", "kairos-p2p"))


def cannot() -> str:
    if os.geteuid() != 0:
        return "needs root: boxes made by root"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun (modprobe tun)"
    return ""


@pytest.fixture(scope="module", autouse=True)
def _needs_boxes() -> None:
    if reason := cannot():
        pytest.skip(reason)


def run(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [PROGRAM, "lab", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )
    if check:
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture
def name(request) -> Iterator[str]:
    """A lab's name that is taken down afterwards, whatever happened."""
    made = f"e{os.getpid()}"
    yield made
    run("down", "--name", made)


@pytest.fixture(scope="module")
def three() -> Iterator[tuple[str, dict[str, Any]]]:
    """A cluster of three boxes: its lab's name and what `lab up --json` printed."""
    made = f"three{os.getpid()}"
    try:
        yield made, json.loads(run("up", "--name", made, "--json").stdout)
    finally:
        run("down", "--name", made)


def test_three_boxes_become_a_cluster(three):
    _, document = three
    boxes = document["boxes"]
    assert [box["name"] for box in boxes] == ["box1", "box2", "box3"]
    assert sorted(box["role"] for box in boxes) == ["master", "worker", "worker"]
    assert len({box["address"] for box in boxes}) == 3
    assert all(box["address"].startswith("10.1.0.") for box in boxes)
    assert len({box["uuid"] for box in boxes}) == 3
    for box in boxes:
        assert box["seconds_to_address"] > 0
        assert 0 < box["seconds_to_role"] < box["seconds_to_ready"] <= document["seconds"] + 1
    cluster = document["cluster"]
    assert cluster["distribution"] == "k3s stand-in"
    assert all(node["ready"] for node in cluster["nodes"])
    assert {node["address"] for node in cluster["nodes"]} == {box["address"] for box in boxes}


def test_boxes_ping_each_other_through_the_vpn(three):
    name, document = three
    address = document["boxes"][1]["address"]
    done = run("exec", "--name", name, "box1", "--", "ping", "-c3", "-i", "0.2", "-W", "5", address)
    assert " 0% packet loss" in done.stdout


def test_the_boxes_know_their_cluster(three):
    name, document = three
    master = next(box["name"] for box in document["boxes"] if box["role"] == "master")
    nodes = json.loads(run("exec", "--name", name, master, "--", "kubectl", "get", "nodes", "-o", "json").stdout)
    assert len(nodes["items"]) == 3
    roles = run("exec", "--name", name, "box1", "--", "kairos-p2p", "role", "list").stdout
    for box in document["boxes"]:
        assert box["uuid"] in roles
    status = json.loads(run("exec", "--name", name, "box2", "--", "kairos-p2p", "status", "--json").stdout)
    assert status["waiting"] == []


def test_no_secret_is_readable_by_everybody(three):
    name, _ = three
    script = (
        "find /etc/systemd /etc/sysconfig /etc/rancher /oem /usr/local/.kairos /run/kairos-p2p /run/edgevpn-kairos.sock "
        "/var/log/kairos -perm /o+r ! -type l ! -type d 2>/dev/null | "
        "xargs -r grep -lE 'EDGEVPNTOKEN|K3S_TOKEN|network_token|K10[0-9a-f]{64}' ; true"
    )
    for box in ("box1", "box2", "box3"):
        assert run("exec", "--name", name, box, "--", "sh", "-c", script).stdout == ""
    arguments = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; echo; done 2>/dev/null | grep -E 'K10[0-9a-f]{64}'"
    for box in ("box1", "box2", "box3"):
        assert run("exec", "--name", name, box, "--", "sh", "-c", arguments, check=False).stdout == ""


def test_a_rebooted_box_comes_back_the_same(three):
    name, document = three
    before = document["boxes"][1]
    run("reboot", "box2", "--name", name, "--wait")
    after = json.loads(run("status", "--name", name, "--json").stdout)["boxes"][1]
    assert after["boots"] == 2
    for key in ("name", "role", "address", "uuid"):
        assert after[key] == before[key]
    address = document["boxes"][0]["address"]
    run("exec", "--name", name, "box2", "--", "ping", "-c3", "-i", "0.2", "-W", "5", address)


def test_a_power_cut_is_survived(three):
    name, document = three
    before = document["boxes"][2]
    run("kill", "box3", "--name", name)
    assert "killed" in run("status", "--name", name).stdout
    assert run("exec", "--name", name, "box3", "--", "true", check=False).returncode == ExitCode.NOT_FOUND
    run("reboot", "box3", "--name", name, "--wait")
    after = json.loads(run("status", "--name", name, "--json").stdout)["boxes"][2]
    for key in ("name", "role", "address", "uuid"):
        assert after[key] == before[key]


def test_one_box_is_a_cluster_of_its_own(name):
    document = json.loads(run("up", "--name", name, "--boxes", "1", "--json").stdout)
    assert [box["role"] for box in document["boxes"]] == ["master"]
    assert [node["ready"] for node in document["cluster"]["nodes"]] == [True]


def test_one_box_as_it_is_says_what_is_missing(name):
    done = run("up", "--name", name, "--boxes", "1", "--as-is", "--timeout", "8", check=False)
    assert done.returncode == ExitCode.TIMEOUT
    assert "box1 (running) has not reached" in done.stderr
    assert "node" in done.stderr.split("has not reached")[1]


def test_five_boxes_with_three_masters(name, tmp_path):
    generated = subprocess.run([PROGRAM, "create-config"], capture_output=True, text=True, check=True).stdout
    import yaml

    values = yaml.safe_load(generated)
    values["p2p"] |= {"disable_dht": True, "minimum_nodes": 5, "auto": {"ha": {"enable": True, "master_nodes": 2}}}
    config = tmp_path / "ha.yaml"
    config.write_text("#cloud-config\n" + yaml.safe_dump(values), "utf-8")
    done = run("up", "--name", name, "--boxes", "5", "--config", str(config), "--timeout", "240", "--json")
    document = json.loads(done.stdout)
    roles = sorted(box["role"] for box in document["boxes"])
    assert roles == ["master/clusterinit", "master/ha", "master/ha", "worker", "worker"]
    assert sum("etcd" in node["roles"] for node in document["cluster"]["nodes"]) == 3


def test_ctrl_c_in_the_demo_leaves_nothing(name):
    with subprocess.Popen(
        [PROGRAM, "lab", "demo", "--name", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "booted" in line:
                break
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
    assert demo.returncode == 130
    assert "The lab is down" in rest
    assert run("status", "--name", name, check=False).returncode == ExitCode.NOT_FOUND


# An ordinary user needs a TUN device that he may open; the machine's own one is left as it is.
AS_NOBODY = """
import os, sys
from provider_kairos.lab.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, bind, mount, unshare
unshare(CLONE_NEWNS)
mount("none", "/", flags=MS_REC | MS_PRIVATE)
mount("tmpfs", "/mnt", "tmpfs")
os.mknod("/mnt/tun", 0o020666, os.makedev(10, 200))
os.chmod("/mnt/tun", 0o666)
bind("/mnt/tun", "/dev/net/tun")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.environ.pop("XDG_RUNTIME_DIR", None)
os.environ["HOME"] = "/tmp"
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_demo_as_an_ordinary_user():
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, PROGRAM, "lab", "demo", "--name", f"n{os.getpid()}"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as an ordinary user" in done.stdout + done.stderr
    assert "3 packets transmitted, 3 received" in done.stdout
    assert "3 boxes, one cluster" in done.stdout


def test_the_demo_as_root():
    done = run("demo", "--name", f"d{os.getpid()}")
    assert "3 packets transmitted, 3 received" in done.stdout
    assert "k3s stand-in" in done.stdout
    assert "nothing was left behind" in done.stdout
