"""What the program asks of its machine: names, addresses, interfaces, and systemd's socket (k3s notes, sections 3.6 and 7)."""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import re
import secrets
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from provider_kairos.lab.k3s import files
from provider_kairos.lab.k3s.life import Fatal

__all__ = [
    "address_is_here",
    "default_address",
    "interface_address",
    "interface_exists",
    "interface_mtu",
    "node_addresses",
    "node_id",
    "node_name",
    "notify_ready",
    "parse_node_ips",
]

log = logging.getLogger(__name__)

SIOCGIFADDR = 0x8915
SIOCGIFMTU = 0x8921
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")


def _ioctl(request: int, name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return fcntl.ioctl(probe.fileno(), request, struct.pack("256s", name.encode()[:15]))


def interface_exists(name: str) -> bool:
    """Whether the machine has the interface ``name``."""
    return any(found == name for _, found in socket.if_nameindex())


def interface_address(name: str) -> str:
    """The first IPv4 address of ``name``, else its first global IPv6 address, else empty."""
    try:
        return socket.inet_ntoa(_ioctl(SIOCGIFADDR, name)[20:24])
    except OSError:
        pass  # no such interface, or no IPv4 address on it
    try:
        lines = Path("/proc/net/if_inet6").read_text("ascii").splitlines()
    except OSError:
        return ""
    for line in lines:
        number, _, _, scope, _, found = line.split()
        if found == name and scope == "00":
            return str(ipaddress.IPv6Address(bytes.fromhex(number)))
    return ""


def interface_mtu(name: str) -> int:
    """The MTU of ``name``; 1500 when it cannot be read."""
    try:
        return int(struct.unpack_from("i", _ioctl(SIOCGIFMTU, name), 16)[0])
    except OSError:
        return 1500


def address_is_here(address: str) -> bool:
    """Whether an interface of this machine has ``address``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def default_address() -> str:
    """The address of the interface that the default route uses.

    Raises:
        Fatal: there is no default route.
    """
    try:
        lines = Path("/proc/net/route").read_text("ascii").splitlines()[1:]
    except OSError:
        lines = []
    for line in lines:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000":
            address = interface_address(fields[0])
            if address:
                return address
    raise Fatal('Error: no default routes found in "/proc/net/route" or "/proc/net/ipv6_route"')


def parse_node_ips(texts: Sequence[str]) -> list[str]:
    """Check ``--node-ip`` values, comma lists included.

    Raises:
        Fatal: one of them is no address.
    """
    found = []
    for text in texts:
        for part in text.split(","):
            try:
                found.append(str(ipaddress.ip_address(part.strip())))
            except ValueError as error:
                raise Fatal(f"Error: invalid node-ip: invalid ip format '{part.strip()}'") from error
    return found


def node_addresses(node_ips: Sequence[str], flannel_iface: str) -> list[str]:
    """The addresses of this node: what was given, else the flannel interface's, else the default route's.

    Raises:
        Fatal: the flannel interface does not exist, or has no address and none was given.
    """
    addresses = parse_node_ips(node_ips)
    if flannel_iface and not interface_exists(flannel_iface):
        problem = "route ip+net: no such network interface"
        if addresses:
            raise Fatal(f"Error: unable to find interface {flannel_iface}: {problem}")
        raise Fatal(f"Error: interface {flannel_iface} does not have a correct global unicast ip: {problem}")
    if addresses:
        return addresses
    if flannel_iface:
        address = interface_address(flannel_iface)
        if not address:
            raise Fatal(f"Error: interface {flannel_iface} does not have a correct global unicast ip: no ip found")
        return [address]
    return [default_address()]


def node_id(etc: Path) -> str:
    """The eight hex digits of ``--with-node-id``; made once and kept in ``node/id``."""
    path = etc / "node" / "id"
    known = files.read(path).strip()
    if not known:
        known = secrets.token_hex(4)
        files.folder(path.parent, 0o755)
        files.write(path, f"{known}\n", 0o644)
    return known


def node_name(given: str, etc: Path, *, with_id: bool) -> str:
    """The node's name: the given one or the host name, with the node id behind it when asked for."""
    name = given or socket.gethostname().lower()
    return f"{name}-{node_id(etc)}" if with_id else name


def valid_node_name(name: str) -> bool:
    """Whether Kubernetes takes ``name``; a node with another name runs and never appears."""
    return len(name) <= 253 and DNS_LABEL.match(name) is not None


def notify_ready() -> None:
    """Send ``READY=1`` to systemd, or whoever listens on NOTIFY_SOCKET."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if not target:
        return
    address = "\0" + target[1:] if target.startswith("@") else target
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.sendto(b"READY=1\n", address)
    except OSError as error:
        log.warning("Failed to notify systemd at %s: %s", target, error)
