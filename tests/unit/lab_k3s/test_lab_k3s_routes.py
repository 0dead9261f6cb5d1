"""The table of the k3s notes, section 3.5: who may ask what on port 6443, and when."""

from __future__ import annotations

import hashlib
import json

import pytest

from provider_kairos.lab.k3s import kubelet, pki
from provider_kairos.lab.k3s.arguments import parse
from provider_kairos.lab.k3s.cluster import Membership
from provider_kairos.lab.k3s.control import Control, Folders
from provider_kairos.lab.k3s.https import Request
from provider_kairos.lab.k3s.life import Life
from provider_kairos.lab.k3s.nodeapi import NodeApi
from provider_kairos.lab.k3s.routes import Routes
from provider_kairos.lab.k3s.store import Store

NONE, NODE, SERVER, WRONG = None, ("node", "npw"), ("server", "spw"), ("server", "nope")
ADMIN = ("system:admin", ("system:masters",))
NAMED = {"k3s-node-name": "a1", "k3s-node-password": "secret", "k3s-node-ip": "10.0.0.5"}


def make(tmp_path, *, etcd=False, ready=True) -> Control:
    options = parse("server", [], {}, tmp_path)
    store = Store(tmp_path / "state.db")
    nodes = NodeApi(store, "10.42.0.0/16")
    life = Life()
    folders = Folders(tmp_path / "data", tmp_path)
    control = Control(options, folders, life, "s1", ["10.0.0.1"], "spw", "npw", store, nodes)
    control.write_authorities()
    if etcd:
        control.membership = Membership("s1-0", store, nodes, life, password="spw", ca=control.ca)
        control.membership.found("s1", "10.0.0.1:6443", "10.0.0.1")
    control.core = control.api = control.runtime = ready
    return control


@pytest.fixture
def control(tmp_path):
    return make(tmp_path)


def ask(control, path, basic=NONE, subject=None, *, method="GET", headers=None, body=b""):
    return Routes(control)(Request(method, path, headers or {}, body, basic, subject))


def message(answer):
    return json.loads(answer.body)["message"]


FOR_NODES = ["config", "readyz", "apiservers", "client-ca.crt", "server-ca.crt", "client-kube-proxy.crt",
             "client-k3s-controller.crt"]  # fmt: skip
FOR_SERVERS = {"encrypt/status": 200, "token": 405, "cert/cacerts": 405}
EVERY_ONE = [*FOR_NODES, "serving-kubelet.crt", "client-kubelet.crt", "server-bootstrap", *FOR_SERVERS]


@pytest.mark.parametrize("basic", [NONE, NODE, SERVER, WRONG])
def test_ping_and_cacerts_are_for_everybody(control, basic):
    assert ask(control, "/ping", basic).body == b"pong"
    assert ask(control, "/cacerts", basic).body == (control.folders.tls / "server-ca.crt").read_bytes()


@pytest.mark.parametrize("basic", [NONE, NODE, SERVER, WRONG])
@pytest.mark.parametrize("path", ["/readyz", "/livez", "/healthz", "/version", "/api", "/nosuch", "/api/v1/nodes"])
def test_the_api_knows_no_passwords(control, path, basic):
    answer = ask(control, path, basic)
    assert (answer.code, message(answer)) == (401, "Unauthorized")


@pytest.mark.parametrize("path", EVERY_ONE)
def test_supervisor_routes_refuse_strangers_and_wrong_passwords(control, path):
    answer = ask(control, f"/v1-k3s/{path}")
    assert (answer.code, message(answer)) == (403, "forbidden")
    for wrong in (WRONG, ("node", "spw"), ("server", "npw"), ("node", ""), ("admin", "spw")):
        answer = ask(control, f"/v1-k3s/{path}", wrong)
        assert (answer.code, message(answer)) == (401, "not authorized")


@pytest.mark.parametrize("path", FOR_NODES)
def test_routes_for_nodes(control, path):
    assert ask(control, f"/v1-k3s/{path}", NODE).code == 200
    assert ask(control, f"/v1-k3s/{path}", SERVER).code == 403


