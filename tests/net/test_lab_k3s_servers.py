"""Several servers of the k3s stand-in on the loopback (k3s notes, sections 6, 8 and 11)."""

from __future__ import annotations

import json
import random
import subprocess

import pytest

from provider_kairos.lab.k3s.client import Client, context_for
from provider_kairos.lab.k3s.harness import Harness, free_port


@pytest.fixture
def lab(tmp_path):
    with Harness(tmp_path) as harness:
        yield harness


@pytest.fixture
def founder(lab):
    server = lab.machine("box1")
    server.server("--cluster-init")
    server.wait_log("k3s is up and running")
    return server


def test_three_servers_replicate_and_survive_the_first(lab, founder):
    second, third, agent = lab.machine("box2"), lab.machine("box3"), lab.machine("worker")
    join = [f"--server={founder.url}", f"--token={founder.token}"]
    for server in (second, third):
        server.server(*join)
    agent.agent(*join)
    everybody = {"box1": "Ready", "box2": "Ready", "box3": "Ready", "worker": "Ready"}
    for server in (founder, second, third):
        server.wait_nodes(everybody)
        assert server.token == founder.token
    roles = {line.split()[2] for line in third.kubectl("get", "nodes", "--no-headers").stdout.splitlines()}
    assert roles == {"control-plane,etcd", "<none>"}
    path = agent.data / "agent/etc/k3s-agent-load-balancer.json"
    agent.wait_log(f"Adding server to load balancer k3s-agent-load-balancer: {third.address}:{third.port}")
    agent.wait_log(f"Adding server to load balancer k3s-agent-load-balancer: {second.address}:{second.port}")
    assert len(json.loads(path.read_text())["ServerAddresses"]) == 3

    founder.kill()
    for server in (second, third):
        server.wait_nodes({**everybody, "box1": "NotReady"})
    # An agent that starts while the server of its URL is off goes by the saved list.
    agent.kill()
    agent.agent(*join)
    agent.wait_log("Remotedialer connected to proxy", times=5)
    founder.server()
    founder.wait_nodes(everybody)
    # A new agent does not need the server that another one was told.
    late = lab.machine("late")
    late.agent(f"--server={third.url}", f"--token={founder.token}")
    founder.wait_nodes({**everybody, "late": "Ready"})


def test_without_a_majority_a_running_server_ends_and_a_new_one_waits(lab, founder):
    second = lab.machine("box2")
    second.server(f"--server={founder.url}", f"--token={founder.token}")
    founder.wait_nodes({"box1": "Ready", "box2": "Ready"})
    second.kill()
    assert founder.wait_exit() == 1
    founder.wait_log("leaderelection lost")
    founder.server()
    founder.wait_log("Wrote kubeconfig", times=2)
    client = Client(f"{founder.address}:{founder.port}", context_for(None))
    assert client.get("/ping").code == 200
    assert client.request("GET", "/readyz").code == 503
    second.server()
    founder.wait_nodes({"box1": "Ready", "box2": "Ready"})


def test_joining_servers_are_refused_with_status_1(lab):
    founder = lab.machine("box1")
    founder.server("--cluster-init", "--token=right", "--agent-token=agents")
    founder.wait_log("k3s is up and running")
    prefix = "Error: preparing server: failed to bootstrap cluster data: "
    check = f"{prefix}failed to check if bootstrap data has been initialized: failed to validate token: "
    url = f"--server={founder.url}"
    cases = {
        "agents": ([url, "--token=agents"], f"{prefix}not authorized"),
        "wrong": ([url, "--token=wrong"], f"{prefix}not authorized"),
        "hash": ([url, "--token=K10" + "0" * 64 + "::server:right"], f"{check}token CA hash does not match"),
        "length": ([url, "--token=K10ab::server:right"], f"{check}invalid token CA hash length"),
        "plain": ([f"--server=http://{founder.address}:{founder.port}", "--token=right"], "only https:// URLs"),
        "shut": (
            [f"--server=https://{founder.address}:{free_port()}", "--token=right"],
            f"{check}failed to get CA certs",
        ),
        "scheme": (
            [f"--server={founder.address}:1", "--token=right"],
            "first path segment in URL cannot contain colon",
        ),
        "other": (
            [url, "--token=right", "--agent-token=agents", "--cluster-cidr=10.52.0.0/16"],
            f"{prefix}failed to validate server configuration: critical configuration value mismatch between servers",
        ),
    }
    for name, (arguments, text) in cases.items():
        joiner = lab.machine(name)
        joiner.server(*arguments)
        assert joiner.wait_exit() == 1
        joiner.wait_log(f'level=fatal msg="{text}' if text.startswith("Error") else text)
        if name == "other":
            joiner.wait_log("critical configuration mismatched: ClusterIPRange.IP.slice[13]")
    # As real k3s: without the agent token nothing is compared, and another network is let in.
    careless = lab.machine("careless")
    careless.server(url, "--token=right", "--cluster-cidr=10.52.0.0/16")
    founder.wait_nodes({"box1": "Ready", "careless": "Ready"})


