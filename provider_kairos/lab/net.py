"""The cable between the boxes: a bridge in the supervisor's own network namespace, one veth pair per box.

The supervisor's namespace is the switch; it has no address and no way out, so no packet leaves the lab. A
box gets ``eth0`` with an address of 192.168.240.0/24, a default route to nobody (k3s wants one,
spec/k3s.md 10) and an IPv6 link-local address that is usable at once. Everything goes with the namespaces.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from provider_kairos.lab.model import LAN_INTERFACE, BoxSpec, LabError
from provider_kairos.lab.syscalls import CLONE_NEWNET, setns

__all__ = ["in_namespace_of", "make_switch", "plug_in", "unplug"]

BRIDGE: Final = "lan"
_GATEWAY: Final = "192.168.240.1"


def _index(route: Any, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise LabError(f"no link {name}")
    return int(found[0])


def _sysctl(name: str, value: str) -> None:
    # Absent where the kernel has no IPv6; then there is nothing to set.
    with contextlib.suppress(OSError):
        Path("/proc/sys/net", name).write_text(value, "ascii")


def make_switch() -> None:
    """Make the bridge in this process's network namespace."""
    with IPRoute() as route:
        route.link("set", index=_index(route, "lo"), state="up")
        route.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)
        # The switch itself takes no part: no link-local address, no router solicitations on the cable.
        _sysctl(f"ipv6/conf/{BRIDGE}/disable_ipv6", "1")
        route.link("set", index=_index(route, BRIDGE), state="up")


def in_namespace_of(pid: int, work: Callable[[], None]) -> None:
    """Run ``work`` in a child that has entered the network namespace of a process; raises LabError."""
    handle = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            setns(handle, CLONE_NEWNET)
            work()
            code = 0
        except (OSError, NetlinkError, LabError) as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(code)
    os.close(handle)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read().decode("utf-8", errors="replace")
    _, raw = os.waitpid(child, 0)
    if raw != 0:
        raise LabError(f"network of the box: {message or 'the helper died'}")


def _configure(spec: BoxSpec) -> None:
    """Inside the box's network namespace: names, addresses, routes."""
    address, _, prefix = spec.address.partition("/")
    _sysctl(f"ipv6/conf/{LAN_INTERFACE}/accept_dad", "0")
    _sysctl(f"ipv6/conf/{LAN_INTERFACE}/accept_ra", "0")
    # An unprivileged ping works for whoever is in the box.
    _sysctl("ipv4/ping_group_range", "0 2147483647" if not spec.assembled else "0 0")
    with IPRoute() as route:
        route.link("set", index=_index(route, "lo"), state="up")
        lan = _index(route, LAN_INTERFACE)
        broadcast = str(ipaddress.ip_network(spec.address, strict=False).broadcast_address)
        route.addr("add", index=lan, address=address, prefixlen=int(prefix), broadcast=broadcast)
        route.link("set", index=lan, state="up")
        route.route("add", dst="0.0.0.0/0", gateway=_GATEWAY)


def plug_in(spec: BoxSpec, pid: int) -> None:
    """Join the box whose first process is ``pid`` to the switch; raises LabError."""
    try:
        with IPRoute() as route:
            # A box that died a moment ago may still have its link here.
            for left in route.link_lookup(ifname=spec.name):
                with contextlib.suppress(NetlinkError):
                    route.link("del", index=left)
            # A machine keeps its hardware address over a reboot: its peers still know it, as on a real cable.
            peer = {"ifname": LAN_INTERFACE, "net_ns_pid": pid, "address": f"02:4b:70:32:70:{spec.number:02x}"}
            route.link("add", ifname=spec.name, kind="veth", peer=peer)
            port = _index(route, spec.name)
            _sysctl(f"ipv6/conf/{spec.name}/disable_ipv6", "1")
            route.link("set", index=port, master=_index(route, BRIDGE))
            route.link("set", index=port, state="up")
    except NetlinkError as error:
        raise LabError(f"cannot join {spec.name} to the lab's switch: {error}") from error
    in_namespace_of(pid, lambda: _configure(spec))


def unplug(spec: BoxSpec) -> None:
    """Pull the cable: from now on neither side hears anything of the other."""
    with IPRoute() as route, contextlib.suppress(NetlinkError):
        for port in route.link_lookup(ifname=spec.name):
            route.link("set", index=port, state="down")
