"""A role carried out on this machine, in steps that can be repeated (spec/provider.md 4.8, 4.9, 3.9).

Order: rendering (pure; a wrong configuration stops here, before anything is promised), the role on disk, stage
*before*, files, reload, start, enable; then, when the join token of a first master is in the ledger, stage *after* and
the sentinel. A crash between any two of these resumes: the role on disk leads back here, and every step may run twice.
Functions block; the loop calls them in a thread.
"""

from __future__ import annotations

import logging

from provider_kairos.config.schema import Settings
from provider_kairos.kubernetes import Distribution
from provider_kairos.provider import disk, plan
from provider_kairos.provider.machine import Machine
from provider_kairos.roles.effects import Configure
from provider_kairos.roles.model import Held, Role

__all__ = ["AFTER", "BEFORE", "KUBECONFIG_FILE", "TOKEN_FILE", "begin", "finish", "published_secrets"]

log = logging.getLogger(__name__)

BEFORE = "provider-kairos.bootstrap.before."
AFTER = "provider-kairos.bootstrap.after."
TOKEN_FILE = "/var/lib/rancher/k3s/server/node-token"  # noqa: S105  # a path
KUBECONFIG_FILE = "/etc/rancher/k3s/k3s.yaml"


def begin(
    machine: Machine,
    settings: Settings,
    distribution: Distribution,
    effect: Configure,
    addresses: plan.Addresses,
    *,
    unique: bool | None,
) -> str:
    """Everything up to the running service, whose name is returned.

    Raises:
        ConfigError: the configuration cannot be rendered; nothing was done.
        HostError: the machine refused; call again later.
    """
    held = disk.held_role(machine, settings.network_id())
    rendering = plan.plan(machine, settings, distribution, effect, addresses, unique=unique, again=held is not None)
    # People and end-to-end tests look for these words in the journal.
    log.info("Configuring %s%s", distribution, " worker" if effect.role is Role.WORKER else "")
    disk.keep_role(machine, Held(effect.role, settings.network_id(), effect.generation))
    machine.run_stage(f"{BEFORE}{effect.role}")
    plan.apply_and_start(machine, rendering)
    log.info("%s was asked to start as %s", rendering.service, effect.role)
    return rendering.service


def finish(machine: Machine, role: Role) -> None:
    """Stage *after* and the sentinel."""
    machine.run_stage(f"{AFTER}{role}")
    disk.mark_deployed(machine)
    log.info("this node is configured as %s", role)


def published_secrets(machine: Machine, role: Role | None) -> tuple[str | None, str | None]:
    """Join token and kubeconfig that k3s wrote; None while it has not. A control-plane node has both."""
    if role is None or not role.control_plane:
        return None, None
    token = machine.read(TOKEN_FILE)
    token = token.rstrip("\n") if token else None
    kubeconfig = machine.read(KUBECONFIG_FILE) or None
    # k3s writes both at once (spec/k3s.md 3.1); half of it would be published twice.
    return (token or None), (kubeconfig if token else None)
