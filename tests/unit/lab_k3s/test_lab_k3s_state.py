"""Store, node liveness, load balancer file, kubectl's printing."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from provider_kairos.lab.k3s import kubectl, kubelet, logrus
from provider_kairos.lab.k3s.__main__ import launcher
from provider_kairos.lab.k3s.arguments import parse
from provider_kairos.lab.k3s.balancer import Balancer
from provider_kairos.lab.k3s.life import Fatal, Life, Stopped, speed_from
from provider_kairos.lab.k3s.nodeapi import GRACE, NodeApi, ready_condition
from provider_kairos.lab.k3s.store import Row, Store

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "db" / "state.db")


@pytest.fixture
def nodes(store):
    return NodeApi(store, "10.42.0.0/16")


def node_object(tmp_path, name="a1", *arguments):
    return kubelet.node_object(parse("server", arguments, {}, tmp_path), name, ["10.0.0.5"], {}, {})


# -- store -------------------------------------------------------------------------------------------------------


def test_rows_survive(store):
    store.put("nodes/a", {"x": 1})
    store.put("nodes/b", {"x": 2})
    store.delete("nodes/b", "nodes/unknown")
    again = Store(store.path)
    assert again.items("nodes/") == {"a": {"x": 1}}
    assert {row.key for row in again.rows()} == {"nodes/a", "nodes/b"}


def test_local_rows_stay_here(store):
    store.put("local/x", 1)
    assert store.rows() == []
    assert store.merge([Row("local/x", 2, 2**62)]) == 0
    assert store.get("local/x") == 1


def test_the_newer_row_wins_and_a_tombstone_is_a_row(store, tmp_path):
    other = Store(tmp_path / "other.db")
    store.put("nodes/a", 1)
    other.merge(store.rows())
    store.delete("nodes/a")
    assert other.merge(store.rows()) == 1
    assert other.get("nodes/a") is None
    assert other.merge([Row("nodes/a", "old", 1)]) == 0


def test_own_changes_are_announced_and_merged_ones_are_not(store):
    seen: list[Row] = []
    store.on_change = seen.extend
    store.put("a", 1)
    store.merge([Row("b", 1, 2**61)])
    store.put("local/c", 1)
    store.put("b", 2)
    assert [row.key for row in seen] == ["a", "b"]
    assert seen[1].version == 2**61 + 1


@pytest.mark.parametrize("garbage", [None, [], ["k", 1], ["k", 1, "2"], [1, 1, 1], ["k", 1, True], ["k", 1, 2**63]])
def test_what_is_no_row_is_refused(garbage):
    with pytest.raises(ValueError):
        Row.from_json(garbage)


def test_a_damaged_file_is_fatal(tmp_path):
    path = tmp_path / "state.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(Fatal, match="not a database"):
        Store(path)


# -- nodes -------------------------------------------------------------------------------------------------------


def test_a_node_keeps_identity_and_roles_when_it_registers_again(nodes, tmp_path):
    first = nodes.register(node_object(tmp_path))
    nodes.label("a1", {"node-role.kubernetes.io/control-plane": "true"})
    again = nodes.register(node_object(tmp_path, "a1", "--node-label=x=y"))
    assert again["metadata"]["uid"] == first["metadata"]["uid"]
    assert again["metadata"]["creationTimestamp"] == first["metadata"]["creationTimestamp"]
    assert again["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] == "true"
    assert again["metadata"]["labels"]["x"] == "y"


def test_every_node_has_a_pod_network_of_its_own(nodes, tmp_path):
    cidrs = [nodes.register(node_object(tmp_path, name))["spec"]["podCIDR"] for name in ("a", "b", "c")]
    assert cidrs == ["10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24"]
    nodes.delete("b")
    assert nodes.register(node_object(tmp_path, "d"))["spec"]["podCIDR"] == "10.42.1.0/24"


def test_a_silent_node_becomes_unknown_and_comes_back(nodes, tmp_path):
    nodes.register(node_object(tmp_path))
    assert nodes.heartbeat("a1", kubelet.conditions(ready=True))
    nodes.judge(1000.0)
    assert nodes.judge(1000.0 + GRACE - 1) == []
    assert ready_condition(nodes.get("a1"))["status"] == "True"
    assert nodes.judge(1000.0 + GRACE + 1) == ["a1"]
    assert nodes.judge(1000.0 + GRACE + 2) == []
    assert ready_condition(nodes.get("a1"))["status"] == "Unknown"
    nodes.heartbeat("a1", kubelet.conditions(ready=True))
    assert nodes.judge(1000.0 + GRACE + 3) == []
    assert ready_condition(nodes.get("a1"))["status"] == "True"


def test_a_heartbeat_for_a_deleted_node_does_not_bring_it_back(nodes, tmp_path):
    nodes.register(node_object(tmp_path))
    nodes.delete("a1")
    assert not nodes.heartbeat("a1", kubelet.conditions(ready=True))
    assert nodes.names() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n.pop("status"),
        lambda n: n["metadata"].pop("name"),
        lambda n: n["metadata"].update(labels={"a": 1}),
        lambda n: n["status"].update(conditions=[1]),
        lambda n: n["status"].update(conditions={"type": "Ready"}),
        lambda n: n["status"].update(addresses=[{}]),
        lambda n: n["status"]["nodeInfo"].update(osImage=None),
    ],
)
def test_what_is_no_node_is_refused(nodes, tmp_path, change):
    made = node_object(tmp_path)
    change(made)
    with pytest.raises((ValueError, KeyError, TypeError)):
        nodes.register(made)
    assert nodes.names() == []


def test_the_annotation_shows_arguments_and_masks_secrets():
    given = ["server", "--token=a", "-t", "b", "--flannel-iface=x", "--cluster-init", "--agent-token", "c", "--v=2"]
    shown = kubelet.node_args(given)
    assert shown == [
        "server", "--token", "********", "-t", "********", "--flannel-iface", "x", "--cluster-init",
        "--agent-token", "********", "--v", "2",
    ]  # fmt: skip


def test_the_environment_annotation_masks_secrets(tmp_path):
    environment = {"K3S_TOKEN": "a", "K3S_URL": "https://b:6443", "HOME": "/root", "K3S_TOKEN_FILE": "/t"}
    made = kubelet.node_object(parse("server", [], {}, tmp_path), "a1", ["10.0.0.5"], environment, {})
    shown = json.loads(made["metadata"]["annotations"]["k3s.io/node-env"])
    assert shown == {"K3S_TOKEN": "********", "K3S_TOKEN_FILE": "/t", "K3S_URL": "https://b:6443"}


# -- load balancer -----------------------------------------------------------------------------------------------


def test_the_file_of_the_load_balancer(tmp_path):
    path = tmp_path / "lb.json"
    balancer = Balancer(path, "https://10.1.0.1:6443", "10.1.0.1:6443", 0)
    assert path.read_text() == '{\n  "ServerURL": "https://10.1.0.1:6443",\n  "ServerAddresses": []\n}'
    assert balancer.update(["10.1.0.2:6443", "10.1.0.1:6443"])
    assert not balancer.update(["10.1.0.1:6443", "10.1.0.2:6443"])
    assert json.loads(path.read_text())["ServerAddresses"] == ["10.1.0.1:6443", "10.1.0.2:6443"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_saved_list_counts_under_the_same_url_only(tmp_path):
    path = tmp_path / "lb.json"
    Balancer(path, "https://10.1.0.1:6443", "10.1.0.1:6443", 0).update(["10.1.0.1:6443", "10.1.0.2:6443"])
    again = Balancer(path, "https://10.1.0.1:6443", "10.1.0.1:6443", 0)
    assert again.servers == ["10.1.0.1:6443", "10.1.0.2:6443"]
    other = Balancer(path, "https://10.1.0.9:6443", "10.1.0.9:6443", 0)
    assert other.servers == []
    assert json.loads(path.read_text()) == {"ServerURL": "https://10.1.0.9:6443", "ServerAddresses": []}


def test_a_url_on_the_loopback_is_replaced_by_the_servers_own(tmp_path):
    path = tmp_path / "lb.json"
    Balancer(path, "https://127.0.0.1:7443", "127.0.0.1:7443", 0).update(["10.1.0.1:6443"])
    assert json.loads(path.read_text())["ServerURL"] == "https://10.1.0.1:6443"
    again = Balancer(path, "https://127.0.0.1:7443", "127.0.0.1:7443", 0)
    assert again.servers == []


def test_a_broken_file_is_an_empty_one(tmp_path):
    path = tmp_path / "lb.json"
    path.write_text("{")
    assert Balancer(path, "https://10.1.0.1:6443", "10.1.0.1:6443", 0).servers == []


# -- faces -------------------------------------------------------------------------------------------------------


def test_the_columns_of_kubectl(nodes, tmp_path):
    nodes.register(node_object(tmp_path))
    nodes.label("a1", {"node-role.kubernetes.io/etcd": "true", "node-role.kubernetes.io/control-plane": "true"})
    nodes.heartbeat("a1", kubelet.conditions(ready=True))
    found = nodes.get("a1")
    found["metadata"]["creationTimestamp"] = "2026-01-01T23:58:00Z"
    cells = kubectl.row(found, NOW)
    assert cells[:5] == ("a1", "Ready", "control-plane,etcd", "2m", "v1.34.3+k3s1-standin")
    assert cells[5:8] == ("10.0.0.5", "<none>", "k3s stand-in")
    assert kubectl.table([("NAME", "STATUS"), ("a-long-name", "Ready")]) == "NAME          STATUS\na-long-name   Ready"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172800, "2d")])
def test_ages(seconds, text):
    stamp = (NOW - dt.timedelta(seconds=seconds)).isoformat()
    assert kubectl.age(stamp, NOW) == text


@pytest.mark.parametrize("arguments", [["get", "pods"], ["apply"], [], ["delete", "node"], ["get", "nodes", "-o", "x"]])
def test_kubectl_refuses_what_it_is_not(arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("K3S_STANDIN_ETC", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert kubectl.main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_log_lines_have_the_form_of_k3s():
    import logging

    record = logging.LogRecord("x", logging.CRITICAL, "f", 1, 'Error: "%s"\n', ("a",), None)
    record.created = 1767323045.0
    line = logrus.LogrusFormatter().format(record)
    assert line == 'time="2026-01-02T03:04:05Z" level=fatal msg="Error: \\"a\\"\\n"'


def test_the_launcher_is_a_program_that_names_itself():
    text = launcher("/opt/python")
    assert text.startswith("#!/opt/python\n# k3s stand-in")
    compile(text, "k3s", "exec")


@pytest.mark.parametrize(("text", "speed"), [(None, 1.0), ("", 1.0), ("4", 4.0), ("0", 1.0), ("-1", 1.0), ("x", 1.0)])
def test_the_speed(text, speed):
    assert speed_from(text) == speed


def test_the_end_is_seen_by_every_waiter_and_the_first_reason_counts():
    life = Life()
    assert not life.ended
    life.end(Stopped("first"))
    life.end(Fatal("second"))
    assert not life.pause(60)
    with pytest.raises(Stopped, match="first"):
        life.sleep(60)


def test_a_thread_that_fails_ends_the_program():
    life = Life()

    def body():
        raise Fatal("Error: disk full")

    life.spawn("x", body)
    with pytest.raises(Fatal, match="disk full"):
        life.forever()
