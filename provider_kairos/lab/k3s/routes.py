"""What port 6443 answers, and to whom (k3s notes, section 3.5).

Supervisor routes know two basic users, ``node`` and ``server``; the API knows client certificates only. Everything
that is not one of the routes is the API server's, which says 503 before it runs and 401 to strangers afterwards.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from urllib.parse import unquote

from provider_kairos.lab.k3s import KUBELET_VERSION, MARK, pki
from provider_kairos.lab.k3s.control import Control, control_config
from provider_kairos.lab.k3s.https import Answer, Request, json_answer, status
from provider_kairos.lab.k3s.nodeapi import WARNING, version_document
from provider_kairos.lab.k3s.store import Row

__all__ = ["Routes"]

log = logging.getLogger(__name__)

FORBIDDEN = status(403, "Forbidden", "forbidden")
NOT_AUTHORIZED = status(401, "Unauthorized", "not authorized")
UNAUTHORIZED = status(401, "Unauthorized", "Unauthorized")
NOT_FOUND = status(404, "NotFound", "the server could not find the requested resource")
NOT_ALLOWED = status(405, "MethodNotAllowed", "method not allowed")
CORE_NOT_READY = status(503, "ServiceUnavailable", "runtime core not ready")
API_NOT_READY = status(503, "ServiceUnavailable", "apiserver not ready")
MASTERS = "system:masters"


class Routes:
    """The handler function of a server's listeners."""

    def __init__(self, control: Control) -> None:
        self._control = control
        node = self._node_route
        server = self._server_route
        self._exact: dict[str, Callable[[Request], Answer]] = {
            "/ping": lambda _: Answer(200, b"pong"),
            "/cacerts": lambda _: Answer(200, control.ca),
            "/v1-k3s/config": node(lambda _: json_answer(control_config(control.options))),
            "/v1-k3s/readyz": node(
                lambda _: Answer(200, b"ok") if control.runtime and control.api_ready() else CORE_NOT_READY
            ),
            "/v1-k3s/apiservers": node(lambda _: json_answer(control.api_servers())),
            "/v1-k3s/client-ca.crt": node(lambda _: Answer(200, control.authorities["client-ca"].certificate)),
            "/v1-k3s/server-ca.crt": node(lambda _: Answer(200, control.ca)),
            "/v1-k3s/client-kube-proxy.crt": node(lambda r: self._client_certificate(r, "kube-proxy")),
            "/v1-k3s/client-k3s-controller.crt": node(lambda r: self._client_certificate(r, "k3s-controller")),
            "/v1-k3s/serving-kubelet.crt": node(lambda r: self._kubelet_certificate(r, serving=True)),
            "/v1-k3s/client-kubelet.crt": node(lambda r: self._kubelet_certificate(r, serving=False)),
            "/v1-k3s/server-bootstrap": server(self._bootstrap),
            "/v1-k3s/encrypt/status": server(lambda _: json_answer({"Enable": None, "ActiveKey": "", "Stage": ""})),
            "/v1-k3s/token": server(lambda _: NOT_ALLOWED),
            "/v1-k3s/cert/cacerts": server(lambda _: NOT_ALLOWED),
            "/v1-k3s/connect": self._connect,
            "/db/info": self._db_info,
            "/standin/sync": server(self._sync),
            "/standin/members": server(self._add_member),
        }

    def __call__(self, request: Request) -> Answer:
        """The answer to one request."""
        path = request.path.partition("?")[0]
        route = self._exact.get(path)
        if route is not None:
            return route(request)
        if path.startswith("/static/"):
            return Answer(404, b"404 page not found\n")
        return self._api(request, path)

    # -- who may -----------------------------------------------------------------------------------------------

    def _user(self, request: Request) -> str | Answer:
        """``node``, ``server``, or the answer to somebody else."""
        if request.basic is None:
            return FORBIDDEN
        user, password = request.basic
        known = {"node": self._control.agent_password, "server": self._control.password}
        if not password or known.get(user) != password:
            return NOT_AUTHORIZED
        return user

    def _for(self, wanted: str, handler: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
        def guarded(request: Request) -> Answer:
            user = self._user(request)
            if isinstance(user, Answer):
                return user
            if user != wanted:
                return FORBIDDEN
            if not self._control.core:
                return CORE_NOT_READY
            return handler(request)

        return guarded

    def _node_route(self, handler: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
        return self._for("node", handler)

    def _server_route(self, handler: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
        return self._for("server", handler)

    # -- supervisor routes ---------------------------------------------------------------------------------------

    def _signed(self, request: Request, name: str, organization: str, names: list[str], *, serving: bool) -> Answer:
        """A certificate for the request's CSR; without one, for a new key that is sent along."""
        authority = self._control.authorities["server-ca" if serving else "client-ca"]
        if request.body:
            try:
                return Answer(200, pki.sign_request(authority, request.body, name, organization, names))
            except ValueError as error:
                return status(400, "BadRequest", str(error))
        key = pki.new_key()
        return Answer(200, pki.issue(authority, key, name, organization, names) + key)

    def _client_certificate(self, request: Request, component: str) -> Answer:
        return self._signed(request, f"system:{component}", "", [], serving=False)

    def _kubelet_certificate(self, request: Request, *, serving: bool) -> Answer:
        name = request.headers.get("k3s-node-name", "")
        password = request.headers.get("k3s-node-password", "")
        if not name:
            return status(400, "BadRequest", "node name not set")
        if not password:
            return status(400, "BadRequest", "node password not set")
        if not self._control.api_ready():
            return CORE_NOT_READY
        if not self._control.nodes.check_password(name, password):
            return status(403, "Forbidden", f"unable to verify password for node {name}: hash does not match")
        if not serving:
            return self._signed(request, f"system:node:{name}", "system:nodes", [], serving=False)
        addresses = [part for part in request.headers.get("k3s-node-ip", "").split(",") if part]
        return self._signed(request, name, "", [name, "127.0.0.1", "localhost", *addresses], serving=True)

    def _bootstrap(self, _request: Request) -> Answer:
        control = self._control
        if control.membership is None:
            return status(400, "BadRequest", "etcd disabled")
        if not control.api_ready():
            return API_NOT_READY
        data = {
            f"{name}.{part}": text.decode()
            for name, authority in control.authorities.items()
            for part, text in (("crt", authority.certificate), ("key", authority.key))
        }
        return json_answer(data)

    def _db_info(self, request: Request) -> Answer:
        if self._control.membership is None:
            return status(400, "BadRequest", "etcd datastore disabled")
        members = self._control.membership
        return self._server_route(lambda _: json_answer({"members": members.members()}))(request)

    def _sync(self, request: Request) -> Answer:
        if self._control.membership is None:
            return status(400, "BadRequest", "etcd disabled")
        sent = json.loads(request.body)
        self._control.store.merge(Row.from_json(row) for row in sent["rows"])
        rows = [row.as_json() for row in self._control.store.rows()] if sent.get("full") else []
        return json_answer({"rows": rows})

    def _add_member(self, request: Request) -> Answer:
        membership = self._control.membership
        if membership is None:
            return status(400, "BadRequest", "etcd disabled")
        if not self._control.api_ready():
            return API_NOT_READY
        sent = {name: str(value) for name, value in json.loads(request.body).items()}
        refusal = membership.add(sent["name"], sent["node"], sent["address"], sent["ip"])
        if refusal == "duplicate":
            return status(409, "Conflict", "duplicate node name found, please use a unique name for this node")
        if refusal:
            return status(503, "ServiceUnavailable", refusal)
        membership.refresh()
        return json_answer({"rows": [row.as_json() for row in self._control.store.rows()]})

    def _connect(self, request: Request) -> Answer:
        """The agents' tunnel. Nothing travels in it here; it stands as long as both sides do."""
        if request.basic is not None and isinstance(answer := self._user(request), Answer):
            return answer
        name = request.subject[0].removeprefix("system:node:") if request.subject else ""
        if request.subject is None or not request.subject[0].startswith("system:node:"):
            return FORBIDDEN
        if "websocket" not in request.headers.get("upgrade", "").lower():
            return status(400, "BadRequest", "websocket: the client is not using the websocket protocol")
        log.info("Handling backend connection request [%s]", name)

        def hold(connection: socket.socket) -> None:
            while connection.recv(4096):
                pass
            log.info("error in remotedialer server [400]: tunnel of %s closed", name)

        return Answer(101, headers={"Upgrade": "websocket", "Connection": "Upgrade"}, takeover=hold)

    # -- the API -----------------------------------------------------------------------------------------------

    def _api(self, request: Request, path: str) -> Answer:
        control = self._control
        if not control.api_ready():
            return API_NOT_READY
        if request.subject is None:
            return UNAUTHORIZED
        name, groups = request.subject
        if path in ("/readyz", "/livez", "/healthz"):
            return Answer(200, b"ok")
        if path == "/version":
            return json_answer(version_document())
        if path == "/api":
            return json_answer(
                {"kind": "APIVersions", "versions": ["v1"], "serverAddress": f"k3s {MARK} {KUBELET_VERSION}"}
            )
        if path == "/api/v1/nodes" or path.startswith("/api/v1/nodes/"):
            node = unquote(path.removeprefix("/api/v1/nodes").strip("/"))
            if MASTERS not in groups and not (name.startswith("system:node:") and self._own(request, name, node)):
                return status(403, "Forbidden", f'nodes is forbidden: User "{name}" cannot use nodes')
            answer = self._nodes(request, node)
            return Answer(answer.code, answer.body, answer.content_type, {**answer.headers, "Warning": WARNING})
        return NOT_FOUND

    @staticmethod
    def _own(request: Request, name: str, node: str) -> bool:
        """Whether a kubelet speaks of its own node."""
        own = name.removeprefix("system:node:")
        if request.method == "POST" and not node:
            return bool(json.loads(request.body)["metadata"]["name"] == own)
        return node.removesuffix("/status") == own and request.method in ("GET", "PUT", "PATCH")

    def _nodes(self, request: Request, node: str) -> Answer:
        nodes = self._control.nodes
        missing = status(404, "NotFound", f'nodes "{node.removesuffix("/status")}" not found')
        match request.method, node:
            case "GET", "":
                return json_answer(nodes.node_list())
            case "POST", "":
                return json_answer(nodes.register(json.loads(request.body)), 201)
            case "GET", _:
                found = nodes.get(node)
                return json_answer(found) if found else missing
            case "PUT" | "PATCH", _ if node.endswith("/status"):
                alive = nodes.heartbeat(node.removesuffix("/status"), json.loads(request.body)["status"]["conditions"])
                return json_answer({"kind": "Status", "apiVersion": "v1", "status": "Success"}) if alive else missing
            case "DELETE", _:
                if not nodes.delete(node):
                    return missing
                if self._control.membership:
                    self._control.membership.remove_node(node)
                return json_answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
        return NOT_ALLOWED