def test_a_members_name_is_refused_with_status_0(lab, founder):
    twin = lab.machine("box1")
    twin.server(f"--server={founder.url}", f"--token={founder.token}")
    assert twin.wait_exit() == 0
    twin.wait_log("Shutdown request received: etcd cluster join failed: duplicate node name found")


def test_a_server_url_without_a_token_founds_a_cluster_of_its_own(lab, founder):
    lone = lab.machine("box2")
    lone.server(f"--server={founder.url}")
    lone.wait_nodes({"box2": "Ready"})
    founder.wait_nodes({"box1": "Ready"})
    assert lone.token != founder.token
    assert (lone.data / "server/db/state.db").exists()


def test_a_single_server_takes_no_others(lab):
    single, joiner = lab.machine("box1"), lab.machine("box2")
    single.server()
    single.wait_log("k3s is up and running")
    joiner.server(f"--server={single.url}", f"--token={single.token}")
    assert joiner.wait_exit() == 1
    joiner.wait_log("400 Bad Request")


def test_a_single_server_becomes_a_cluster_with_its_nodes(lab):
    server = lab.machine("box1")
    server.server()
    server.wait_nodes({"box1": "Ready"})
    token = server.token
    server.stop()
    server.server("--cluster-init")
    server.wait_log("Migrating content from sqlite to etcd")
    server.wait_nodes({"box1": "Ready"})
    assert server.token == token
    assert (server.data / "server/db/state.db.migrated").exists()
    assert not (server.data / "server/db/state.db").exists()


def test_a_member_with_another_address_never_gets_ready_until_it_is_reset(lab, founder):
    founder.stop()
    founder.address = "127.0.7.99"
    founder.server()
    founder.wait_log("this server is a not a member of the etcd cluster", times=2)
    founder.stop()
    founder.server("--cluster-reset")
    assert founder.wait_exit() == 0
    founder.server()
    founder.wait_nodes({"box1": "Ready"})


def test_a_removed_member_stays_until_its_restart_and_joins_again(lab, founder):
    second, third = lab.machine("box2"), lab.machine("box3")
    join = [f"--server={founder.url}", f"--token={founder.token}"]
    second.server(*join)
    third.server(*join)
    everybody = {"box1": "Ready", "box2": "Ready", "box3": "Ready"}
    founder.wait_nodes(everybody)
    assert founder.kubectl("delete", "node", "box3").returncode == 0
    third.wait_log("This node has been removed from the cluster - please restart k3s to rejoin the cluster")
    assert third.process.poll() is None
    assert (third.data / "server/db/etcd/tombstone").exists()
    third.stop()
    third.server(*join)
    third.wait_log("tombstone file has been detected, removing data dir to rejoin the cluster")
    third.wait_log("Promoted learner", times=2)
    founder.wait_nodes(everybody)


def test_a_joining_server_that_is_killed_at_random_moments_joins_in_the_end(lab, founder):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    lab.speed = 20.0
    second = lab.machine("box2")
    join = [f"--server={founder.url}", f"--token={founder.token}"]
    for _ in range(8):
        second.server(*join)
        with pytest.raises(subprocess.TimeoutExpired):
            second.process.wait(rng.uniform(0.05, 1.2))
        second.kill()
        if founder.process.poll() is not None:
            # A half-joined voter counts: without it the first server has no majority and ends, as real k3s does.
            assert founder.wait_exit() == 1
            break
    if founder.process.poll() is not None:
        founder.server()
    second.server(*join)
    for server in (founder, second):
        server.wait_nodes({"box1": "Ready", "box2": "Ready"})
    assert second.token == founder.token
