"""One node's files and command from settings and facts: the way into this package (spec/provider.md 3.4, 3.8, 6)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from provider_kairos import quoting
from provider_kairos.kubernetes import k3s
from provider_kairos.kubernetes.choose import refuse_unsupported
from provider_kairos.kubernetes.facts import DesiredFile, Distribution, InitKind, NodeFacts, Rendering

if TYPE_CHECKING:
    import jinja2

    from provider_kairos.config import Settings

__all__ = ["RESTART_SECONDS", "drop_in_path", "env_file_path", "render", "service_name"]

RESTART_SECONDS = 2
"""k3s waits for nothing by itself: until the VPN interface is up at boot, its unit tries again."""


def render(settings: Settings, facts: NodeFacts, distribution: Distribution = Distribution.K3S) -> Rendering:
    """Files, command and environment for one node.

    Raises:
        UnsupportedError: k0s or kube-vip, which this version cannot do yet.
        LocalError, PeerError, InvalidConfigError: as :func:`provider_kairos.kubernetes.k3s.command`.
        ConfigError: a variable of the user that no env file can hold.
    """
    refuse_unsupported(settings, distribution, facts.role)
    made = k3s.command(settings, facts)
    service = service_name(facts)
    argv = (facts.binary, *made.arguments)
    env_path = env_file_path(service, facts.init)
    drop_in = None
    command_args = ""
    if facts.init is InitKind.SYSTEMD:
        text = _template("override.conf.j2").render(
            env_file=env_path, command=quoting.systemd_exec(argv), after=facts.after, restart_seconds=RESTART_SECONDS
        )
        drop_in = DesiredFile(drop_in_path(service), text)
    else:
        command_args = quoting.openrc_command_args(made.arguments, f"/var/log/{service}.log")
    env_text = _template("service.env.j2").render(
        variables=quoting.systemd_env_file(made.environment), command_args=command_args
    )
    return Rendering(service, argv, made.environment, DesiredFile(env_path, env_text), drop_in, warnings=made.warnings)


def service_name(facts: NodeFacts) -> str:
    """``k3s`` or ``k3s-agent``."""
    return "k3s" if facts.role.is_server else "k3s-agent"


def env_file_path(service: str, init: InitKind) -> str:
    """Where the service's environment is."""
    return f"/etc/sysconfig/{service}" if init is InitKind.SYSTEMD else f"/etc/rancher/k3s/{service}.env"


def drop_in_path(service: str) -> str:
    """Where systemd finds our command for the image's unit."""
    return f"/etc/systemd/system/{service}.service.d/override.conf"


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2  # noqa: PLC0415  # 40 ms that only nodes which are being configured spend

    return jinja2.Environment(
        loader=jinja2.PackageLoader("provider_kairos.kubernetes"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  # these are no HTML pages; quoting.py has quoted every value
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
