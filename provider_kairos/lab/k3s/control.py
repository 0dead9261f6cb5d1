"""What one server holds: folders, authorities, passwords, phases, and the files it writes (k3s notes, 3.1 to 3.3).

The order in which these steps happen is ``server``'s business; what the port answers is ``routes``'.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from provider_kairos.lab.k3s import files, pki, tokens
from provider_kairos.lab.k3s.arguments import Options
from provider_kairos.lab.k3s.cluster import Membership
from provider_kairos.lab.k3s.life import Fatal, Life
from provider_kairos.lab.k3s.nodeapi import NodeApi
from provider_kairos.lab.k3s.store import Store

__all__ = ["Control", "Folders", "admin_pair", "control_config", "first_hosts"]

log = logging.getLogger(__name__)

CREDENTIALS = ("admin", "supervisor", "controller", "scheduler", "kube-apiserver", "kube-proxy", "k3s-controller")
ADMIN = ("system:admin", "system:masters")


@dataclass(frozen=True, slots=True)
class Folders:
    """Where things are, below ``--data-dir`` and ``/etc/rancher``."""

    data: Path
    etc: Path

    @property
    def server(self) -> Path:
        """``server``, 0700."""
        return self.data / "server"

    @property
    def tls(self) -> Path:
        """``server/tls``."""
        return self.server / "tls"

    @property
    def agent(self) -> Path:
        """``agent``, 0700."""
        return self.data / "agent"

    @property
    def sqlite(self) -> Path:
        """The store of a single server."""
        return self.server / "db" / "state.db"

    @property
    def etcd(self) -> Path:
        """The folder of a cluster of servers."""
        return self.server / "db" / "etcd"

    @property
    def etcd_store(self) -> Path:
        """The store inside :attr:`etcd`."""
        return self.etcd / "member" / "snap" / "db"

    @property
    def token(self) -> Path:
        """The file with the server token."""
        return self.server / "token"

    @property
    def passwords(self) -> Path:
        """``cred/passwd``."""
        return self.server / "cred" / "passwd"


def first_hosts(cidrs: tuple[str, ...], number: int) -> list[str]:
    """The ``number``-th address of each network: 1 is the kubernetes service, 10 the cluster's DNS.

    Raises:
        Fatal: one of them is no network.
    """
    found = []
    for cidr in cidrs:
        try:
            found.append(str(ipaddress.ip_network(cidr, strict=False)[number]))
        except (ValueError, IndexError) as error:
            raise Fatal(f"Error: invalid CIDR address: {cidr}") from error
    return found


def _network(cidr: str) -> dict[str, str]:
    network = ipaddress.ip_network(cidr, strict=False)
    return {"IP": str(network.network_address), "Mask": base64.b64encode(network.netmask.packed).decode()}


def control_config(options: Options) -> dict[str, object]:
    """What ``/v1-k3s/config`` says of a server's settings; joining servers compare the critical ones."""
    clusters, services = options.items("cluster-cidr"), options.items("service-cidr")
    dns = list(options.items("cluster-dns")) or first_hosts(services, 10)
    first_hosts(clusters, 1)
    return {
        "StandIn": True,
        "AdvertisePort": options.number("advertise-port") or options.number("https-listen-port"),
        "ClusterDNS": dns[0],
        "ClusterDNSs": dns,
        "ClusterDomain": options.text("cluster-domain"),
        "ClusterIPRange": _network(clusters[0]),
        "ClusterIPRanges": [_network(cidr) for cidr in clusters],
        "ServiceIPRange": _network(services[0]),
        "ServiceIPRanges": [_network(cidr) for cidr in services],
        "ServiceNodePortRange": options.text("service-node-port-range"),
        "FlannelBackend": options.text("flannel-backend"),
        "FlannelIPv6Masq": options.on("flannel-ipv6-masq"),
        "FlannelExternalIP": options.on("flannel-external-ip"),
        "EgressSelectorMode": options.text("egress-selector-mode"),
        "DisableNPC": options.on("disable-network-policy"),
        "DisableKubeProxy": options.on("disable-kube-proxy"),
        "DisableHelmController": options.on("disable-helm-controller"),
        "EncryptSecrets": options.on("secrets-encryption"),
        "EmbeddedRegistry": options.on("embedded-registry"),
        "HTTPSPort": options.number("https-listen-port"),
        "APIServerPort": options.number("https-listen-port") + 1,
        "SupervisorPort": options.number("https-listen-port"),
        "SystemDefaultRegistry": options.text("system-default-registry"),
        "Disables": dict.fromkeys(options.items("disable"), True),
        "Skips": {},
    }


def admin_pair(folders: Folders) -> tuple[bytes, bytes]:
    """The administrator's certificate and key."""
    stem = folders.tls / "client-admin"
    return stem.with_suffix(".crt").read_bytes(), stem.with_suffix(".key").read_bytes()


