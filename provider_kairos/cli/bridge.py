"""What ``bridge`` does: a node with a VPN interface on a machine that is no node of the cluster, such as a laptop.

It never advertises itself, so no provider counts it or gives it a role; its address is one that is not leased (host
254, as ``kairosctl bridge`` has it) unless a lease is asked for. When it ends its records are withdrawn and the interface
is gone, also after a kill: it is not persistent. Specification: spec/provider.md 7.3; spec/edgevpn.md 8.1, 9.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from provider_kairos.cli import own_node
from provider_kairos.cli.own_node import say
from provider_kairos.daemon.daemon import Daemon
from provider_kairos.daemon.parts import NodeService, Parts
from provider_kairos.daemon.settings import DEFAULT_ADDRESS, DaemonSettings
from provider_kairos.errors import ConfigError, ExitCode, PermissionHostError, UsageError
from provider_kairos.vpn.pool import BRIDGE_HOST
from provider_kairos.vpn.records import LEASE_BUCKET, MACHINES_BUCKET, parse_machines, parse_notes

__all__ = ["Options", "default_address", "run", "variables_of"]

CAP_NET_ADMIN = 12
LOOK = 0.2
"""Seconds between two looks at whether the interface is up."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; an empty text means that it does not. ``recovery``: a QR code was given."""

    address: str = ""
    dhcp: bool = False
    lease_dir: str = ""
    interface: str = "kairos0"
    api: str = "127.0.0.1:8080"
    network_id: str = "kairos"
    config: str | None = None
    recovery: bool = False


def run(options: Options, environ: Mapping[str, str] | None = None) -> int:
    """Be in the VPN until SIGINT or SIGTERM, which give 0.

    Raises UsageError for QR codes, PermissionHostError without the right to make an interface, ConfigError and TokenError for
    the network, HostError for what the machine refuses.
    """
    if options.recovery:
        raise UsageError("recovery by QR code is not part of this version", hint="kairosctl bridge --qr-code-image")
    _check_rights()
    variables = variables_of(
        options, own_node.node_environment(os.environ if environ is None else environ, options.config)
    )

    def adapt(settings: DaemonSettings) -> DaemonSettings:
        return dataclasses.replace(
            settings,
            persistent_interface=False,
            lease_dir=Path(options.lease_dir).expanduser() if options.lease_dir else settings.lease_dir,
        )

    async def work(daemon: Daemon) -> int:
        await _say_when_up(daemon, options)
        await trio.sleep_forever()

    code = own_node.run(work, services=_services, vpn=True, api=bool(options.api), adapt=adapt, environ=variables)
    return ExitCode.OK if code in {128 + signal.SIGINT, 128 + signal.SIGTERM} else code


def variables_of(options: Options, network: Mapping[str, str]) -> dict[str, str]:
    """The variables of the node: those of the ``network``, with what the options say of this machine.

    Raises ConfigError for an address that is none.
    """
    variables = {name: value for name, value in network.items() if name not in {"ADDRESS", "DHCP", "IFACE", "ROUTER"}}
    base = network.get("ADDRESS") or str(DEFAULT_ADDRESS)
    if options.dhcp:
        variables["ADDRESS"] = options.address or base
    else:
        variables["ADDRESS"] = options.address or default_address(base)
    variables |= {
        "DHCP": str(options.dhcp).lower(),
        "IFACE": options.interface,
        "APILISTEN": options.api,
        "APILISTENUNIXMODE": "0600",
    }
    return variables


def default_address(of: str) -> str:
    """An address of a network that no node leases: host 254, or the last one of a smaller network.

    Raises ConfigError.
    """
    try:
        network = ipaddress.ip_interface(of).network
    except ValueError:
        raise ConfigError(f"ADDRESS={of!r} is not an address with a prefix", hint="give --address") from None
    host = min(BRIDGE_HOST, network.num_addresses - 2)
    if host < 1:
        raise ConfigError(f"ADDRESS={of!r} is a network without room for this machine", hint="give --address")
    return f"{network.network_address + host}/{network.prefixlen}"


def _services(parts: Parts) -> Sequence[NodeService]:
    from provider_kairos.daemon.trust_service import TrustService  # noqa: PLC0415 - where there is a trust zone only

    return [TrustService(parts)] if parts.settings.trust.guard else []


def _check_rights() -> None:
    if os.geteuid() == 0:
        return
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and int(value, 16) >> CAP_NET_ADMIN & 1:
            return
    raise PermissionHostError(
        "joining the VPN needs root: it makes a network interface",
        hint="sudo --preserve-env=EDGEVPNTOKEN kairos-p2p bridge; for single services `kairos-p2p service connect` needs none",
    )


async def _say_when_up(daemon: Daemon, options: Options) -> None:
    vpn = daemon.vpn
    assert vpn is not None
    while (address := vpn.status()["address"]) is None:  # noqa: ASYNC110 - looked at, as the reasons are
        await trio.sleep(LOOK)
    say(f"this machine is {address} on {options.interface}; Ctrl-C leaves the network")
    if options.api:
        place = options.api if "://" in options.api else f"http://{options.api}"
        network = "" if options.network_id == "kairos" else f" --network-id {options.network_id}"
        say(f"see the nodes: kairos-p2p role list --api {place}{network}")
    if not options.dhcp and _is_highest(daemon, address):
        # they take the highest address plus one, whatever that is (spec/edgevpn.md 9)
        say(
            "EdgeVPN nodes are in this network: one that leases an address now takes the one above this machine's; "
            "while nodes are added use --dhcp, or an --address below theirs"
        )


def _is_highest(daemon: Daemon, address: str) -> bool:
    """Whether an EdgeVPN node that leases would take an address above ours."""
    ledger = daemon.ledger.ledger
    peers = set(parse_machines(ledger.bucket(MACHINES_BUCKET) or {}).values()) | daemon.mesh.on_chain()
    others = peers - parse_notes(ledger.bucket(LEASE_BUCKET) or {}).keys() - {daemon.mesh.peer_id}
    mine = ipaddress.ip_interface(address).ip
    held = [ipaddress.ip_address(text) for text in parse_machines(ledger.bucket(MACHINES_BUCKET) or {})]
    return bool(others) and all(each.version != mine.version or int(each) <= int(mine) for each in held)
