"""Which distribution and role a node gets by its configuration (spec/provider.md 2.5), and what is not here yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provider_kairos.config.notice import InvalidConfigError
from provider_kairos.errors import ConfigError, HostError
from provider_kairos.kubernetes.facts import Binaries, Choice, Distribution, NodeRole

if TYPE_CHECKING:
    from provider_kairos.config import Settings

__all__ = ["UnsupportedError", "binary_path", "choose_distribution", "refuse_unsupported"]


class UnsupportedError(InvalidConfigError):
    """Something that has its place but that this version cannot do yet."""


def choose_distribution(settings: Settings, binaries: Binaries) -> Choice:
    """The first row of the table that matches.

    Raises:
        HostError: the image has no Kubernetes binary at all.
        ConfigError: nothing in the configuration says what to run.
    """
    if not binaries.k3s and not binaries.k0s:
        raise HostError("no k8s binary is available", hint="use an image with k3s or k0s, or install one as a bundle")
    rows = (
        (settings.k3s.enabled, Distribution.K3S, "master"),
        (settings.k3s_agent.enabled, Distribution.K3S, "worker"),
        (settings.k0s.enabled, Distribution.K0S, "master"),
        (settings.k0s_worker.enabled, Distribution.K0S, "worker"),
    )
    for enabled, distribution, role in rows:
        if enabled:
            return Choice(distribution, role)
    if not settings.p2p_configured():
        raise ConfigError("no k8s configuration found", hint="enable k3s or k0s, or set p2p.network_token")
    installed = Distribution.K3S if binaries.k3s else Distribution.K0S
    if role := settings.forced_role():
        if role not in {"master", "worker"}:
            raise InvalidConfigError("invalid p2p.role specified, must be 'master' or 'worker'", key="p2p.role")
        return Choice(installed, role)
    if settings.auto_enabled():
        return Choice(installed, "")
    raise InvalidConfigError(
        "no k8s configuration found but p2p is configured",
        key="p2p",
        hint="set p2p.network_token or p2p.role, or enable k3s",
    )


def binary_path(distribution: Distribution, binaries: Binaries) -> str:
    """The binary of a chosen distribution.

    Raises:
        HostError: it is not installed.
    """
    path = binaries.k3s if distribution is Distribution.K3S else binaries.k0s
    if not path:
        raise HostError(
            f"no {distribution} binary found", hint=f"use an image with {distribution}, or enable what is installed"
        )
    return path


def refuse_unsupported(settings: Settings, distribution: Distribution, role: NodeRole) -> None:
    """Say clearly what this version cannot do, before anything is written.

    Raises:
        UnsupportedError: k0s, or kube-vip on a node that would have to deploy it.
    """
    if distribution is Distribution.K0S:
        raise UnsupportedError("k0s is not supported yet by this version", hint="use an image with k3s")
    if settings.kubevip_enabled() and role.is_server and not role.standalone:
        key = "kubevip.enable" if settings.kubevip.enable else "kubevip.eip"
        raise UnsupportedError(
            "kubevip is not supported yet by this version: nobody would answer on the elastic IP",
            key=key,
            hint="remove kubevip, or set kubevip.enable: false and deploy it with a manifest",
        )