@pytest.mark.parametrize(("path", "code"), FOR_SERVERS.items())
def test_routes_for_servers(control, path, code):
    assert ask(control, f"/v1-k3s/{path}", SERVER).code == code
    assert ask(control, f"/v1-k3s/{path}", NODE).code == 403


def test_bootstrap_data_are_for_servers_of_a_cluster(control, tmp_path):
    answer = ask(control, "/v1-k3s/server-bootstrap", SERVER)
    assert (answer.code, message(answer)) == (400, "etcd disabled")
    assert ask(control, "/v1-k3s/server-bootstrap", NODE).code == 403
    clustered = make(tmp_path / "etcd", etcd=True)
    data = json.loads(ask(clustered, "/v1-k3s/server-bootstrap", SERVER).body)
    assert data["server-ca.crt"].encode() == clustered.ca
    assert "PRIVATE KEY" in data["client-ca.key"]


def test_db_info(control, tmp_path):
    for basic in (NONE, NODE, SERVER, WRONG):
        answer = ask(control, "/db/info", basic)
        assert (answer.code, message(answer)) == (400, "etcd datastore disabled")
    clustered = make(tmp_path / "etcd", etcd=True)
    assert [ask(clustered, "/db/info", basic).code for basic in (NONE, NODE, SERVER, WRONG)] == [403, 403, 200, 401]


@pytest.mark.parametrize(("basic", "code"), [(NONE, 403), (NODE, 403), (SERVER, 403), (WRONG, 401)])
def test_the_tunnel_is_for_kubelet_certificates(control, basic, code):
    headers = {"upgrade": "websocket"}
    assert ask(control, "/v1-k3s/connect", basic, headers=headers).code == code
    answer = ask(control, "/v1-k3s/connect", NODE, ("system:node:a1", ("system:nodes",)), headers=headers)
    assert answer.code == 101
    assert answer.takeover is not None


def test_static_is_not_found(control):
    assert ask(control, "/static/").code == 404


@pytest.mark.parametrize("path", ["serving-kubelet.crt", "client-kubelet.crt"])
def test_kubelet_certificates(control, path):
    def post(**headers):
        return ask(
            control, f"/v1-k3s/{path}", NODE, method="POST", headers=headers, body=pki.request_for(pki.new_key())
        )

    assert message(post()) == "node name not set"
    assert message(post(**{"k3s-node-name": "a1"})) == "node password not set"
    answer = post(**NAMED)
    assert answer.code == 200
    assert answer.body.startswith(b"-----BEGIN CERTIFICATE-----")
    # Known now, under this password only.
    assert post(**NAMED).code == 200
    answer = post(**{**NAMED, "k3s-node-password": "other"})
    assert (answer.code, message(answer)) == (403, "unable to verify password for node a1: hash does not match")
    assert post(**{**NAMED, "k3s-node-name": "a2", "k3s-node-password": "other"}).code == 200


def test_node_passwords_are_not_stored_in_clear(control):
    ask(control, "/v1-k3s/client-kubelet.crt", NODE, headers=NAMED)
    assert "secret" not in str(control.store.get("passwords/a1")).split(":")
    assert b"PRIVATE KEY" in ask(control, "/v1-k3s/client-kubelet.crt", NODE, headers=NAMED).body


def test_a_broken_signing_request_is_the_clients_mistake(control):
    answer = ask(control, "/v1-k3s/client-kubelet.crt", NODE, method="POST", headers=NAMED, body=b"garbage")
    assert answer.code == 400


def test_before_it_is_ready(tmp_path):
    control = make(tmp_path, ready=False)
    assert ask(control, "/ping").code == 200
    answer = ask(control, "/readyz")
    assert (answer.code, message(answer)) == (503, "apiserver not ready")
    answer = ask(control, "/v1-k3s/readyz", NODE)
    assert (answer.code, message(answer)) == (503, "runtime core not ready")
    assert ask(control, "/v1-k3s/config").code == 403


def test_the_token_names_the_authority_that_is_served(control):
    control.write_tokens()
    server = control.folders.server
    digest = hashlib.sha256(ask(control, "/cacerts").body).hexdigest()
    assert server.joinpath("token").read_text() == f"K10{digest}::server:spw\n"
    assert (server / "node-token").readlink() == server / "token"
    assert server.joinpath("agent-token").read_text() == f"K10{digest}::node:npw\n"
    assert server.joinpath("token").stat().st_mode & 0o777 == 0o600


