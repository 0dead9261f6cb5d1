"""Facts of this machine for the rendering of k3s, and the rendering laid down (spec/provider.md 3.4, 3.7, 6).

What files hold and what the command says is decided in :mod:`provider_kairos.kubernetes`; which interface and which
addresses count is decided here, once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from provider_kairos.config.schema import Settings
from provider_kairos.kubernetes import (
    Binaries,
    Distribution,
    InitKind,
    NodeFacts,
    NodeRole,
    Rendering,
    binary_path,
    choose_distribution,
    config_file_keys,
    env_file_path,
    refuse_unsupported,
    render,
)
from provider_kairos.provider.machine import Machine
from provider_kairos.quoting import parse_env_file
from provider_kairos.roles.effects import Configure

__all__ = [
    "VPN_INTERFACE",
    "Addresses",
    "Interfaces",
    "apply",
    "apply_and_start",
    "binaries",
    "check",
    "hostnames_differ",
    "plan",
    "plan_once",
    "vpn_interface",
    "where",
]

log = logging.getLogger(__name__)

VPN_INTERFACE = "edgevpn0"
DAEMON_UNIT = "edgevpn@kairos.service"
_CONFIG = "/etc/rancher/k3s/config.yaml"
_UUID = re.compile(r"[0-9a-f]{32}-(.+)")


class Interfaces(Protocol):
    """What is asked of the machine's links (``system.links.LinkManager`` has it)."""

    def first_address(self, interface: str, *, version: int = 0) -> str | None:
        """The first usable address of an interface."""
        ...

    def default_route_interface(self) -> str | None:
        """The interface of the default route."""
        ...


@dataclass(frozen=True, slots=True)
class Addresses:
    """This node's addresses. ``own``: on the network that Kubernetes uses; ``told``: what joiners are told."""

    own: str = ""
    told: str = ""
    virtual_ip: str = ""
    interface: str = ""
    interface_ip: str = ""


def vpn_interface(settings: Settings) -> str:
    """The daemon's interface: the user may have named another one."""
    return (settings.p2p.vpn.env.get("IFACE", "") if settings.p2p else "") or VPN_INTERFACE


def where(settings: Settings, links: Interfaces) -> Addresses:
    """Addresses by spec 3.7 with 13 #18, #19, #20: real ones, on the default route's interface when not on the VPN."""
    virtual_ip = (links.first_address(vpn_interface(settings), version=4) or "") if settings.vpn_created() else ""
    interface = interface_ip = ""
    if not settings.vpn_used() or settings.kubevip_enabled():
        interface = settings.kubevip.interface or links.default_route_interface() or ""
        interface_ip = (links.first_address(interface, version=4) or "") if interface else ""
    own = virtual_ip if settings.vpn_used() else interface_ip
    eip = settings.kubevip.eip.partition(",")[0].strip() if settings.kubevip_enabled() else ""
    return Addresses(own, (eip or own) if own else "", virtual_ip, interface, interface_ip)


def binaries(machine: Machine) -> Binaries:
    """Installed distributions: first existing of the two places of each."""

    def find(name: str) -> str:
        return next((p for p in (f"/usr/bin/{name}", f"/usr/local/bin/{name}") if machine.exists(p)), "")

    return Binaries(k3s=find("k3s"), k0s=find("k0s"))


def check(machine: Machine, settings: Settings) -> Distribution:
    """The distribution of a coordinated node; says at the start what can never work.

    Raises:
        ConfigError: the configuration asks for something that this version cannot do, or for nothing.
        HostError: no Kubernetes binary.
    """
    forced = settings.forced_role()
    if forced == "none":
        return Distribution.K3S  # takes part without ever running it
    if forced == "auto" and settings.p2p is not None:
        settings = settings.model_copy(update={"p2p": settings.p2p.model_copy(update={"role": ""})})
    found = binaries(machine)
    choice = choose_distribution(settings, found)
    binary_path(choice.distribution, found)
    refuse_unsupported(
        settings, choice.distribution, NodeRole.WORKER if "worker" in {forced, choice.role} else NodeRole.MASTER
    )
    return choice.distribution


def _init(machine: Machine) -> InitKind:
    return InitKind.OPENRC if machine.openrc else InitKind.SYSTEMD


def _config_keys(machine: Machine) -> frozenset[str]:
    text = machine.read(_CONFIG)
    return config_file_keys([text]) if text else frozenset()


def plan(
    machine: Machine,
    settings: Settings,
    distribution: Distribution,
    effect: Configure,
    addresses: Addresses,
    *,
    unique: bool | None,
    again: bool,
) -> Rendering:
    """The rendering for a role of a coordinated node; ``again`` when it held the role before.

    Raises as ``kubernetes.render``.
    """
    role = NodeRole(str(effect.role))
    init = _init(machine)
    old = machine.read(env_file_path("k3s-agent", init)) if again and role is NodeRole.WORKER else None
    facts = NodeFacts(
        role=role,
        binary=binary_path(distribution, binaries(machine)),
        init=init,
        virtual_ip=addresses.virtual_ip,
        interface=addresses.interface,
        interface_ip=addresses.interface_ip,
        vpn_interface=vpn_interface(settings),
        master_address=effect.server_ip,
        join_token=effect.join_token,
        # An agent that was configured before keeps its URL (13 #9).
        server_url=parse_env_file(old).get("K3S_URL", "") if old else "",
        hostname_unique=unique,
        config_keys=_config_keys(machine),
        after=(DAEMON_UNIT,) if settings.vpn_created() else (),
    )
    return render(settings, facts, distribution)


def plan_once(machine: Machine, settings: Settings) -> Rendering:
    """The rendering of a one-time bootstrap. Raises as ``choose_distribution`` and ``kubernetes.render``."""
    found = binaries(machine)
    choice = choose_distribution(settings, found)
    facts = NodeFacts(
        role=choice.standalone_role(),
        binary=binary_path(choice.distribution, found),
        init=_init(machine),
        config_keys=_config_keys(machine),
    )
    return render(settings, facts, choice.distribution)


def apply(machine: Machine, rendering: Rendering) -> bool:
    """Write what was rendered; True when anything changed."""
    changed = False
    for file in rendering.files:
        changed = machine.write(file.path, file.content, file.mode) or changed
    for notice in rendering.warnings:
        log.warning("%s", notice)
    return changed


def apply_and_start(machine: Machine, rendering: Rendering) -> None:
    """Write, reload, start (or restart what runs with something else), enable."""
    changed = apply(machine, rendering)
    # Always: after a crash between write and reload nothing differs any more, and systemd knows only the old unit.
    machine.daemon_reload()
    if changed and machine.is_active(rendering.service):
        machine.restart(rendering.service)
    else:
        machine.start(rendering.service)
    machine.enable(rendering.service)


def hostnames_differ(uuids: Iterable[str]) -> bool | None:
    """Whether all host names in the node UUIDs differ; None when a UUID names none."""
    names: list[str] = []
    for uuid in uuids:
        match = _UUID.fullmatch(uuid)
        if not match:
            return None
        names.append(match[1])
    return len(set(names)) == len(names)
