"""One k3s stand-in as a server with its agents, on the loopback (k3s notes, sections 3, 4, 8 and 11)."""

from __future__ import annotations

import json
import os
import random
import socket
import ssl
import subprocess
import sys

import pytest

from provider_kairos.lab.k3s.client import Client, RequestError, basic_header, context_for
from provider_kairos.lab.k3s.harness import Harness, free_port
from provider_kairos.lab.k3s.tokens import JoinToken

WAITING = "Waiting to retrieve agent configuration; server is not ready: "


@pytest.fixture
def lab(tmp_path):
    with Harness(tmp_path) as harness:
        yield harness


@pytest.fixture
def slow_lab(tmp_path):
    """For orders of events that a quick one would blur."""
    with Harness(tmp_path, speed=2.0) as harness:
        yield harness


def password(token):
    return JoinToken.parse(token).password


# -- one server and its agents ---------------------------------------------------------------------------------------


def test_server_and_agent_become_two_ready_nodes(lab):
    server, agent = lab.machine("box1"), lab.machine("box2")
    server.server()
    server.wait_log("k3s is up and running")
    agent.agent(f"--server={server.url}", environment={"K3S_TOKEN": server.token})
    server.wait_nodes({"box1": "Ready", "box2": "Ready"})

    found = {n["metadata"]["name"]: n for n in json.loads(server.kubectl("get", "nodes", "-o", "json").stdout)["items"]}
    assert found["box1"]["status"]["addresses"][0] == {"type": "InternalIP", "address": server.address}
    assert found["box2"]["status"]["addresses"][0] == {"type": "InternalIP", "address": agent.address}
    assert found["box2"]["spec"]["providerID"] == "k3s://box2"
    arguments = json.loads(found["box2"]["metadata"]["annotations"]["k3s.io/node-args"])
    assert arguments[:2] == ["agent", "--data-dir"]
    wide = server.kubectl("get", "nodes", "-o", "wide")
    assert [line.split()[2] for line in wide.stdout.splitlines()] == ["ROLES", "control-plane", "<none>"]
    assert "k3s stand-in" in wide.stdout
    assert "stand-in" in wide.stderr
    assert server.kubectl("get", "nodes", "-o", "name").stdout == "node/box1\nnode/box2\n"
    saved = json.loads((agent.data / "agent/etc/k3s-agent-load-balancer.json").read_text())
    assert saved == {"ServerURL": server.url, "ServerAddresses": [f"{server.address}:{server.port}"]}
    for machine in (server, agent):
        assert password(server.token) not in machine.log
        assert machine.log.splitlines()[0].endswith('(stand-in)"')
        assert machine.stop() == 0


def test_the_order_of_events_of_a_server(slow_lab, tmp_path):
    notify = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(notify))
        listener.settimeout(60)
        server = slow_lab.machine("box1")
        server.server(environment={"NOTIFY_SOCKET": str(notify)})
        client = Client(f"{server.address}:{server.port}", context_for(None))
        events = []

        def note(name):
            if name not in events:
                events.append(name)

        while "401" not in events:
            # The file is looked at first, so that an event in between cannot seem earlier than it was.
            token = (server.data / "server" / "node-token").exists()
            try:
                ping = client.get("/ping").code == 200
                code = client.request("GET", "/readyz").code
            except RequestError:
                continue
            if ping:
                note("ping")
            if token:
                note("token")
                assert (server.root / "etc" / "k3s").is_dir()
            note(str(code))
        assert events in (["ping", "503", "token", "401"], ["503", "ping", "token", "401"])
        assert server.nodes().get("box1") in (None, "NotReady")
        assert listener.recv(100) == b"READY=1\n"
        assert server.nodes().get("box1") == "NotReady"
        server.wait_nodes({"box1": "Ready"})


def test_an_agent_reports_ready_only_after_it_joined(lab, tmp_path):
    notify = tmp_path / "notify"
    server, agent = lab.machine("box1"), lab.machine("box2")
    server.server("--token=right")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(notify))
        environment = {"NOTIFY_SOCKET": str(notify)}
        agent.agent(f"--server={server.url}", "--token=wrong", environment=environment)
        agent.wait_log(f"{WAITING}failed to retrieve configuration from server: not authorized", times=3)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(100)
        assert agent.stop() == 0
        listener.setblocking(True)
        listener.settimeout(60)
        agent.agent(f"--server={server.url}", "--token=right", environment=environment)
        assert listener.recv(100) == b"READY=1\n"
    agent.wait_log("but the token does not include a CA hash")
    assert "box2" in server.nodes()