def test_without_an_agent_token_there_is_one_token(control):
    control.agent_password = control.password
    control.write_tokens()
    assert (control.folders.server / "agent-token").readlink() == control.folders.server / "token"


def test_modes(control):
    control.write_passwords()
    assert control.folders.passwords.read_text() == "npw,node,node,k3s:agent\nspw,server,server,k3s:server\n"
    assert control.folders.server.stat().st_mode & 0o777 == 0o700
    for path in control.folders.server.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == (0o644 if path.suffix == ".crt" else 0o600), path


# -- nodes -----------------------------------------------------------------------------------------------------------


def registered(control, name="a1"):
    made = kubelet.node_object(control.options, name, ["10.0.0.5"], {}, {})
    subject = (f"system:node:{name}", ("system:nodes",))
    answer = ask(control, "/api/v1/nodes", subject=subject, method="POST", body=json.dumps(made).encode())
    assert answer.code == 201
    return subject


def test_a_kubelet_may_speak_of_its_own_node_alone(control):
    subject = registered(control)
    made = kubelet.node_object(control.options, "other", ["10.0.0.6"], {}, {})
    assert ask(control, "/api/v1/nodes", subject=subject, method="POST", body=json.dumps(made).encode()).code == 403
    assert ask(control, "/api/v1/nodes/a1", subject=subject).code == 200
    assert ask(control, "/api/v1/nodes", subject=subject).code == 403
    assert ask(control, "/api/v1/nodes/a1", subject=subject, method="DELETE").code == 403


def test_every_answer_about_nodes_says_what_it_is(control):
    registered(control)
    answer = ask(control, "/api/v1/nodes", subject=ADMIN)
    assert "stand-in" in answer.headers["Warning"]
    found = json.loads(answer.body)["items"][0]
    assert found["status"]["nodeInfo"]["osImage"] == "k3s stand-in"
    assert "stand-in" in str(found["metadata"]["annotations"])
    assert "stand-in" in str(found["metadata"]["labels"])


def test_deleting_a_node_forgets_its_password(control):
    registered(control)
    ask(control, "/v1-k3s/client-kubelet.crt", NODE, headers=NAMED)
    assert ask(control, "/api/v1/nodes/a1", subject=ADMIN, method="DELETE").code == 200
    assert ask(control, "/api/v1/nodes/a1", subject=ADMIN).code == 404
    assert ask(control, "/api/v1/nodes/a1", subject=ADMIN, method="DELETE").code == 404
    other = {**NAMED, "k3s-node-password": "another machine"}
    assert ask(control, "/v1-k3s/client-kubelet.crt", NODE, headers=other).code == 200


def test_readiness_with_a_certificate(control):
    assert ask(control, "/readyz?timeout=15s&verbose=", subject=("system:k3s-controller", ())).body == b"ok"
    assert ask(control, "/nosuch", subject=ADMIN).code == 404


def test_a_cluster_without_quorum_serves_only_ping(tmp_path):
    control = make(tmp_path, etcd=True)
    assert ask(control, "/readyz", subject=ADMIN).code == 200
    for number in (1, 2):
        record = {"node": f"s{number}", "address": "10.0.0.9:6443", "ip": "10.0.0.9", "learner": False}
        control.store.put(f"members/other-{number}", record)
    answer = ask(control, "/readyz", subject=ADMIN)
    assert (answer.code, message(answer)) == (503, "apiserver not ready")
    assert ask(control, "/v1-k3s/readyz", NODE).code == 503
    assert ask(control, "/ping").code == 200


def test_members_join_one_at_a_time_under_their_own_names(tmp_path):
    control = make(tmp_path, etcd=True)
    membership = control.membership
    assert membership is not None

    def add(name, node):
        return membership.add(name, node, "10.0.0.2:6443", "10.0.0.2")

    assert add("s1-ff", "s1") == "duplicate"
    assert add("s2-aa", "s2") == ""
    assert add("s2-aa", "s2") == ""
    assert add("s3-bb", "s3") == "etcdserver: too many learner members in cluster"
