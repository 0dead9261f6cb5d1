"""Puts the coordinator together from a configuration and this machine (spec/provider.md 2.3, 4.2, 4.7)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from provider_kairos.api.client import DaemonClient
from provider_kairos.clock import SystemClock
from provider_kairos.config.notice import InvalidConfigError
from provider_kairos.config.schema import Settings
from provider_kairos.errors import ConfigError
from provider_kairos.ids import NodeUuid
from provider_kairos.provider.daemon_unit import daemon_program
from provider_kairos.provider.loop import Coordinator
from provider_kairos.provider.machine import Machine
from provider_kairos.provider.status import process_age
from provider_kairos.roles.engine import RolesEngine, RoleSettings
from provider_kairos.roles.model import parse_role
from provider_kairos.system.links import LinkManager
from provider_kairos.system.machine import node_uuid

__all__ = ["coordinator", "role_settings"]


def role_settings(settings: Settings, uuid: NodeUuid) -> RoleSettings:
    """What the role engine needs of the configuration.

    Raises:
        ConfigError: ``p2p.role`` is no role.
    """
    text = settings.forced_role()
    forced = parse_role(text)
    if text and forced is None:
        raise InvalidConfigError(
            "invalid p2p.role specified, must be 'master' or 'worker'",
            key="p2p.role",
            hint="leave it out to have a role found",
        )
    return RoleSettings(
        uuid=uuid,
        network_id=settings.network_id(),
        forced=forced,
        minimum_nodes=settings.minimum_nodes(),
        ha=settings.ha_enabled(),
        additional_masters=settings.additional_masters(),
    )


def coordinator(
    machine: Machine,
    settings: Settings,
    api: str,
    environ: Mapping[str, str],
    *,
    daemon_ready: bool = False,
    explain: Callable[[ConfigError], str] = str,
) -> Coordinator:
    """The loop of this machine.

    Raises:
        ConfigError: a role or an API address that cannot be.
        HostError: no machine id.
    """
    uuid = node_uuid(environ)
    return Coordinator(
        machine,
        settings,
        DaemonClient(api),
        LinkManager(),
        engine=RolesEngine(role_settings(settings, uuid), random.SystemRandom()),
        clock=SystemClock(),
        api=api,
        program=lambda: daemon_program(environ),
        daemon_ready=daemon_ready,
        age=process_age(),
        explain=explain,
    )
