"""role list, role set, get-kubeconfig, status: against a daemon in a thread of its own."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from provider_kairos.api.client import DaemonClient
from provider_kairos.api.model import ledger_text
from provider_kairos.api.testing import FakeBackend, serving
from provider_kairos.cli import cluster, status
from provider_kairos.cli.cluster import kubeconfig_text
from provider_kairos.cli.main import run
from provider_kairos.clock import SystemClock
from provider_kairos.daemon import last_words
from provider_kairos.errors import ExitCode, HostError, NotFoundError
from provider_kairos.mesh.views import NoPeers
from provider_kairos.roles.model import advertisement

KUBECONFIG = """apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: MTI3LjAuMC4x
    server: https://127.0.0.1:6443
  name: default
contexts: []
kind: Config
users:
- name: default
  user:
    token: user-127.0.0.1
"""


class Daemon:
    """A daemon beside the test's thread."""

    def __init__(self, listen: str) -> None:
        self.listen = listen
        self.backend = FakeBackend()

    def put(self, key: str, value: Any, bucket: str = "kairos") -> None:
        trio.from_thread.run_sync(self.backend.persist, bucket, key, ledger_text(value), trio_token=self.token)

    def advertise(self, uuid: str) -> None:
        self.put(f"{uuid}-uuid", advertisement(SystemClock().now()))

    def serve(self, ready: threading.Event) -> None:
        async def work() -> None:
            self.token = trio.lowlevel.current_trio_token()
            self.scope = trio.CancelScope()
            with self.scope:
                async with serving(self.backend, self.listen):
                    ready.set()
                    await trio.sleep_forever()

        trio.run(work)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    daemon = Daemon(f"unix://{tmp_path}/api.sock")
    ready = threading.Event()
    thread = threading.Thread(target=daemon.serve, args=[ready])
    thread.start()
    assert ready.wait(20)
    monkeypatch.setenv("EDGEVPN_API", daemon.listen)
    monkeypatch.setattr(status, "PROVIDER_FILE", tmp_path / "provider.json")
    yield daemon
    daemon.token.run_sync_soon(daemon.scope.cancel)
    thread.join(20)
    assert not thread.is_alive()


def publish(daemon: Daemon, address: str = "10.1.0.7", text: str = KUBECONFIG) -> None:
    daemon.put("ip-master", address)
    daemon.put("master-kubeconfig", base64.urlsafe_b64encode(text.encode()).decode().rstrip("="))


# -- roles