def test_agents_that_are_refused_go_on_trying(lab):
    server = lab.machine("box1")
    server.server()
    server.wait_log("Run: k3s kubectl")
    good = server.token
    dead = free_port()
    cases = {
        "hash": ([f"--server={server.url}", "--token=K10" + "0" * 64 + good[67:]], "does not match the Cluster CA"),
        "length": ([f"--server={server.url}", "--token=K10ab::server:x"], "invalid token CA hash length"),
        "plain": ([f"--server=http://{server.address}:{server.port}", f"--token={good}"], "only https:// URLs are"),
        "shut": ([f"--server=https://{server.address}:{dead}", f"--token={good}"], "failed to get CA certs: Get"),
        "name": (["--server=https://no.such.invalid:6443", f"--token={good}"], "failed to get CA certs: Get"),
    }
    for name, (arguments, text) in cases.items():
        agent = lab.machine(name)
        agent.agent(*arguments)
        agent.wait_log(text, times=2)
        assert f"127.0.0.1:{agent.balancer_port}" in agent.log
        assert agent.stop() == 0
    server.wait_nodes({"box1": "Ready"})


def test_a_second_machine_under_a_known_name_waits_until_the_node_is_deleted(lab):
    server, first, second = lab.machine("box1"), lab.machine("twin"), lab.machine("twin")
    server.server()
    server.wait_log("k3s is up and running")
    join = [f"--server={server.url}", f"--token={server.token}"]
    first.agent(*join)
    server.wait_nodes({"box1": "Ready", "twin": "Ready"})
    first.kill()
    second.agent(*join)
    second.wait_log("serving-kubelet.crt: Node password rejected, duplicate hostname or contents of", times=2)
    assert server.kubectl("delete", "node", "twin").stdout == 'node "twin" deleted\n'
    server.wait_nodes({"box1": "Ready", "twin": "Ready"})
    assert server.kubectl("delete", "node", "nosuch").returncode == 1


def test_with_node_id_two_machines_of_one_name_are_two_nodes(lab):
    server, first, second = lab.machine("box1"), lab.machine("twin"), lab.machine("twin")
    server.server()
    server.wait_log("k3s is up and running")
    for agent in (first, second):
        agent.agent("--with-node-id", f"--server={server.url}", f"--token={server.token}")
    names = [f"twin-{(machine.root / 'etc/node/id').read_text().strip()}"
             for machine in (first, second) if machine.wait_log("Remotedialer connected") is None]  # fmt: skip
    server.wait_nodes({"box1": "Ready", names[0]: "Ready", names[1]: "Ready"})


def test_a_silent_node_is_not_ready_and_recovers_with_its_old_identity(lab):
    server, agent = lab.machine("box1"), lab.machine("box2")
    server.server()
    server.wait_log("k3s is up and running")
    join = [f"--server={server.url}", f"--token={server.token}"]
    agent.agent(*join)
    server.wait_nodes({"box1": "Ready", "box2": "Ready"})
    agent.kill()
    server.wait_nodes({"box1": "Ready", "box2": "NotReady"})
    agent.agent(*join)
    server.wait_nodes({"box1": "Ready", "box2": "Ready"})


def test_after_the_join_everything_goes_to_the_addresses_that_servers_advertise(lab):
    server, agent = lab.machine("box1"), lab.machine("box2")
    server.server(f"--advertise-port={free_port()}")
    server.wait_log("k3s is up and running")
    agent.agent(f"--server={server.url}", f"--token={server.token}")
    agent.wait_log("Failed to connect to proxy", times=2)
    agent.wait_log("Unable to register node with API server", times=2)
    assert server.nodes() == {"box1": "Ready"}


def test_an_agent_that_is_killed_at_random_moments_keeps_its_identity(lab):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    server, agent = lab.machine("box1"), lab.machine("box2")
    server.server()
    server.wait_log("k3s is up and running")
    join = ["--with-node-id", f"--server={server.url}", f"--token={server.token}"]
    for _ in range(10):
        agent.agent(*join)
        with pytest.raises(subprocess.TimeoutExpired):
            agent.process.wait(rng.uniform(0.05, 0.9))
        agent.kill()
    agent.agent(*join)
    agent.wait_log("Remotedialer connected")
    name = f"box2-{(agent.root / 'etc/node/id').read_text().strip()}"
    server.wait_nodes({"box1": "Ready", name: "Ready"})


