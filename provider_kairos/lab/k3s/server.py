"""``k3s server``: the order of events, and when it refuses (k3s notes, sections 3, 6, 7 and 8).

The moments are those that were recorded, in seconds after the start, divided by the speed of :class:`~.life.Life`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from provider_kairos.lab.k3s import MARK, VERSION, facts, files, https, kubelet, node, pki, tokens
from provider_kairos.lab.k3s.arguments import Options
from provider_kairos.lab.k3s.client import Client, basic_header, context_for
from provider_kairos.lab.k3s.cluster import Membership, new_member_name
from provider_kairos.lab.k3s.control import Control, Folders, control_config
from provider_kairos.lab.k3s.join import ServerUrl, fetch_bootstrap, join_members
from provider_kairos.lab.k3s.life import Fatal, Life, Shutdown
from provider_kairos.lab.k3s.nodeapi import NodeApi
from provider_kairos.lab.k3s.routes import Routes
from provider_kairos.lab.k3s.store import Store

__all__ = ["Server", "run"]

log = logging.getLogger(__name__)

DRIVERS = frozenset({"mysql", "postgres", "postgresql", "http", "https", "nats", "etcd"})
LOCK_TIMEOUT = 30.0
PROMOTION = 8.0
OTHER_TOKEN = "bootstrap data already found and encrypted with different token"  # noqa: S105 - a text about tokens


def _check_datastore(endpoint: str) -> None:
    """Refuse a datastore that k3s would refuse, and say honestly that the others are not imitated."""
    prefix = "Error: preparing server: failed to bootstrap cluster data: creating storage endpoint: "
    scheme, separator, rest = endpoint.partition("://")
    if scheme == "sqlite" or not endpoint:
        return
    if not separator or scheme not in DRIVERS:
        raise Fatal(f"{prefix}failed to create driver for configured endpoint: unknown driver")
    place = rest.rpartition("@")[2]
    place = place.removeprefix("tcp(").partition(")")[0] if "tcp(" in place else place
    parts = urlsplit(f"//{place.partition(',')[0]}")
    port = parts.port or {"mysql": 3306, "postgres": 5432, "postgresql": 5432, "nats": 4222}.get(scheme, 2379)
    target = f"{parts.hostname or '127.0.0.1'}:{port}"
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", port), timeout=3).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Fatal(
            f"{prefix}failed to create driver for configured endpoint: dial tcp {target}: connect: {reason}"
        ) from error
    raise Fatal(f"Error: preparing server: this is the k3s {MARK}: it knows sqlite and its own clustering only")


class Server:
    """One run of ``k3s server``."""

    def __init__(self, options: Options, life: Life, environment: Mapping[str, str]) -> None:
        self.options = options
        self.life = life
        self.environment = environment
        self.folders = Folders(Path(options.text("data-dir")), node.standin_etc(environment))
        self.listeners: list[https.Listener] = []

    # -- before anything is written --------------------------------------------------------------------------

    def check(self) -> None:
        """What k3s refuses at once."""
        options = self.options
        self.addresses = facts.node_addresses(options.lists.get("node-ip", ()), options.text("flannel-iface"))
        self.settings = control_config(options)
        if options.text("bind-address"):
            try:
                ipaddress.ip_address(options.text("bind-address"))
            except ValueError as error:
                raise Fatal(
                    f"Error: invalid bind-address: invalid ip format '{options.text('bind-address')}'"
                ) from error
        self.name = facts.node_name(options.text("node-name"), self.folders.etc, with_id=options.on("with-node-id"))
        _check_datastore(options.text("datastore-endpoint"))
        self.token = tokens.JoinToken.parse(node.token_from(options, "token", self.life, wait=False))
        self.agent_token = tokens.JoinToken.parse(node.token_from(options, "agent-token", self.life, wait=False))

    def choose_passwords(self) -> tuple[str, str]:
        """Server and agent password: given, else remembered, else new."""
        password = self.token.password
        if not password:
            remembered = files.read(self.folders.token).strip()
            password = tokens.JoinToken.parse(remembered).password
        if not password:
            password = files.read(self.folders.passwords).strip().rpartition("\n")[2].partition(",")[0]
        password = password or tokens.new_password()
        return password, self.agent_token.password or password

    # -- stores ------------------------------------------------------------------------------------------------

    def member_name(self) -> str:
        """The name in ``db/etcd/name``; made and kept when there is none."""
        path = self.folders.etcd / "name"
        name = files.read(path).strip()
        if not name:
            name = new_member_name(self.name)
            files.write(path, name)
        return name

    def is_member(self) -> bool:
        """Whether this data directory belongs to a member that finished joining."""
        if not self.folders.etcd_store.is_file():
            return False
        store = Store(self.folders.etcd_store)
        try:
            return store.get(f"members/{files.read(self.folders.etcd / 'name').strip()}") is not None
        finally:
            store.close()

    def forget_tombstone(self) -> None:
        """A member that was removed starts anew."""
        if (self.folders.etcd / "tombstone").exists():
            log.warning("tombstone file has been detected, removing data dir to rejoin the cluster")
            self.folders.etcd_store.unlink(missing_ok=True)
            (self.folders.etcd / "name").unlink(missing_ok=True)
            (self.folders.etcd / "tombstone").unlink(missing_ok=True)

    def check_bootstrap(self, store: Store, password: str, *, etcd: bool) -> None:
        """Refuse another token than that of the first start; wait for a lock that a killed first start left."""
        known = store.get("local/bootstrap")
        if known is None:
            if store.get("local/lock") and not etcd:
                deadline = time.monotonic() + LOCK_TIMEOUT / self.life.speed
                while time.monotonic() < deadline:
                    log.info("Bootstrap key is locked - waiting for data to be populated by another server")
                    self.life.sleep(5.0)
                log.info("Bootstrap key lock timed out - deleting lock and retrying")
            store.put("local/lock", {"at": time.time_ns()})
            return
        if not tokens.password_matches(password, known["password"]):
            if etcd:
                raise Fatal(f"Failed to reconcile with temporary etcd: {OTHER_TOKEN}")
            raise Fatal(f"Error: preparing server: failed to bootstrap cluster data: {OTHER_TOKEN}")

    def open_control(self) -> Control:
        """Find out which kind of server this is, and open its store; joins when it has to."""
        options, folders = self.options, self.folders
        files.folder(folders.server)
        self.forget_tombstone()
        member = self.is_member()
        joining = bool(options.text("server") and self.token.password) and not member
        etcd = member or joining or (options.on("cluster-init") and not options.text("datastore-endpoint"))
        password, agent_password = self.choose_passwords()
        self.restarted = member or folders.token.exists()
        if joining:
            url = ServerUrl(options.text("server"))
            fetch_bootstrap(self.life, url, self.token, agent_password, folders.tls, ours=self.settings)
        elif etcd and not member and folders.sqlite.is_file():
            log.info("Migrating content from sqlite to etcd")
            Store(folders.sqlite).close()  # lets SQLite finish what a kill interrupted
            Store.move(folders.sqlite, folders.etcd_store)
        store = Store(folders.etcd_store if etcd else folders.sqlite)
        if not etcd:
            files.write(folders.etcd / "name", files.read(folders.etcd / "name") or new_member_name(self.name))
        self.check_bootstrap(store, password, etcd=etcd)
        nodes = NodeApi(store, options.items("cluster-cidr")[0], self.life.speed)
        control = Control(
            options, folders, self.life, self.name, self.addresses, password, agent_password, store, nodes
        )
        control.write_authorities()
        if etcd:
            control.membership = Membership(
                self.member_name(), store, nodes, self.life, password=password, ca=control.ca
            )
        self.joining = joining
        return control

    # -- the run -----------------------------------------------------------------------------------------------

    def listen(self, control: Control) -> None:
        """Open the ports of section 3.4 that matter: 6443 and, on the loopback, the API server's own."""
        tls = self.folders.tls
        context = https.server_context(
            tls / "serving-kube-apiserver.crt", tls / "serving-kube-apiserver.key", tls / "client-ca.crt"
        )
        routes = Routes(control)
        bind = self.options.text("bind-address") or "0.0.0.0"
        addresses = [bind] if bind in ("0.0.0.0", "::") else list(dict.fromkeys([bind, "127.0.0.1", "::1"]))
        self.listeners = https.listen_on(addresses, control.port, context, routes)
        self.listeners += https.listen_on(["127.0.0.1"], control.port + 1, context, routes)

    def run(self) -> None:
        """From exec to the end; returns never, raises how it ends."""
        log.info("Starting k3s %s (%s)", VERSION, MARK)
        log.warning("This is the k3s %s of a test lab: no containers, no pods, no overlay network", MARK)
        self.check()
        self.life.until(0.15)
        control = self.control = self.open_control()
        self.life.sleep(0.15)
        control.write_passwords()
        self.listen(control)
        start = self.life.age() - 0.4  # joining or a lock took time of its own; the rest follows from here
        self.life.until(start + 0.7)
        self.prepare_agent(control)
        self.life.until(start + 1.1)
        if control.store.get("local/bootstrap") is None:
            control.store.put("local/bootstrap", {"password": tokens.password_hash(control.password)})
        control.core = True
        self.life.until(start + 1.3)
        control.write_tokens()
        control.write_kubeconfig()
        self.etcd_member(control)
        if self.joining or control.membership is not None:
            start = max(start, self.life.age() - 1.5)
        scale = 0.7 if self.restarted else 1.0
        self.life.until(start + 2.5 * scale)
        control.api = True
        self.wait_for_quorum(control)
        self.life.spawn("controllers", lambda: self.control_loop(control))
        self.life.until(start + 2.8 * scale)
        self.register(control)
        self.life.until(start + 5.3 * scale)
        control.runtime = True
        log.info("k3s is up and running")
        facts.notify_ready()
        self.life.until(start + 5.8 * scale)
        self.network(control)
        self.life.until(start + 6.1 * scale)
        self.manifests()
        self.life.until(start + 7.0 * scale)
        control.nodes.label(self.name, self.roles(control))
        self.ready = True
        self.heartbeat(control)
        self.life.spawn("kubelet", lambda: kubelet.beat(self.life, lambda: self.heartbeat(control)))
        if not self.options.on("disable-network-policy") and self.options.text("flannel-backend") != "none":
            self.life.until(max(start + node.NETWORK_POLICY_AT, self.life.age()))
            node.check_network_policy(self.options, self.addresses[0])
        self.life.forever()

    ready = False

    def etcd_member(self, control: Control) -> None:
        """Found, join or resume the cluster of servers; a learner is promoted after some seconds."""
        membership = control.membership
        if membership is None:
            return
        if self.options.on("cluster-reset"):
            self.reset(control, membership)
        record = membership.me()
        if record is None and self.joining:
            url = ServerUrl(self.options.text("server"))
            client = Client(url.target, context_for(control.ca), basic_header("server", control.password))
            wanted = {
                "name": membership.name,
                "node": self.name,
                "address": control.advertised,
                "ip": self.addresses[0],
            }
            join_members(self.life, client, control.store, wanted)
        elif record is None:
            membership.found(self.name, control.advertised, self.addresses[0])
        elif record["ip"] != self.addresses[0]:
            while True:
                log.info(
                    "Failed to test etcd connection: this server is a not a member of the etcd cluster. "
                    "Found [%s=https://%s:2380], expect: %s=https://%s:2380",
                    membership.name, record["ip"], membership.name, self.addresses[0],
                )  # fmt: skip
                self.life.sleep(5.0)
        membership.start()
        current = membership.me()
        if current and current["learner"]:
            self.life.sleep(PROMOTION)
            membership.promote()

    def reset(self, control: Control, membership: Membership) -> None:
        """``--cluster-reset``: this server alone is the cluster; ends with status 0."""
        for name in membership.members():
            control.store.delete(f"members/{name}")
        membership.found(self.name, control.advertised, self.addresses[0])
        raise Shutdown(
            "Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. "
            "Backup and delete ${datadir}/server/db on each peer etcd server and rejoin the nodes"
        )

    def wait_for_quorum(self, control: Control) -> None:
        """A member alone of three never gets ready, and does not exit."""
        while not control.api_ready():
            log.debug("apiserver not ready: no quorum")
            if control.membership:
                control.membership.refresh()
            self.life.sleep(0.5)

    def control_loop(self, control: Control) -> None:
        """Node controller and membership, every few seconds until the end."""
        removed = False
        while self.life.pause(2.0):
            membership = control.membership
            if membership is not None and not removed and membership.me() is None:
                removed = True
                files.write(self.folders.etcd / "tombstone", "")
                log.error("This node has been removed from the cluster - please restart k3s to rejoin the cluster")
            if membership is not None and not removed:
                membership.watch()
                if not membership.quorum():
                    continue
            for name in control.nodes.judge(time.monotonic()):
                log.info("Node %s is not ready any more: its kubelet stopped posting node status", name)

    def prepare_agent(self, control: Control) -> None:
        """The agent's files of a server, and this machine's node password."""
        folders = self.folders
        for name in ("server-ca", "client-ca"):
            files.write(folders.agent / f"{name}.crt", control.authorities[name].certificate, 0o644)
        self.node_password = node.node_password(folders.etc)
        self.kubelet_files(control)

    def kubelet_files(self, control: Control) -> None:
        """Kubelet certificates and its port."""
        stem = self.folders.agent / "serving-kubelet"
        key = pki.new_key()
        names = [self.name, "127.0.0.1", "localhost", *self.addresses]
        pki.write_pair(stem, pki.issue(control.authorities["server-ca"], key, self.name, "", names), key)
        key = pki.new_key()
        certificate = pki.issue(control.authorities["client-ca"], key, f"system:node:{self.name}", "system:nodes")
        pki.write_pair(self.folders.agent / "client-kubelet", certificate, key)

    def register(self, control: Control) -> None:
        """The kubelet: its flags, its password, its Node, its port."""
        if not facts.valid_node_name(self.name):
            log.error("Unable to register node with API server: invalid name %r", self.name)
            self.life.forever()
        extra = {"flannel.alpha.coreos.com/backend-type": self.options.text("flannel-backend")}
        if control.membership is not None:
            extra["etcd.k3s.cattle.io/node-address"] = self.addresses[0]
            extra["etcd.k3s.cattle.io/node-name"] = control.membership.name
        made = self.made = kubelet.node_object(self.options, self.name, self.addresses, self.environment, extra)
        while not control.nodes.check_password(self.name, self.node_password):
            log.error(
                "Waiting to retrieve agent configuration; server is not ready: %s: %s",
                self.folders.agent / "serving-kubelet.crt",
                node.NODE_REJECTED,
            )
            self.life.sleep(6.0)
        control.nodes.register(made)
        self.life.sleep(0.2)
        node.start_kubelet_port(self.options, self.folders)

    def roles(self, control: Control) -> dict[str, str]:
        """The labels that the control plane sets."""
        labels = {"node-role.kubernetes.io/control-plane": "true"}
        if control.membership is not None:
            labels["node-role.kubernetes.io/etcd"] = "true"
        return labels

    def network(self, control: Control) -> None:
        """Flannel: refuses what it cannot do, leaves its files."""
        backend = self.options.text("flannel-backend")
        if backend not in node.FLANNEL_BACKENDS:
            raise Shutdown(f"failed to start networking: Cannot configure unknown flannel backend '{backend}'")
        node.check_flannel_interface(self.options)
        if backend != "none":
            subnet = (control.nodes.get(self.name) or {}).get("spec", {}).get("podCIDR", "")
            network = self.options.items("cluster-cidr")[0]
            node.write_flannel(self.folders, backend, network, subnet, self.options.text("flannel-iface"))

    def manifests(self) -> None:
        """The packaged components that k3s would deploy: their file names only."""
        disabled = set(self.options.items("disable"))
        folder = files.folder(self.folders.server / "manifests")
        for name, part in (("coredns", "coredns"), ("local-storage", "local-storage"), ("traefik", "traefik")):
            path = folder / f"{name}.yaml"
            if part in disabled:
                path.unlink(missing_ok=True)
            else:
                files.write(path, f"# k3s {MARK}: nothing is deployed\n")

    def heartbeat(self, control: Control) -> None:
        """The kubelet's sign of life; a server with no quorum cannot take it."""
        if not control.api_ready():
            return
        node.warn_of_missing_addresses(self.addresses)
        voter = None
        if control.membership is not None:
            record: dict[str, Any] = control.membership.me() or {"learner": True}
            voter = not record["learner"]
        if not control.nodes.heartbeat(self.name, kubelet.conditions(ready=self.ready, voter=voter)):
            log.error('Error updating node status, will retry: nodes "%s" not found', self.name)
            if control.membership is not None and control.nodes.check_password(self.name, self.node_password):
                control.nodes.register(self.made)  # as k3s: a removed member's kubelet comes back through the others


def run(options: Options, life: Life) -> None:
    """Run ``k3s server`` until it ends; raises how."""
    Server(options, life, dict(os.environ)).run()
