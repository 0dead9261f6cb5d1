"""``k3s agent``: how it joins, in order, and how it goes on trying (k3s notes, sections 4 and 5)."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provider_kairos.lab.k3s import MARK, VERSION, facts, files, kubelet, node, pki, tokens
from provider_kairos.lab.k3s.arguments import Options
from provider_kairos.lab.k3s.balancer import Balancer
from provider_kairos.lab.k3s.client import Client, HttpError, RequestError, basic_header, context_for
from provider_kairos.lab.k3s.control import Folders
from provider_kairos.lab.k3s.join import ServerUrl
from provider_kairos.lab.k3s.life import Fatal, Life, Shutdown

__all__ = ["Agent", "run"]

log = logging.getLogger(__name__)

WAITING = "Waiting to retrieve agent configuration; server is not ready: "
RETRY_CONNECT = 2.0
# How often a server that is not ready yet is asked again was not recorded.
RETRY_READY = 3.0
RETRY_CONFIG = 8.5
RETRY_PASSWORD = 6.0
REFRESH = 5.0
READY_AT = 3.6
NOTIFY_AT = 5.0


class Agent:
    """One run of ``k3s agent``."""

    def __init__(self, options: Options, life: Life, environment: Mapping[str, str]) -> None:
        self.options = options
        self.life = life
        self.environment = environment
        self.folders = Folders(Path(options.text("data-dir")), node.standin_etc(environment))
        self.token = tokens.JoinToken.parse(node.token_from(options, "token", life, wait=True))
        if not self.token.password:
            raise Fatal("Error: --token is required")
        if not options.text("server"):
            raise Fatal("Error: --server is required")
        self.url = ServerUrl(options.text("server"))
        self.addresses = facts.node_addresses(options.lists.get("node-ip", ()), options.text("flannel-iface"))
        self.name = facts.node_name(options.text("node-name"), self.folders.etc, with_id=options.on("with-node-id"))
        self.port = options.number("lb-server-port")
        self.local = f"127.0.0.1:{self.port}"
        self.ready = False
        self._tunnels: set[str] = set()

    # -- the join, in the order of section 4.1 -------------------------------------------------------------------

    def run(self) -> None:
        """From exec to the end; raises how it ends."""
        log.info("Starting k3s agent %s (%s)", VERSION, MARK)
        log.warning("This is the k3s %s of a test lab: no containers, no pods, no overlay network", MARK)
        self.life.until(0.4)
        path = self.folders.agent / "etc" / "k3s-agent-load-balancer.json"
        self.balancer = Balancer(path, self.url.text, self.url.target, self.port)
        self.balancer.start()
        self.ca = self.validate()
        trusted = context_for(self.ca)
        self.supervisor = Client(self.local, trusted, basic_header("node", self.token.password))
        self.config = self.fetch_config()
        self.fetch_certificates()
        self.life.sleep(0.7)
        self.wait_for_api()
        start = self.life.age() - 1.5
        self.update_servers()
        self.life.until(start + 2.9)
        self.register()
        self.life.until(start + READY_AT)
        self.network()
        self.ready = True
        self.heartbeat()
        self.life.spawn("kubelet", lambda: kubelet.beat(self.life, self.heartbeat))
        self.life.spawn("servers", self.refresh)
        self.life.until(start + NOTIFY_AT)
        facts.notify_ready()
        if not self.config.get("DisableNPC") and self.config.get("FlannelBackend") != "none":
            self.life.until(start + node.NETWORK_POLICY_AT)
            node.check_network_policy(self.options, self.addresses[0])
        self.life.forever()

    def validate(self) -> bytes:
        """The authority of the cluster, when it is the one that the token names; tries for ever."""
        scheme = "https" if self.url.https else self.url.scheme
        local = f"{scheme}://{self.local}"
        prefix = f"Failed to validate connection to cluster at {local}: "
        anybody = Client(self.local, context_for(None))
        while True:
            if not self.url.https:
                log.error("%sonly https:// URLs are supported, invalid scheme: %s", prefix, local)
            else:
                try:
                    ca = anybody.get("/cacerts").body
                    tokens.check_ca(self.token, ca)
                    context_for(ca)
                except (RequestError, HttpError) as error:
                    log.error("%sfailed to get CA certs: %s", prefix, error)  # noqa: TRY400 - no trace in k3s' log
                except tokens.CaMismatch as error:
                    log.error("%s%s", prefix, error)  # noqa: TRY400
                except (OSError, ValueError) as error:
                    log.error("%sno authority in the answer: %s", prefix, error)  # noqa: TRY400
                else:
                    if not self.token.full:
                        log.warning(
                            "Cluster CA certificate is not trusted by the host CA bundle, but the token does not "
                            "include a CA hash. Use the full token from the server's node-token file to enable "
                            "Cluster CA validation."
                        )
                    return ca
            self.life.sleep(RETRY_CONNECT)

    def fetch_config(self) -> dict[str, Any]:
        """``/v1-k3s/config``; tries for ever."""
        while True:
            try:
                config: dict[str, Any] = self.supervisor.get("/v1-k3s/config").json()
            except HttpError as error:
                detail = error.detail if error.code == 401 else error
                log.info("%sfailed to retrieve configuration from server: %s", WAITING, detail)
                if error.code == 401:
                    self.life.sleep(RETRY_CONFIG - RETRY_READY)
            except (RequestError, ValueError) as error:
                log.info("%sfailed to retrieve configuration from server: %s", WAITING, error)
            else:
                return config
            self.life.sleep(RETRY_READY)

    def fetch_certificates(self) -> None:
        """Authorities, the node password, certificates for kubelet and controllers; tries for ever."""
        agent = self.folders.agent
        while True:
            serving = agent / "serving-kubelet"
            try:
                for name in ("client-ca", "server-ca"):
                    files.write(agent / f"{name}.crt", self.supervisor.get(f"/v1-k3s/{name}.crt").body, 0o644)
                headers = {
                    "k3s-Node-Name": self.name,
                    "k3s-Node-Password": node.node_password(self.folders.etc),
                    "k3s-Node-IP": ",".join(self.addresses),
                }
                for name in ("serving-kubelet", "client-kubelet"):
                    self._certificate(name, headers)
                for name in ("client-kube-proxy", "client-k3s-controller"):
                    self._certificate(name, {})
            except HttpError as error:
                if error.code == 403:
                    log.info("%s%s.crt: %s", WAITING, serving, node.NODE_REJECTED)
                    self.life.sleep(RETRY_PASSWORD - RETRY_READY)
                else:
                    log.info("%s%s", WAITING, error)
            except RequestError as error:
                log.info("%s%s", WAITING, error)
            else:
                return
            self.life.sleep(RETRY_READY)

    def _certificate(self, name: str, headers: Mapping[str, str]) -> None:
        path = self.folders.agent / f"{name}.key"
        key = path.read_bytes() if path.is_file() else pki.new_key()
        reply = self.supervisor.expect("POST", f"/v1-k3s/{name}.crt", pki.request_for(key), headers)
        pki.write_pair(path.with_suffix(""), reply.body, key)

    def _with_certificate(self, name: str, target: str) -> Client:
        stem = self.folders.agent / name
        pair = stem.with_suffix(".crt").read_bytes(), stem.with_suffix(".key").read_bytes()
        return Client(target, context_for(self.ca, *pair))

    def wait_for_api(self) -> None:
        """``/readyz`` as the controllers, then the supervisor's own."""
        controller = self._with_certificate("client-k3s-controller", self.local)
        steps = ((controller, "/readyz?timeout=15s&verbose="), (self.supervisor, "/v1-k3s/readyz"))
        for client, path in steps:
            while True:
                try:
                    client.get(path)
                    break
                except (HttpError, RequestError) as error:
                    log.info("Waiting for API server to become available: %s", error)
                self.life.sleep(2.0)

    # -- the node ------------------------------------------------------------------------------------------------

    def update_servers(self) -> None:
        """Ask who the servers are; tell the load balancer, and open a tunnel straight to each."""
        try:
            found = self.supervisor.get("/v1-k3s/apiservers").json()
        except (HttpError, RequestError, ValueError) as error:
            log.debug("Cannot fetch the list of API servers: %s", error)
            return
        addresses = [str(address) for address in found]
        self.balancer.update(addresses)
        for address in addresses:
            if address not in self._tunnels:
                self._tunnels.add(address)
                threading.Thread(target=self._tunnel, args=(address,), daemon=True).start()

    def refresh(self) -> None:
        """Follow the list of servers until the end."""
        while self.life.pause(REFRESH):
            self.update_servers()

    def _tunnel(self, address: str) -> None:
        """Hold ``/v1-k3s/connect`` to one server as long as it is one."""
        client = self._with_certificate("client-kubelet", address)
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        while address in self.balancer.servers:
            log.info('Connecting to proxy: url="wss://%s/v1-k3s/connect"', address)
            try:
                with client.open_stream("/v1-k3s/connect", headers) as stream:
                    stream.settimeout(None)
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    log.info('Remotedialer connected to proxy: url="wss://%s/v1-k3s/connect"', address)
                    while stream.recv(4096):
                        pass
                log.info("Remotedialer proxy closed: %s", address)
            except (RequestError, HttpError, OSError) as error:
                log.info("Failed to connect to proxy: %s", error)
            if not self.life.pause(REFRESH):
                return
        self._tunnels.discard(address)

    def register(self) -> None:
        """Make the Node through the load balancer; tries for ever."""
        backend = str(self.config.get("FlannelBackend", "vxlan"))
        extra = {"flannel.alpha.coreos.com/backend-type": backend}
        made = kubelet.node_object(self.options, self.name, self.addresses, self.environment, extra)
        if not facts.valid_node_name(self.name):
            log.error("Unable to register node with API server: invalid name %r", self.name)
            self.life.forever()
        self.api = self._with_certificate("client-kubelet", self.local)
        while True:
            try:
                answer = self.api.expect("POST", "/api/v1/nodes", json.dumps(made).encode())
                self.subnet = str(answer.json()["spec"]["podCIDR"])
                break
            except (HttpError, RequestError) as error:
                log.error("Unable to register node with API server: %s", error)  # noqa: TRY400
            self.life.sleep(2.0)
        node.start_kubelet_port(self.options, self.folders)

    def network(self) -> None:
        """Flannel, with the servers' settings."""
        backend = str(self.config.get("FlannelBackend", "vxlan"))
        if backend not in node.FLANNEL_BACKENDS:
            raise Shutdown(f"failed to start networking: Cannot configure unknown flannel backend '{backend}'")
        node.check_flannel_interface(self.options)
        if backend != "none":
            ranges = self.config.get("ClusterIPRange") or {"IP": "10.42.0.0", "Mask": "//8AAA=="}
            bits = int.from_bytes(base64.b64decode(ranges["Mask"]), "big").bit_count()
            interface = self.options.text("flannel-iface")
            node.write_flannel(self.folders, backend, f"{ranges['IP']}/{bits}", self.subnet, interface)

    def heartbeat(self) -> None:
        """The kubelet's sign of life through the load balancer."""
        node.warn_of_missing_addresses(self.addresses)
        body = json.dumps({"status": {"conditions": kubelet.conditions(ready=self.ready)}}).encode()
        try:
            self.api.expect("PATCH", f"/api/v1/nodes/{self.name}/status", body)
        except HttpError as error:
            log.error("Error updating node status, will retry: %s", error.detail)  # noqa: TRY400
        except RequestError as error:
            log.error("Error updating node status, will retry: %s", error)  # noqa: TRY400


def run(options: Options, life: Life) -> None:
    """Run ``k3s agent`` until it ends; raises how."""
    Agent(options, life, dict(os.environ)).run()