def test_an_agent_outlives_a_restart_of_its_server(lab):
    server, agent = lab.machine("box1"), lab.machine("box2")
    server.server()
    server.wait_log("k3s is up and running")
    token = server.token
    agent.agent(f"--server={server.url}", f"--token={token}")
    server.wait_nodes({"box1": "Ready", "box2": "Ready"})
    server.kill()
    agent.wait_log("Error updating node status, will retry")
    server.server()
    server.wait_nodes({"box1": "Ready", "box2": "Ready"})
    assert server.token == token


# -- restarts and kills ------------------------------------------------------------------------------------------------


def test_another_token_after_the_first_start_is_refused(lab):
    server = lab.machine("box1")
    server.server("--token=one")
    server.wait_log("Wrote kubeconfig")
    server.stop()
    server.server("--token=two")
    assert server.wait_exit() == 1
    server.wait_log(
        'level=fatal msg="Error: preparing server: failed to bootstrap cluster data: bootstrap data already found '
        'and encrypted with different token"'
    )
    server.server("--token=one")
    server.wait_nodes({"box1": "Ready"})


def test_a_first_start_that_was_killed_early_waits_for_the_lock(slow_lab):
    server = slow_lab.machine("box1")
    server.server()
    path = server.data / "server" / "cred" / "passwd"
    while not path.exists():
        assert server.process.poll() is None
    server.kill()
    assert not (server.data / "server" / "token").exists()
    server.server(environment={"K3S_STANDIN_SPEED": "20"})
    server.wait_log("Bootstrap key is locked - waiting for data to be populated by another server")
    server.wait_log("Bootstrap key lock timed out - deleting lock and retrying")
    server.wait_nodes({"box1": "Ready"})


@pytest.mark.parametrize("kind", ["sqlite", "etcd"])
def test_kills_at_random_moments_lose_nothing(lab, kind):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    lab.speed = 40.0
    server = lab.machine("box1")
    arguments = ["--cluster-init"] if kind == "etcd" else []
    known: dict[str, bytes] = {}
    for _ in range(12):
        server.server(*arguments)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(rng.uniform(0.05, 0.9))
        server.kill()
        for name in ("server/tls/server-ca.crt", "server/token", "../etc/node/password", "server/db/etcd/name"):
            path = server.data / name
            if path.exists():
                assert known.setdefault(name, path.read_bytes()) == path.read_bytes(), name
    server.server(*arguments)
    server.wait_nodes({"box1": "Ready"})
    assert server.stop() == 0


# -- status 0 and other ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--flannel-backend=bogus"], "failed to start networking: Cannot configure unknown flannel backend 'bogus'"),
        (["--flannel-backend=wireguard"], "Cannot configure unknown flannel backend 'wireguard'"),
        (["--node-taint=xx"], "invalid taint spec: xx"),
        (["--kubelet-arg=nosuch=1"], "unknown flag: --nosuch"),
        (['--node-label=""'], "invalid node labels"),
    ],
)
def test_late_refusals_end_with_status_0_and_leave_the_token(lab, arguments, text):
    server = lab.machine("box1")
    server.server(*arguments)
    assert server.wait_exit() == 0
    server.wait_log("Shutdown request received: ")
    server.wait_log(text)
    assert server.token.startswith("K10")


def test_a_mode_that_cannot_be_read_leaves_0600_and_k3s_runs(lab):
    server = lab.machine("box1")
    server.server("--write-kubeconfig-mode=abc")
    server.wait_nodes({"box1": "Ready"})
    assert (server.root / "etc/k3s/k3s.yaml").stat().st_mode & 0o777 == 0o600
    server.stop()
    server.server("--write-kubeconfig-mode=644")
    server.wait_log("Wrote kubeconfig", times=2)
    assert (server.root / "etc/k3s/k3s.yaml").stat().st_mode & 0o777 == 0o644


