"""``agent.bootstrap``: the decision tree of spec/provider.md 3.2 and what follows from it.

An ``error`` in the answer ends the agent and systemd starts it again 5 s later, so it is only given for what stays
wrong until somebody changes the configuration; everything else is waited for inside the loop (13 #32).
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from provider_kairos.config.load import CloudConfig, load
from provider_kairos.config.schema import Settings
from provider_kairos.errors import ConfigError, HostError, ProviderError
from provider_kairos.provider import decision
from provider_kairos.provider.decision import Outcome, outcome_for
from provider_kairos.provider.machine import Machine, RealMachine
from provider_kairos.provider.plugin import Context, Response

__all__ = ["HOOK", "STAGE", "bootstrap", "handle"]

log = logging.getLogger(__name__)

STAGE = "kairos-agent.bootstrap"
HOOK = "/usr/bin/kairos-agent.bootstrap.hook"


def handle(payload: dict[str, Any], context: Context) -> Response:
    """The handler that the plugin calls."""
    if "" in payload:
        return Response(error=f"{decision.WRONG_INPUT}the payload is not JSON")
    text = payload.get("config")
    api = payload.get("api")
    try:
        cloud = load(text if isinstance(text, str) else "", "cloud-config")
    except ConfigError as error:
        return Response(error=f"{decision.WRONG_INPUT}{error}")
    if outcome_for(cloud.settings) is Outcome.NOTHING:
        return Response(state=decision.NOTHING_TO_DO)
    from provider_kairos.provider import journal  # noqa: PLC0415  # nothing to do must be quick

    level = cloud.settings.p2p.loglevel if cloud.settings.p2p else ""
    journal.set_up(journal.level_of(level, context.environ))
    for notice in cloud.warnings:
        log.warning("%s", notice)
    return bootstrap(RealMachine(), cloud, api if isinstance(api, str) else "", context.environ, context)


def bootstrap(
    machine: Machine, cloud: CloudConfig, payload_api: str, environ: Mapping[str, str], context: Context | None = None
) -> Response:
    """Everything after the configuration was read. Blocks for ever in the loop."""
    settings = cloud.settings
    outcome = outcome_for(settings)
    if outcome is Outcome.NOTHING:
        return Response(state=decision.NOTHING_TO_DO)
    machine.run_stage(STAGE)
    machine.run_hook(HOOK)
    if outcome is Outcome.NO_TOKEN:
        return Response(error=decision.NO_TOKEN)
    try:
        api = _api(machine, settings, payload_api, environ)
    except ConfigError as error:
        return Response(error=f"{decision.FAILED_SETUP_VPN}{error}")
    if outcome is not Outcome.LOOP:
        return _once(machine, settings, outcome, api, environ)
    try:
        cloud.network_token()  # a wrong token is wrong until somebody changes it
    except ConfigError as error:
        return Response(error=f"{decision.FAILED_SETUP_VPN}{error}")
    if context is not None:
        context.detach()
    return _coordinate(machine, settings, api, environ)


def _api(machine: Machine, settings: Settings, payload_api: str, environ: Mapping[str, str]) -> str:
    from provider_kairos.provider.api_address import choose_address  # noqa: PLC0415  # as above
    from provider_kairos.provider.daemon_unit import ENV_FILE  # noqa: PLC0415  # as above
    from provider_kairos.system.files import parse_env  # noqa: PLC0415  # as above

    text = machine.read(ENV_FILE)
    return choose_address(
        environ,
        vpn_env=settings.p2p.vpn.env if settings.p2p else {},
        env_file=parse_env(text) if text else {},
        payload=payload_api,
    )


def _once(machine: Machine, settings: Settings, outcome: Outcome, api: str, environ: Mapping[str, str]) -> Response:
    from provider_kairos.provider.daemon_unit import program_path  # noqa: PLC0415  # as above
    from provider_kairos.provider.onetime import bootstrap_once  # noqa: PLC0415  # as above

    try:
        program = program_path(environ) if outcome is Outcome.ONE_TIME_VPN and settings.vpn_created() else ""
        bootstrap_once(machine, settings, outcome, api=api, program=program)
    except ProviderError as error:
        log.error("one-time bootstrap: %s", error)  # noqa: TRY400  # the text is for people, the trace is not
        return Response(error=f"{decision.FAILED_SETUP}{error}")
    return Response()


def _coordinate(machine: Machine, settings: Settings, api: str, environ: Mapping[str, str]) -> Response:
    from provider_kairos.provider.daemon_unit import program_path, set_up_daemon  # noqa: PLC0415  # as above

    ready = False
    try:
        # The daemon takes longest to come up: it is on its way before the loop is even loaded.
        set_up_daemon(machine, settings, api, program_path(environ))
        ready = True
    except HostError as error:
        log.warning("%s", error)  # the loop tries again and says so
    except ConfigError as error:
        return Response(error=f"{decision.FAILED_SETUP_VPN}{error}")

    import trio  # noqa: PLC0415  # a tenth of a second that only the loop needs

    from provider_kairos.provider.wiring import coordinator  # noqa: PLC0415  # as above

    try:
        trio.run(coordinator(machine, settings, api, environ, daemon_ready=ready).run)
    except ConfigError as error:
        log.error("%s", error)  # noqa: TRY400  # as above
        return Response(error=str(error))
    except BaseExceptionGroup as group:
        wrong, rest = group.split(ConfigError)
        if wrong is None or rest is not None:
            _log_bug(group)
            raise _first(group) from None
        first = _first(wrong)
        log.error("%s", first)  # noqa: TRY400  # as above
        return Response(error=str(first))
    return Response(error="shouldn't return here")


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _log_bug(group: BaseExceptionGroup[BaseException]) -> None:
    """Where it happened, without the exceptions' texts: they may quote a secret."""
    error = _first(group)
    place = "".join(traceback.format_tb(error.__traceback__))
    log.critical("the loop ended: %s\n%s", type(error).__name__, place)