@dataclass(slots=True)
class Control:
    """One running server. The phases only ever become true, ``api`` may be lost with the quorum."""

    options: Options
    folders: Folders
    life: Life
    name: str
    addresses: list[str]
    password: str = field(repr=False)
    agent_password: str = field(repr=False)
    store: Store
    nodes: NodeApi
    membership: Membership | None = None
    authorities: dict[str, pki.Authority] = field(default_factory=dict)
    core: bool = False
    api: bool = False
    runtime: bool = False

    @property
    def ca(self) -> bytes:
        """``server-ca.crt`` as it stands."""
        return self.authorities["server-ca"].certificate

    @property
    def port(self) -> int:
        """``--https-listen-port``."""
        return self.options.number("https-listen-port")

    @property
    def advertised(self) -> str:
        """``host:port`` under which this server is told to others."""
        host = self.options.text("advertise-address")
        host = host or next(iter(self.options.items("node-external-ip")), "") or self.addresses[0]
        host = f"[{host}]" if ":" in host else host
        return f"{host}:{self.options.number('advertise-port') or self.port}"

    def api_ready(self) -> bool:
        """Whether the API server answers, which a cluster of servers does only with a quorum."""
        return self.api and (self.membership is None or self.membership.quorum())

    def api_servers(self) -> list[str]:
        """The addresses of all servers that seem alive, this one first when it stands alone."""
        return self.membership.addresses() if self.membership else [self.advertised]

    # -- files, in the order of section 3.1 -------------------------------------------------------------------

    def write_authorities(self) -> None:
        """``server/tls``: authorities, the server's and its components' certificates; ``server/cred``: kubeconfigs."""
        folders = self.folders
        for path in (folders.server / "cred", folders.server / "db", folders.tls, folders.server / "etc"):
            files.folder(path)
        for name in pki.AUTHORITIES:
            self.authorities[name] = pki.Authority.load_or_create(folders.tls, name)
        self.write_serving()
        client = self.authorities["client-ca"]
        for name in CREDENTIALS:
            stem = folders.tls / f"client-{name}"
            if stem.with_suffix(".crt").is_file():
                continue
            subject = ADMIN if name in ("admin", "supervisor") else (f"system:{name}", "")
            key = pki.new_key()
            pki.write_pair(stem, pki.issue(client, key, *subject), key)
        for name in ("serving-kubelet", "client-kubelet", "service"):
            path = folders.tls / f"{name}.key"
            if not path.is_file():
                files.write(path, pki.new_key())
        local = f"https://127.0.0.1:{self.port + 1}"
        for name in ("admin", "supervisor", "controller", "scheduler"):
            pair = (folders.tls / f"client-{name}.crt").read_bytes(), (folders.tls / f"client-{name}.key").read_bytes()
            files.write(folders.server / "cred" / f"{name}.kubeconfig", pki.kubeconfig(local, self.ca, *pair))

    def write_serving(self) -> None:
        """The certificate of 6443 with the names of section 7."""
        domain = self.options.text("cluster-domain")
        names = [
            self.name,
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            f"kubernetes.default.svc.{domain}",
            "localhost",
            *self.addresses,
            *first_hosts(self.options.items("service-cidr"), 1),
            "127.0.0.1",
            "::1",
            self.options.text("advertise-address"),
            *self.options.items("node-external-ip"),
            *self.options.items("tls-san"),
        ]
        if self.options.text("bind-address") not in ("0.0.0.0", "::"):
            names.append(self.options.text("bind-address"))
        key = pki.new_key()
        certificate = pki.issue(self.authorities["server-ca"], key, "k3s", "k3s", names)
        pki.write_pair(self.folders.tls / "serving-kube-apiserver", certificate, key)
        files.write(self.folders.tls / "dynamic-cert.json", json.dumps({"names": sorted(set(filter(None, names)))}))

    def write_passwords(self) -> None:
        """``cred/passwd``: who the two basic users are."""
        files.write(
            self.folders.passwords,
            f"{self.agent_password},node,node,k3s:agent\n{self.password},server,server,k3s:server\n",
        )

    def write_tokens(self) -> None:
        """``server/token`` and its links; ``agent-token`` is a file of its own when there is one."""
        folders = self.folders
        files.write(folders.token, tokens.render(self.ca, "server", self.password) + "\n")
        files.link(folders.server / "node-token", folders.token.absolute())
        if self.agent_password != self.password:
            files.write(folders.server / "agent-token", tokens.render(self.ca, "node", self.agent_password) + "\n")
        else:
            files.link(folders.server / "agent-token", folders.token.absolute())

    def write_kubeconfig(self) -> None:
        """The administrator's kubeconfig; a mode that cannot be read leaves 0600 (section 1.2)."""
        bind = self.options.text("bind-address")
        host = "127.0.0.1" if bind in ("0.0.0.0", "::", "") else bind
        host = f"[{host}]" if ":" in host else host
        given = self.options.text("write-kubeconfig")
        path = Path(given) if given else self.folders.etc / "k3s" / "k3s.yaml"
        files.folder(path.parent, 0o755)
        text = pki.kubeconfig(f"https://{host}:{self.port}", self.ca, *admin_pair(self.folders))
        files.write(path, text)
        mode = self.options.text("write-kubeconfig-mode")
        if mode:
            try:
                path.chmod(int(mode, 8))
            except (ValueError, OSError):
                log.exception("Failed to set %s to mode %s", path, mode)
        log.info("Wrote kubeconfig %s", path)
        log.info("Run: k3s kubectl")
        log.info("To join agent node to cluster: k3s agent -s https://%s -t ${AGENT_NODE_TOKEN}", self.advertised)