def test_the_kubeconfig_names_the_loopback_unless_bound_elsewhere(lab):
    server, bound = lab.machine("box1"), lab.machine("box2")
    server.server("--advertise-address=127.0.7.77", "--tls-san=example.org")
    bound.server(f"--bind-address={bound.address}")
    for machine, host in ((server, "127.0.0.1"), (bound, bound.address)):
        machine.wait_nodes({machine.name: "Ready"})
        path = machine.root / "etc/k3s/k3s.yaml"
        assert f"server: https://{host}:{machine.port}\n" in path.read_text()
    # The address may be rewritten to any that the certificate holds.
    path = lab.root / "elsewhere.yaml"
    path.write_text((server.root / "etc/k3s/k3s.yaml").read_text().replace("127.0.0.1", server.address))
    assert "box1" in server.kubectl("get", "nodes", kubeconfig=path).stdout
    path.write_text(path.read_text().replace(server.address, bound.address).replace(str(server.port), str(bound.port)))
    refused = server.kubectl("get", "nodes", kubeconfig=path)
    assert refused.returncode == 1
    assert "failed to verify certificate" in refused.stderr


def test_kubectl_without_a_server_and_without_a_file(lab, tmp_path):
    server = lab.machine("box1")
    missing = server.kubectl("get", "nodes")
    assert (missing.returncode, "no such file or directory" in missing.stderr) == (1, True)
    server.server()
    server.wait_log("Wrote kubeconfig")
    server.stop()
    refused = server.kubectl("get", "nodes")
    assert refused.stderr == (
        f"The connection to the server 127.0.0.1:{server.port} was refused - did you specify the right host or port?\n"
    )


def test_a_link_named_kubectl_is_kubectl(lab, tmp_path):
    from provider_kairos.lab.k3s.__main__ import launcher

    program = tmp_path / "k3s"
    program.write_text(launcher(sys.executable))
    program.chmod(0o755)
    (tmp_path / "kubectl").symlink_to(program)
    server = lab.machine("box1")
    server.server()
    server.wait_nodes({"box1": "Ready"})
    environment = server.environment()
    for command in ([tmp_path / "kubectl"], [program, "kubectl"]):
        answer = subprocess.run(
            [*command, "get", "nodes", "-o=name"], env=environment, capture_output=True, check=False
        )
        assert (answer.returncode, answer.stdout) == (0, b"node/box1\n")
    assert subprocess.run([program, "nosuch"], env=environment, capture_output=True, check=False).returncode == 3


# -- garbage -------------------------------------------------------------------------------------------------------------


def test_garbage_slow_clients_and_wrong_tls_end_nothing(lab):
    server, agent = lab.machine("box1"), lab.machine("box2")
    server.server()
    server.wait_log("k3s is up and running")
    agent.agent(f"--server={server.url}", f"--token={server.token}")
    server.wait_nodes({"box1": "Ready", "box2": "Ready"})
    ports = [server.port, server.port + 1, server.kubelet_port, agent.balancer_port, agent.kubelet_port]
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    idle = []
    for port in ports:
        for number in range(30):
            raw = socket.create_connection(("127.0.0.1", port))
            idle.append(raw)
            if number % 3 == 0:
                continue  # says nothing
            raw.sendall(os.urandom(200) if number % 3 == 1 else b"\x16\x03\x01\x02\x00" + os.urandom(100))
        for request in (b"\x00" * 5000, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1-k3s/config HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                        b"GET /" + b"a" * 70000, b"PUT /api/v1/nodes HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"):  # fmt: skip
            raw = socket.create_connection(("127.0.0.1", port))
            idle.append(anybody.wrap_socket(raw, server_hostname="x"))
            idle[-1].sendall(request)
    plain = socket.create_connection(("127.0.0.1", server.port))
    plain.sendall(b"GET /ping HTTP/1.1\r\n\r\n")
    assert b"400 Bad Request" in plain.recv(200)
    idle.append(plain)
    # A node with a certificate is no better.
    stem = agent.data / "agent" / "client-kubelet"
    certificate = stem.with_suffix(".crt").read_bytes(), stem.with_suffix(".key").read_bytes()
    node = Client(
        f"127.0.0.1:{server.port}", context_for((agent.data / "agent/server-ca.crt").read_bytes(), *certificate)
    )
    for body in (b"", b"null", b"[]", b"{}", b"\xff", b'{"metadata":{"name":"box2"}}', b'{"metadata":[]}'):
        assert node.request("POST", "/api/v1/nodes", body).code in (400, 403)
        assert node.request("PATCH", "/api/v1/nodes/box2/status", body).code == 400
    member = Client(f"127.0.0.1:{server.port}", context_for(None), basic_header("server", password(server.token)))
    assert member.request("POST", "/standin/sync", b"garbage").code == 400
    server.wait_nodes({"box1": "Ready", "box2": "Ready"})
    for connection in idle:
        connection.close()
    assert server.stop() == agent.stop() == 0
