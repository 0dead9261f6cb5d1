"""What a site goes through while and after it forms: power cuts, killed processes, lost interfaces, wrong files.

Rules that hold whatever happens: one first master, a configured node keeps role and address, everything comes back by
itself, and `status` says what is missing (spec/provider.md 4.10, 13; spec/k3s.md 0.4).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.errors import ExitCode
from provider_kairos.token.codec import encode, generate

pytestmark = pytest.mark.root

PROGRAM = str(Path(sys.prefix, "bin", "kairos-p2p"))
FIRST = {"master", "master/clusterinit"}
ROLE_FILE = "usr/local/.kairos/state/role.json"
PATIENCE = 90.0


@pytest.fixture(scope="module", autouse=True)
def _needs_boxes() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: boxes made by root")
    if not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun (modprobe tun)")


class Site:
    """One lab; what a test needs to see and to do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def lab(self, verb: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = [PROGRAM, "lab", verb, "--name", self.name, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def boxes(self) -> dict[str, dict[str, Any]]:
        return {box["name"]: box for box in self.state()["boxes"]}

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lab("status", "--json").stdout)
        return found

    def run(self, box: str, *command: str) -> subprocess.CompletedProcess[str]:
        return self.lab("exec", box, "--", *command, check=False)

    def status(self, box: str) -> tuple[int, dict[str, Any]]:
        """Exit code and document of `kairos-p2p status --json` in a box."""
        done = self.run(box, "kairos-p2p", "status", "--json")
        return done.returncode, json.loads(done.stdout)

    def codes(self, box: str) -> list[str]:
        return [reason["code"] for reason in self.status(box)[1]["waiting"]]

    def held(self) -> dict[str, dict[str, str]]:
        """What every box has on its disk about its role."""
        found = {}
        for name, box in self.boxes().items():
            path = Path(f"/proc/{box['pid']}/root", ROLE_FILE)
            if box["pid"] and path.exists():
                found[name] = json.loads(path.read_text())
        return found

    def identities(self) -> dict[str, tuple[str, str, str]]:
        return {name: (box["role"], box["address"], box["uuid"]) for name, box in self.boxes().items()}

    def processes(self, box: str, word: str) -> list[int]:
        """Processes of a box whose command line holds a word."""
        mine = Path(f"/proc/{self.boxes()[box]['pid']}/ns/mnt").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                inside = entry.name.isdigit() and (entry / "ns/mnt").readlink() == mine
                if inside and word in (entry / "cmdline").read_text().replace("\0", " "):
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended
        return found

    def healthy(self) -> bool:
        """Every node Ready, and every box content."""
        state = self.state()
        nodes = (state.get("cluster") or {}).get("nodes") or []
        names = [box["name"] for box in state["boxes"]]
        if len(nodes) != len(names) or not all(node["ready"] for node in nodes):
            return False
        return all(self.status(name)[0] == ExitCode.OK for name in names)

    def check(self) -> None:
        """One cluster, one first master, no address twice."""
        held = self.held()
        assert len(held) == len(self.boxes())
        assert len([name for name, role in held.items() if role["role"] in FIRST]) == 1, held
        assert len({role["generation"] for role in held.values()}) == 1, held
        assert len({box["address"] for box in self.boxes().values()}) == len(held)

    def cut(self) -> None:
        """The power of the whole site goes."""
        for name in self.boxes():
            self.lab("kill", name)

    def boot(self, *, between: float = 0.0) -> None:
        for name in self.boxes():
            self.lab("reboot", name)
            time.sleep(between)  # they never start together


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.25)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Three boxes whose power went while they formed, as soon as one of them had taken a role."""
    made = Site(f"form{os.getpid()}")
    try:
        made.lab("up", "--boxes", "3", "--no-wait")
        until(made.held, "a first role on a disk")
        before = made.held()
        made.cut()
        made.boot(between=0.5)
        until(made.healthy, "Ready after the cut")
        made.check()
        assert {name: made.held()[name] for name in before} == before
        yield made
    finally:
        made.lab("down")


@pytest.fixture
def other() -> Iterator[Site]:
    """A lab for one test."""
    made = Site(f"other{os.getpid()}")
    yield made
    made.lab("down")


def restarted(site: Any, box: str, word: str, old: frozenset[int]) -> set[int]:
    """Processes that took the place of ``old``."""
    return set(site.processes(box, word)) - old


def test_a_power_cut_of_the_formed_site_changes_nothing(site):
    before = site.identities()
    site.cut()
    site.boot(between=1)
    until(site.healthy, "Ready after the cut")
    assert site.identities() == before
    site.check()


def test_the_first_master_comes_back_with_its_address_and_role(site):
    before = site.identities()
    master = next(name for name, (role, _, _) in before.items() if role in FIRST)
    site.lab("reboot", master, "--wait")
    until(site.healthy, "Ready after the reboot")
    assert site.identities() == before


def test_killed_processes_come_back(site):
    before = site.identities()
    master = next(name for name, (role, _, _) in before.items() if role in FIRST)
    worker = next(name for name in before if name != master)
    for box, word in (
        (master, "kairos-p2p daemon"),
        (worker, "kairos-p2p daemon"),
        (master, "agent-provider-kairos-p2p"),
        (worker, "kairos-agent start"),
        (master, "k3s server"),
        (worker, "k3s agent"),
    ):
        old = site.processes(box, word)
        assert old, f"{word} in {box}"
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        until(partial(restarted, site, box, word, frozenset(old)), f"a new {word} in {box}")
    until(site.healthy, "everything back")
    assert site.identities() == before


def test_kubernetes_is_restarted_when_its_interface_was_lost(site):
    box = next(name for name, role in site.held().items() if role["role"] == "worker")
    (old,) = site.processes(box, "k3s agent")
    script = "from provider_kairos.system.links import LinkManager; LinkManager().delete_link('edgevpn0')"
    assert site.run(box, sys.executable, "-c", script).returncode == 0
    until(lambda: site.processes(box, "k3s agent") not in ([], [old]), "a new k3s agent")
    until(site.healthy, "Ready on the new interface")


def test_a_configured_node_keeps_its_role_whatever_its_file_says(site):
    before = site.identities()
    box = next(name for name, role in site.held().items() if role["role"] == "worker")
    wish = "printf '#cloud-config\\np2p:\\n  role: master\\n' > /oem/95_wish.yaml"
    assert site.run(box, "sh", "-c", wish).returncode == 0
    site.lab("reboot", box, "--wait")
    until(site.healthy, "Ready after the reboot")
    assert site.identities() == before
    site.check()


def test_of_two_forced_masters_one_founds_and_the_other_says_why_not(other, tmp_path):
    token = encode(generate())
    config = tmp_path / "forced.yaml"
    config.write_text(f"#cloud-config\np2p: {{network_token: {token}, role: master, disable_dht: true}}\n", "utf-8")
    other.lab("up", "--boxes", "2", "--config", str(config), "--no-wait")
    until(other.held, "a first master")
    (founder,) = other.held()
    (second,) = other.boxes().keys() - {founder}
    until(lambda: "forced-beside-first" in other.codes(second), "the reason")
    until(lambda: other.status(founder)[0] == ExitCode.OK, "a founded cluster")
    assert list(other.held()) == [founder]
    assert not other.processes(second, "k3s server")


def test_a_file_that_cannot_work_is_what_status_says(other, tmp_path):
    config = tmp_path / "wrong.yaml"
    config.write_text("#cloud-config\np2p:\n  network_token: x\n  minimum_nodes: three\n", "utf-8")
    other.lab("up", "--boxes", "1", "--config", str(config), "--as-is", "--no-wait")
    until(lambda: other.status("box1")[0] == ExitCode.CONFIG, "the error")
    message = other.status("box1")[1]["error"]["message"]
    assert "p2p.minimum_nodes: expected a whole number, not a text" in message


def test_nothing_is_left_behind(site):
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    pids = {box["pid"] for box in site.boxes().values()}
    site.lab("down")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert site.name not in Path("/proc/mounts").read_text()
    assert not Path("/run/kairos-p2p-lab", site.name).exists()
    assert {path.name for path in Path("/sys/class/net").iterdir()} <= links
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                assert site.name not in (entry / "cmdline").read_text()
            except OSError:
                continue  # it has ended
