"""Bootstrap without coordination (spec/provider.md 3.4 with 13 #28, #29: VPN first, and none without a token)."""

from __future__ import annotations

import logging

from provider_kairos.config.schema import Settings
from provider_kairos.provider import disk, plan
from provider_kairos.provider.daemon_unit import DaemonProgram, set_up_daemon
from provider_kairos.provider.decision import Outcome
from provider_kairos.provider.machine import Machine

__all__ = ["bootstrap_once"]

log = logging.getLogger(__name__)


def bootstrap_once(
    machine: Machine, settings: Settings, outcome: Outcome, *, api: str, program: DaemonProgram | None
) -> str:
    """Configure and start Kubernetes once, then write the sentinel; the service, empty when that was done before.

    Raises:
        ConfigError, HostError: nothing to run, or the machine refuses; no sentinel is left, the next start repeats it.
    """
    if disk.deployed(machine):
        log.info("already bootstrapped: %s is there", disk.SENTINEL)
        # The VPN beside it follows its configuration all the same.
        _vpn(machine, settings, outcome, api=api, program=program)
        return ""
    rendering = plan.plan_once(machine, settings)
    _vpn(machine, settings, outcome, api=api, program=program)
    log.info("One time bootstrap: configuring %s", rendering.service)
    plan.apply_and_start(machine, rendering)
    disk.mark_deployed(machine)
    return rendering.service


def _vpn(machine: Machine, settings: Settings, outcome: Outcome, *, api: str, program: DaemonProgram | None) -> None:
    if program is None or not settings.vpn_created():
        return
    if outcome is Outcome.ONE_TIME_VPN:
        set_up_daemon(machine, settings, api, program)
    elif outcome is Outcome.ONE_TIME_NO_TOKEN:
        log.warning("no VPN: p2p is configured without a network token; set p2p.network_token or p2p.vpn.create: false")
