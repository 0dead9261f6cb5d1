"""What servers and agents have in common as nodes: their password, the kubelet's port, flannel's files and refusals."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from provider_kairos.lab.k3s import facts, files, https, kubelet, tokens
from provider_kairos.lab.k3s.arguments import Options
from provider_kairos.lab.k3s.control import Folders, first_hosts
from provider_kairos.lab.k3s.life import Fatal, Life, Shutdown

__all__ = [
    "FLANNEL_BACKENDS",
    "NETWORK_POLICY_AT",
    "NODE_REJECTED",
    "check_flannel_interface",
    "check_network_policy",
    "node_password",
    "standin_etc",
    "start_kubelet_port",
    "token_from",
    "warn_of_missing_addresses",
    "write_flannel",
]

log = logging.getLogger(__name__)

FLANNEL_BACKENDS = frozenset({"none", "vxlan", "host-gw", "wireguard-native"})
NETWORK_POLICY_AT = 15.0
NODE_REJECTED = (
    "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server "
    "node-passwd entry, try enabling a unique node name with the --with-node-id flag"
)


def standin_etc(environment: Mapping[str, str]) -> Path:
    """The folder that stands for ``/etc/rancher``."""
    return Path(environment.get("K3S_STANDIN_ETC") or "/etc/rancher")


def token_from(options: Options, name: str, life: Life, *, wait: bool) -> str:
    """The value of ``--<name>`` or of the file in ``--<name>-file``.

    Raises:
        Fatal: the file does not exist, unless ``wait``.
    """
    given = options.text(name).strip()
    path = options.text(f"{name}-file")
    if given or not path:
        return given
    while not Path(path).is_file():
        if not wait:
            raise Fatal(f"Error: open {path}: no such file or directory")
        log.info("Waiting for %s to be available", path)
        life.sleep(2.0)
    return Path(path).read_text("utf-8").strip()


def node_password(etc: Path) -> str:
    """This machine's node password: made once, 0600, 32 hex digits and a newline."""
    path = etc / "node" / "password"
    known = files.read(path).strip()
    if not known:
        known = tokens.new_password()
        files.folder(path.parent, 0o755)
        files.write(path, f"{known}\n")
    return known


def start_kubelet_port(options: Options, folders: Folders) -> None:
    """10250: TLS, and nobody is let in. A port that is taken is logged, as it is no reason to end here."""
    context = https.server_context(folders.agent / "serving-kubelet.crt", folders.agent / "serving-kubelet.key")
    try:
        https.listen_on(
            ["0.0.0.0"], kubelet.kubelet_port(options), context, lambda _: https.Answer(401, b"Unauthorized")
        )
    except Fatal as error:
        log.error("Failed to listen and serve: %s", error)  # noqa: TRY400 - the trace says nothing


def warn_of_missing_addresses(addresses: list[str]) -> None:
    """The kubelet's complaint about a node address that no interface has; k3s goes on."""
    for address in addresses:
        if not facts.address_is_here(address):
            log.error('failed to validate nodeIP: node IP: "%s" not found in the host\'s network interfaces', address)


def check_flannel_interface(options: Options) -> None:
    """Flannel's start on an interface that has gone away meanwhile ends k3s with status 0."""
    interface = options.text("flannel-iface")
    if interface and not facts.interface_exists(interface):
        raise Shutdown(
            "flannel exited: failed to register flannel network: failed to create vxlan device: no such device"
        )


def check_network_policy(options: Options, address: str) -> None:
    """The network policy controller needs the interface of the node's address when it starts."""
    interface = options.text("flannel-iface")
    if not facts.address_is_here(address) or (interface and not facts.interface_exists(interface)):
        raise Shutdown(
            "failed to start networking: unable to initialize network policy controller: "
            "error getting node subnet: failed to find interface with specified node ip"
        )


def write_flannel(folders: Folders, backend: str, network: str, subnet: str, interface: str) -> None:
    """What flannel leaves behind: CNI file, settings, and ``subnet.env`` with the MTU (50 less for vxlan)."""
    cni = {"name": "cbr0", "cniVersion": "1.0.0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}
    files.write(folders.agent / "etc" / "cni" / "net.d" / "10-flannel.conflist", json.dumps(cni, indent=2) + "\n")
    conf = {"Network": network, "EnableIPv6": False, "EnableIPv4": True, "Backend": {"Type": backend}}
    files.write(folders.agent / "etc" / "flannel" / "net-conf.json", json.dumps(conf, indent=2) + "\n")
    mtu = (facts.interface_mtu(interface) if interface else 1500) - (50 if backend == "vxlan" else 0)
    gateway = first_hosts((subnet,), 1)[0] + "/" + subnet.partition("/")[2] if subnet else ""
    run = Path(os.environ.get("K3S_STANDIN_RUN") or "/run") / "flannel" / "subnet.env"
    text = f"FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={gateway}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n"
    try:
        files.folder(run.parent, 0o755)
        files.write(run, text, 0o644)
    except OSError as error:
        log.warning("Cannot write %s: %s", run, error)
