"""What survives on this machine: the sentinel and the role (spec/provider.md 3.8.3, 4.10, 13 #1).

``/usr/local/.kairos/state/role.json`` is written before anything of a role is carried out; from then on the role is
this node's for good. The sentinel ``/usr/local/.kairos/deployed`` says that it was carried out. Removing the sentinel
alone has the same role applied again; to take another role the state must go too.

A machine that the original bootstrapped has a sentinel and no role file: then the role is read off the service
override that the original left.
"""

from __future__ import annotations

import json
import logging

from provider_kairos.errors import HostError
from provider_kairos.provider.machine import Machine
from provider_kairos.roles.model import Held, Role, parse_role

__all__ = ["ROLE_FILE", "SENTINEL", "deployed", "forget_role", "held_role", "keep_role", "mark_deployed"]

log = logging.getLogger(__name__)

SENTINEL = "/usr/local/.kairos/deployed"
ROLE_FILE = "/usr/local/.kairos/state/role.json"
SCHEMA = 1

_OVERRIDES = {
    "k3s": "/etc/systemd/system/k3s.service.d/override.conf",
    "k3s-agent": "/etc/systemd/system/k3s-agent.service.d/override.conf",
    "k0scontroller": "/etc/systemd/system/k0scontroller.service.d/override.conf",
    "k0sworker": "/etc/systemd/system/k0sworker.service.d/override.conf",
}
_OPENRC = {"k3s": "/etc/rancher/k3s/k3s.env", "k3s-agent": "/etc/rancher/k3s/k3s-agent.env"}


def deployed(machine: Machine) -> bool:
    """Whether the sentinel is there."""
    return machine.exists(SENTINEL)


def mark_deployed(machine: Machine) -> None:
    """Write the sentinel."""
    machine.write(SENTINEL, "", 0o644)


def keep_role(machine: Machine, held: Held) -> None:
    """Take a role for good."""
    document = {
        "schema": SCHEMA,
        "role": str(held.role),
        "network_id": held.network_id,
        "generation": held.generation,
    }
    machine.write(ROLE_FILE, json.dumps(document) + "\n", 0o600)


def forget_role(machine: Machine) -> bool:
    """Give a role up: only for a node that is reset."""
    return machine.remove(ROLE_FILE)


def held_role(machine: Machine, network_id: str) -> Held | None:
    """The role on disk; ``network_id`` is assumed for a machine that the original bootstrapped.

    Raises:
        HostError: there is a role file, and neither it nor the services tell the role.
    """
    text = machine.read(ROLE_FILE)
    if text is not None:
        held = _parse(text)
        if held is not None:
            return held
        log.debug("%s cannot be read; looking at the services instead", ROLE_FILE)
    role = _role_of_services(machine) if deployed(machine) else None
    if role is not None:
        return Held(role, network_id)
    if text is not None:
        # This node has a role; taking another one could be the end of a cluster.
        raise HostError(
            f"{ROLE_FILE} does not say which role this node holds",
            hint="restore it; remove it only when this node is to be a new one",
        )
    return None


def _parse(text: str) -> Held | None:
    try:
        value = json.loads(text)
        role = parse_role(value["role"])
        network_id, generation = value["network_id"], value["generation"]
    except (ValueError, KeyError, TypeError):
        return None
    if role is None or not role.executable or not isinstance(network_id, str) or not isinstance(generation, str):
        return None
    return Held(role, network_id, generation)


def _role_of_services(machine: Machine) -> Role | None:
    for service in ("k3s", "k0scontroller"):
        text = machine.read(_OVERRIDES[service]) or machine.read(_OPENRC.get(service, ""))
        if text is not None:
            if "--server" in text or "--token-file" in text:
                return Role.HA
            return Role.CLUSTER_INIT if "--cluster-init" in text else Role.MASTER
    for service in ("k3s-agent", "k0sworker"):
        if machine.exists(_OVERRIDES[service]) or machine.exists(_OPENRC.get(service, "")):
            return Role.WORKER
    return None
