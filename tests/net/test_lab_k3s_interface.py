"""The k3s stand-in on a real interface in a namespace of its own (k3s notes, section 7)."""

from __future__ import annotations

import pytest

from provider_kairos.lab.k3s.harness import Harness

pytestmark = pytest.mark.root


@pytest.fixture
def boxes(make_namespaces, tmp_path):
    with Harness(tmp_path) as lab:
        spaces = make_namespaces(3)
        machines = [lab.machine(space.name, space.address, space.argv([])) for space in spaces]
        yield list(zip(machines, spaces, strict=True))


def test_the_interface_is_enough_to_become_a_node(boxes):
    (server, _), (agent, agent_space), _ = boxes
    server.server("--flannel-iface=eth0")
    server.wait_log("k3s is up and running")
    agent.agent("--flannel-iface=eth0", f"--server={server.url}", f"--token={server.token}")
    server.wait_nodes({"box1": "Ready", "box2": "Ready"})
    wide = server.kubectl("get", "nodes", "-o", "wide", "--no-headers").stdout
    assert [line.split()[5] for line in wide.splitlines()] == [server.address, agent.address]
    for machine in (server, agent):
        assert "FLANNEL_MTU=1450\n" in (machine.root / "run/flannel/subnet.env").read_text()
    listening = agent_space.run("ss", "-Hltn")
    assert "127.0.0.1:6444" in listening
    assert ":10250" in listening


def test_a_power_cut_of_the_first_of_three_servers(boxes):
    (first, first_space), (second, _), (third, _) = boxes
    first.server("--cluster-init", "--flannel-iface=eth0")
    first.wait_log("k3s is up and running")
    for server in (second, third):
        server.server("--flannel-iface=eth0", f"--server={first.url}", f"--token={first.token}")
    for server in (first, second, third):
        server.wait_nodes({"box1": "Ready", "box2": "Ready", "box3": "Ready"})
    # The link first, so that nobody sees a clean close.
    first_space.run("ip", "link", "set", "eth0", "down")
    first.kill()
    for server in (second, third):
        server.wait_nodes({"box1": "NotReady", "box2": "Ready", "box3": "Ready"})
    first_space.run("ip", "link", "set", "eth0", "up")
    first.server("--flannel-iface=eth0")
    first.wait_nodes({"box1": "Ready", "box2": "Ready", "box3": "Ready"})


def test_an_agent_of_an_unreachable_server_waits_for_the_network(boxes):
    (server, server_space), (agent, _), _ = boxes
    server.server("--flannel-iface=eth0", "--token=pw")
    server.wait_log("k3s is up and running")
    server_space.run("ip", "link", "set", "eth0", "down")
    agent.agent("--flannel-iface=eth0", f"--server={server.url}", "--token=pw")
    agent.wait_log("failed to get CA certs: Get ", times=2)
    server_space.run("ip", "link", "set", "eth0", "up")
    server.wait_nodes({"box1": "Ready", "box2": "Ready"})


@pytest.mark.parametrize("event", ["before", "during"])
def test_an_interface_that_goes_away_while_k3s_starts_ends_it_with_status_0(boxes, event):
    (server, space), *_ = boxes
    if event == "before":
        server.server("--flannel-iface=eth0")
        server.wait_log("Wrote kubeconfig")
        space.run("ip", "link", "del", "eth0")
        reason = "flannel exited: failed to register flannel network: failed to create vxlan device: no such device"
    else:
        server.server("--flannel-iface=eth0")
        server.wait_nodes({"box1": "Ready"})
        space.run("ip", "link", "del", "eth0")
        reason = "failed to start networking: unable to initialize network policy controller"
    assert server.wait_exit() == 0
    server.wait_log(f"Shutdown request received: {reason}")
    server.server("--flannel-iface=eth0")
    assert server.wait_exit() == 1
    server.wait_log("Error: interface eth0 does not have a correct global unicast ip")


def test_an_address_that_comes_late_is_picked_up(boxes):
    (server, space), *_ = boxes
    space.run("ip", "addr", "flush", "dev", "eth0")
    server.server("--flannel-iface=eth0", f"--node-ip={server.address}")
    server.wait_nodes({"box1": "Ready"})
    server.wait_log("not found in the host's network interfaces")
    space.run("ip", "addr", "add", f"{server.address}/24", "dev", "eth0")
    server.wait_nodes({"box1": "Ready"})
    assert server.process.poll() is None
