"""``agent.bootstrap``: the decision tree of spec/provider.md 3.2 and what follows from it.

An ``error`` in the answer ends the agent and systemd starts it again 5 s later, so it is only given for what stays
wrong until somebody changes the configuration; everything else is waited for inside the loop, or tried again here (13
#32). What ends in an error is also in the log and in the file that ``status`` reads.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from provider_kairos.config.load import CloudConfig, load
from provider_kairos.config.notice import InvalidConfigError
from provider_kairos.config.schema import Settings
from provider_kairos.errors import ConfigError, HostError, ProviderError
from provider_kairos.provider import decision
from provider_kairos.provider.decision import Outcome, outcome_for
from provider_kairos.provider.machine import Machine, RealMachine
from provider_kairos.provider.plugin import Context, Response
from provider_kairos.provider.reasons import Refused

__all__ = ["HOOK", "STAGE", "bootstrap", "handle"]

log = logging.getLogger(__name__)

STAGE = "kairos-agent.bootstrap"
HOOK = "/usr/bin/kairos-agent.bootstrap.hook"


def handle(payload: dict[str, Any], context: Context, machine: Machine | None = None) -> Response:
    """The handler that the plugin calls; ``machine`` is this one unless given."""
    if "" in payload:
        return Response(error=f"{decision.WRONG_INPUT}the payload is not JSON")
    text = payload.get("config")
    api = payload.get("api")
    try:
        cloud = load(text if isinstance(text, str) else "", "cloud-config")
    except ConfigError as error:
        if machine is None:
            _log_to_journal("", context.environ)
        refusal = Response(error=f"{decision.WRONG_INPUT}{error}")
        return _refused(machine or RealMachine(), None, context.environ, refusal, str(error))
    if outcome_for(cloud.settings) is Outcome.NOTHING:
        return Response(state=decision.NOTHING_TO_DO)
    if machine is None:
        _log_to_journal(cloud.settings.p2p.loglevel if cloud.settings.p2p else "", context.environ)
    for notice in cloud.warnings:
        log.warning("%s", notice)
    return bootstrap(machine or RealMachine(), cloud, api if isinstance(api, str) else "", context.environ, context)


def _log_to_journal(level: str, environ: Mapping[str, str]) -> None:
    from provider_kairos.provider import journal  # noqa: PLC0415  # nothing to do must be quick

    journal.set_up(journal.level_of(level, environ))


def _refused(
    machine: Machine, settings: Settings | None, environ: Mapping[str, str], response: Response, reason: str
) -> Response:
    """Log what cannot work and leave it where ``status`` looks; the same response."""
    log.error("%s", reason)
    _write_status(machine, settings, environ, error=reason)
    return response


def _write_status(machine: Machine, settings: Settings | None, environ: Mapping[str, str], **facts: Any) -> None:
    from provider_kairos.clock import SystemClock  # noqa: PLC0415  # as above
    from provider_kairos.provider.status import Status, process_age  # noqa: PLC0415  # as above
    from provider_kairos.system.machine import node_uuid  # noqa: PLC0415  # as above

    status = Status(network_id=settings.network_id() if settings else "", **facts)
    with contextlib.suppress(HostError):  # no machine id: the reason at hand counts more
        status.uuid = str(node_uuid(environ))
    with contextlib.suppress(HostError):  # the response says it too
        status.write(machine, SystemClock().now(), process_age())


def bootstrap(
    machine: Machine,
    cloud: CloudConfig,
    payload_api: str,
    environ: Mapping[str, str],
    context: Context | None = None,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Response:
    """Everything after the configuration was read. Blocks for ever in the loop; ``pause`` is between two tries."""
    settings = cloud.settings
    outcome = outcome_for(settings)
    if outcome is Outcome.NOTHING:
        return Response(state=decision.NOTHING_TO_DO)
    machine.run_stage(STAGE)
    machine.run_hook(HOOK)
    if outcome is Outcome.NO_TOKEN:
        return _refused(machine, settings, environ, Response(error=decision.NO_TOKEN), decision.NO_TOKEN)
    try:
        api = _api(machine, settings, payload_api, environ)
        if settings.token_text():
            cloud.network_token()  # a wrong token is wrong until somebody changes it
    except ConfigError as error:
        refusal = Response(error=f"{decision.FAILED_SETUP_VPN}{error}")
        return _refused(machine, settings, environ, refusal, str(error))
    if outcome is not Outcome.LOOP:
        if context is not None:
            context.detach()
        return _once(machine, settings, outcome, api, environ, pause)
    if context is not None:
        context.detach()
    return _coordinate(machine, cloud, api, environ)


def _api(machine: Machine, settings: Settings, payload_api: str, environ: Mapping[str, str]) -> str:
    from provider_kairos.provider.api_address import choose_address  # noqa: PLC0415  # as above
    from provider_kairos.provider.daemon_unit import ENV_FILE  # noqa: PLC0415  # as above
    from provider_kairos.quoting import parse_env_file  # noqa: PLC0415  # as above

    text = machine.read(ENV_FILE)
    return choose_address(
        environ,
        vpn_env=settings.p2p.vpn.env if settings.p2p else {},
        env_file=parse_env_file(text) if text else {},
        payload=payload_api,
    )


def _once(  # noqa: PLR0917  # the facts of one run
    machine: Machine,
    settings: Settings,
    outcome: Outcome,
    api: str,
    environ: Mapping[str, str],
    pause: Callable[[float], None],
) -> Response:
    from provider_kairos.provider.daemon_unit import daemon_program  # noqa: PLC0415  # as above
    from provider_kairos.provider.onetime import bootstrap_once  # noqa: PLC0415  # as above
    from provider_kairos.provider.status import process_age  # noqa: PLC0415  # as above

    seconds = 2.0
    while True:
        try:
            program = daemon_program(environ) if outcome is Outcome.ONE_TIME_VPN and settings.vpn_created() else None
            service = bootstrap_once(machine, settings, outcome, api=api, program=program)
        except HostError as error:
            log.warning("one-time bootstrap, tried again in %.0f s: %s", seconds, error)
            _write_status(machine, settings, environ, waiting=(Refused("cannot bootstrap", str(error)),))
            pause(seconds)
            seconds = min(seconds * 2, 60.0)
        except ProviderError as error:
            refusal = Response(error=f"{decision.FAILED_SETUP}{error}")
            return _refused(machine, settings, environ, refusal, f"one-time bootstrap: {error}")
        else:
            # Without a daemon there is no address at which anybody would ask it.
            address = api if program else ""
            facts = {"configured": True, "service": service, "api": address}
            _write_status(machine, settings, environ, names=("service",), reached={"service": process_age()}, **facts)
            return Response()


def _coordinate(machine: Machine, cloud: CloudConfig, api: str, environ: Mapping[str, str]) -> Response:
    from provider_kairos.provider.daemon_unit import daemon_program, set_up_daemon  # noqa: PLC0415  # as above

    settings, ready = cloud.settings, False

    def explain(error: ProviderError) -> str:
        """With the place in the user's file where one is known."""
        return str(cloud.locate_error(error) if isinstance(error, InvalidConfigError) and error.key else error)

    try:
        # The daemon takes longest to come up: it is on its way before the loop is even loaded.
        set_up_daemon(machine, settings, api, daemon_program(environ))
        ready = True
    except HostError as error:
        log.warning("%s", error)  # the loop tries again and says so
    except ConfigError as error:
        refusal = Response(error=f"{decision.FAILED_SETUP_VPN}{error}")
        return _refused(machine, settings, environ, refusal, str(error))

    import trio  # noqa: PLC0415  # a tenth of a second that only the loop needs

    from provider_kairos.provider.wiring import coordinator  # noqa: PLC0415  # as above

    try:
        trio.run(coordinator(machine, settings, api, environ, daemon_ready=ready, explain=explain).run)
    except (ConfigError, HostError) as error:  # no loop could be made: no role like this, no machine id
        reason = explain(error)
        return _refused(machine, settings, environ, Response(error=reason), reason)
    except BaseExceptionGroup as group:
        wrong, rest = group.split(ConfigError)
        if wrong is None or rest is not None:
            _log_bug(group)
            raise _first(group) from None
        reason = explain(_first(wrong))
        log.error("%s", reason)  # noqa: TRY400  # the text is for people, the trace is not
        return Response(error=reason)
    return Response(error="shouldn't return here")


def _first(group: BaseException) -> Any:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _log_bug(group: BaseExceptionGroup[BaseException]) -> None:
    """Where it happened, without the exceptions' texts: they may quote a secret."""
    error = _first(group)
    place = "".join(traceback.format_tb(error.__traceback__))
    log.critical("the loop ended: %s\n%s", type(error).__name__, place)