def test_role_list_has_the_columns_of_the_reference(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.advertise("abc-box1")
    daemon.put("abc-box1-role", "master")
    daemon.put("abc-box1-ip", "10.1.0.1")
    daemon.advertise("def-box2")
    daemon.put("old-box3-uuid", {"Time": "2020-01-01T00:00:00Z"})
    assert run(["role", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{'Node':47}  {'Role':30}  IP"
    assert lines[1] == "-" * 47 + "  " + "-" * 30 + "  " + "-" * 15
    assert lines[2:] == [f"{'abc-box1':47}  {'master':30}  10.1.0.1", "def-box2"]


def test_role_list_as_json(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.advertise("abc-box1")
    daemon.put("leader-auto", "abc-box1")
    assert run(["role", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "network_id": "kairos",
        "leader": "abc-box1",
        "nodes": [{"uuid": "abc-box1", "role": None, "ip": None}],
    }


def test_role_set_writes_what_the_node_reads(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["role", "set", "abc-box1", "master", "--network-id", "other"]) == 0
    assert daemon.backend.data["other"] == {"abc-box1-role": '"Im1hc3RlciI="'}
    assert "has advertised itself yet" in capsys.readouterr().err
    daemon.advertise("abc-box1")
    assert run(["role", "set", "abc-box1", "worker"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("uuid", "role"), [("abc-box1", "boss"), ("abc-box1", ""), ("a/b", "worker"), ("", "worker")])
def test_role_set_checks_both(daemon: Daemon, uuid: str, role: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["role", "set", uuid, role]) == ExitCode.CONFIG
    assert "hint: " in capsys.readouterr().err
    assert not daemon.backend.data


# -- kubeconfig


def test_kubeconfig_names_the_master_in_the_server_alone(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    publish(daemon)
    assert run(["get-kubeconfig"]) == 0
    assert capsys.readouterr().out == KUBECONFIG.replace("https://127.0.0.1:", "https://10.1.0.7:")


@pytest.mark.parametrize(
    ("server", "address", "result"),
    [
        ("https://[::1]:6443", "fd00::1", "https://[fd00::1]:6443"),
        ('"https://localhost:6443"', "10.1.0.1", '"https://10.1.0.1:6443"'),
        ("https://127.0.0.10:6443", "10.1.0.1", "https://127.0.0.10:6443"),
        ("https://192.168.1.9:6443", "10.1.0.1", "https://192.168.1.9:6443"),
    ],
)
def test_addresses_of_servers(server: str, address: str, result: str) -> None:
    text = KUBECONFIG.replace("https://127.0.0.1:6443", server)
    stored = base64.urlsafe_b64encode(text.encode()).decode()
    assert f"    server: {result}\n" in kubeconfig_text({"master-kubeconfig": stored, "ip-master": address})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "no kubeconfig yet"),
        ({"master-kubeconfig": ""}, "no kubeconfig yet"),
        ({"master-kubeconfig": "%%%", "ip-master": "x"}, "is broken"),
        ({"master-kubeconfig": base64.b64encode(b"kind: ClusterConfig\n").decode()}, "k0s"),
        ({"master-kubeconfig": base64.urlsafe_b64encode(KUBECONFIG.encode()).decode()}, "its address"),
    ],
)
def test_what_is_missing_is_named(values: dict[str, str], words: str) -> None:
    with pytest.raises(NotFoundError, match=words):
        kubeconfig_text(values)


def test_no_kubeconfig_is_an_error(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get-kubeconfig"]) == ExitCode.NOT_FOUND
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: there is no kubeconfig yet")


def test_waiting_for_a_kubeconfig(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def judged(values: dict[str, str]) -> str:
        try:
            return kubeconfig_text(values)
        except NotFoundError:
            asked.set()  # the command has seen that there is none
            raise

    monkeypatch.setattr(cluster, "kubeconfig_text", judged)

    def write() -> None:
        assert asked.wait(60)
        publish(daemon)

    writer = threading.Thread(target=write)
    writer.start()
    assert run(["get-kubeconfig", "--wait"]) == 0
    writer.join()
    captured = capsys.readouterr()
    assert "10.1.0.7:6443" in captured.out
    assert captured.err.startswith("waiting: there is no kubeconfig yet")


def test_waiting_in_vain(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get-kubeconfig", "--wait=0.05"]) == ExitCode.TIMEOUT
    assert "no kubeconfig within 0.05 s" in capsys.readouterr().err


# -- status


def document(daemon: Daemon, **more: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "instance": "fake1",
        "peer_id": daemon.backend.peer_id,
        "ready": True,
        "phases": [{"name": "mesh", "state": "done", "seconds": 1.2}],
        "waiting": [],
        "vpn": {"enabled": True, "interface": "edgevpn0", "address": "10.1.0.1/24", "mtu": 1200},
        "peers": [{"peer_id": "q", "hostname": "box2", "connected": True, "on_topic": True, "heartbeat_age": 3.0}],
        **more,
    }


def provider(tmp_path: Path, **more: Any) -> None:
    value = {
        "schema": 1,
        "uuid": "abc-box1",
        "network_id": "kairos",
        "role": "master",
        "leader": "abc-box1",
        "configured": True,
    }
    (tmp_path / "provider.json").write_text(json.dumps({**value, **more}))


def test_a_ready_node(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.backend, "status", lambda: document(daemon))
    provider(tmp_path)
    assert run(["status"]) == ExitCode.OK
    out = capsys.readouterr().out
    for words in ("ready", "master", "abc-box1", "10.1.0.1/24 on edgevpn0", "1 known, 1 connected", "box2, connected"):
        assert words in out


def test_a_waiting_node_says_why(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = {"code": "more-nodes", "text": "waiting for 1 more node"}
    monkeypatch.setattr(daemon.backend, "status", lambda: document(daemon, waiting=[reason]))
    provider(tmp_path, configured=False, role="", waiting=[reason, {"code": "x", "text": "something else"}])
    daemon.put("abc-box1-role", "worker")
    assert run(["status", "--json"]) == ExitCode.WAITING
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] is False
    assert found["role"] == "worker"
    assert [item["code"] for item in found["waiting"]] == ["more-nodes", "x"]
    assert run(["status"]) == ExitCode.WAITING
    assert capsys.readouterr().out.count("waiting for 1 more node") == 1


def test_without_a_daemon_the_provider_still_speaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "PROVIDER_FILE", tmp_path / "provider.json")
    monkeypatch.setattr(status, "LAST_WORDS_FILE", tmp_path / "none")  # this machine's daemon is none of ours
    provider(tmp_path, configured=False)
    assert run(["status", "--api", f"unix://{tmp_path}/none.sock", "--json"]) == ExitCode.UNREACHABLE
    found = json.loads(capsys.readouterr().out)
    assert found["role"] == "master"
    assert "no daemon listens" in found["error"]["message"]


def test_a_provider_that_ended_early_is_named(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.backend, "status", lambda: document(daemon))
    provider(tmp_path, configured=False, pid=2**22 + 1)
    assert run(["status"]) == ExitCode.WAITING
    assert "the provider has ended before its work was done" in capsys.readouterr().out


def test_a_provider_that_ended_later_is_named_too(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.backend, "status", lambda: document(daemon))
    provider(tmp_path, configured=True, pid=2**22 + 1)
    assert run(["status"]) == ExitCode.WAITING
    assert "the provider has ended; the agent starts it again" in capsys.readouterr().out


def test_a_configuration_that_cannot_work_is_the_first_thing_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "PROVIDER_FILE", tmp_path / "provider.json")
    why = "cloud-config:3:5: p2p.minimum_nodes: expected a whole number, not a text"
    provider(tmp_path, configured=False, role=None, pid=2**22 + 1, error=why)
    nobody = ["--api", f"unix://{tmp_path}/none.sock"]
    assert run(["status", *nobody]) == ExitCode.CONFIG
    assert f"error: {why}" in capsys.readouterr().out
    assert run(["status", *nobody, "--json"]) == ExitCode.CONFIG
    found = json.loads(capsys.readouterr().out)
    assert found["error"]["message"] == why
    assert found["waiting"] == []


def test_a_one_time_bootstrap_without_a_daemon_is_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "PROVIDER_FILE", tmp_path / "provider.json")
    monkeypatch.setattr(status, "client", lambda api: unreachable(tmp_path))
    provider(tmp_path, role=None, api="", pid=2**22 + 1)
    assert run(["status"]) == ExitCode.OK
    assert "error" not in capsys.readouterr().out


def test_a_daemon_that_ended_is_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "PROVIDER_FILE", tmp_path / "provider.json")
    words = tmp_path / "daemon-ended.json"
    monkeypatch.setattr(status, "LAST_WORDS_FILE", words)
    last_words.leave(HostError("a file is in the way", hint="remove it"), words)
    assert words.stat().st_mode & 0o777 == 0o600
    assert run(["status", "--api", f"unix://{tmp_path}/none.sock"]) == ExitCode.UNREACHABLE
    assert "the mesh daemon has ended: a file is in the way (remove it)" in capsys.readouterr().out


@pytest.mark.parametrize(("minimum", "code"), [(1, ExitCode.OK), (2, ExitCode.WAITING)])
def test_a_node_that_is_alone_by_configuration_misses_nobody(
    daemon: Daemon, tmp_path: Path, minimum: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = NoPeers(0).as_dict()
    monkeypatch.setattr(daemon.backend, "status", lambda: document(daemon, waiting=[nobody], ready=False))
    provider(tmp_path, minimum_nodes=minimum)
    daemon.advertise("abc-box1")
    assert run(["status"]) == code


def unreachable(folder: Path) -> DaemonClient:
    return DaemonClient(f"unix://{folder}/none.sock")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"phases":5,"waiting":[1],"configured":true}'])
def test_a_broken_file_of_the_provider_does_no_harm(
    daemon: Daemon, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(daemon.backend, "status", lambda: document(daemon))
    (tmp_path / "provider.json").write_text(text)
    assert run(["status"]) == ExitCode.OK
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["status"], ["role", "list"], ["role", "set", "abc-box1", "worker"], ["get-kubeconfig"]]
)
def test_a_network_id_with_a_slash_is_wrong_use(command: list[str]) -> None:
    assert run([*command, "--network-id", "a/b"]) == ExitCode.USAGE
