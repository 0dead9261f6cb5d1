"""Combinations that are well typed but cannot work, or not as meant (spec/provider.md 2.4, 2.5, 3.2, 3.7)."""

from __future__ import annotations

import re
from collections.abc import Callable

from provider_kairos.config.notice import Notice, Severity
from provider_kairos.config.schema import Settings
from provider_kairos.config.tree import Document, Mapping, Scalar

__all__ = ["ROLES", "run"]

ROLES = ("master", "worker", "none", "auto", "master/clusterinit", "master/ha")

_ALTERED = re.compile(r"[-+]?0[0-7_]+|0x[0-9a-fA-F]+|0o[0-7]+|[-+]?[0-9]+\.[0-9]*0|[-+]?[0-9.]+[eE][-+]?[0-9]+")

_Say = Callable[..., None]


def run(settings: Settings, doc: Document) -> list[Notice]:
    """All notices about combinations; ``severity`` error for what cannot work."""
    found: list[Notice] = []

    def say(key: str, message: str, hint: str = "", severity: Severity = "warning") -> None:
        mark = doc.mark(tuple(key.split(".")), key=True)
        found.append(Notice(doc.path, mark.line, mark.column, key, message, hint, severity))

    if settings.p2p_configured():
        _mode(settings, say)
        _high_availability(settings, say)
        _network(settings, say)
        _without_effect(settings, say)
    _distributions(settings, say)
    _altered_values(doc, found)
    return found


def _mode(settings: Settings, say: _Say) -> None:
    if not settings.token_text() and settings.auto_block_enabled() and not settings.kubernetes_configured():
        say(
            "p2p.network_token",
            "there is no network token",
            "put the output of `kairos-p2p generate-token` here",
            "error",
        )
    elif not settings.token_text() and settings.vpn_created():
        say("p2p", "without a network token there is no VPN", "set p2p.network_token, or remove p2p")
    role = settings.forced_role()
    explicit = settings.kubernetes_configured()
    if role and role not in ROLES:
        say("p2p.role", "is none of master, worker, none", "", "error")
    elif role in {"master/ha", "master/clusterinit"} and not explicit:
        say("p2p.role", f"{role} needs k3s.enabled: true beside it", "", "error")
    elif role in {"master", "worker"} and settings.ha_enabled():
        say(
            "p2p.role",
            "a forced role does not count towards the control plane that p2p.auto.ha asks for",
            "use one of the two",
        )


def _high_availability(settings: Settings, say: _Say) -> None:
    if not settings.ha_enabled() or settings.external_db():
        return
    extra = settings.additional_masters()
    if extra == 0:
        say("p2p.auto.ha", "asks for no control-plane node beyond the first", "set p2p.auto.ha.master_nodes, as in 2")
    elif extra % 2:
        say(
            "p2p.auto.ha.master_nodes",
            f"counts in addition to the first: {extra + 1} control-plane nodes bear no more failures than {extra}",
            f"use {extra + 1}, or {extra - 1}" if extra > 1 else "use 2",
        )


def _network(settings: Settings, say: _Say) -> None:
    assert settings.p2p is not None
    if not settings.vpn_created() and settings.p2p.vpn.use is True:
        say("p2p.vpn.use", "needs the VPN, which p2p.vpn.create: false leaves out", "remove one of the two")
    if settings.one_time():
        return
    if not settings.vpn_used() and not settings.kubevip.eip:
        hint = "set kubevip.eip to a free address of the LAN"
        if settings.ha_enabled():
            say(
                "p2p.vpn",
                "several control-plane nodes outside the VPN have no common address without kubevip.eip",
                hint,
            )
        else:
            say(
                "p2p.vpn",
                "without the VPN and kubevip.eip nodes join at the first master's own LAN address",
                "keep that address fixed",
            )


def _without_effect(settings: Settings, say: _Say) -> None:
    """Keys that are read and not acted on yet: said, never ignored in silence."""
    assert settings.p2p is not None
    if settings.p2p.dynamic_roles:
        say("p2p.dynamic_roles", "has no effect: roles of vanished nodes are not freed by this version")
    if settings.kubevip_enabled():
        say("kubevip", "is not part of this version: a master that coordinates refuses to start with it")


def _distributions(settings: Settings, say: _Say) -> None:
    enabled = [
        name
        for name, block in (
            ("k3s", settings.k3s),
            ("k3s-agent", settings.k3s_agent),
            ("k0s", settings.k0s),
            ("k0s-worker", settings.k0s_worker),
        )
        if block.enabled
    ]
    if len({name.partition("-")[0] for name in enabled}) > 1:
        say(enabled[-1] + ".enabled", f"two distributions are enabled; {enabled[0]} is used", "leave one", "error")
    elif len(enabled) > 1 and settings.one_time():
        say(enabled[-1] + ".enabled", f"a node is either one; {enabled[0]} is used", "leave one", "error")
    if settings.k3s_agent.embedded_registry:
        say("k3s-agent.embedded_registry", "has no effect on agents", "set k3s.embedded_registry on the servers")
    if enabled and enabled[0].startswith("k0s"):
        if settings.kubevip_enabled():
            say("kubevip", "is not available with k0s", "remove it, or use k3s", "error")
        if settings.external_db():
            say("p2p.auto.ha.external_db", "is not available with k0s", "remove it, or use k3s", "error")
        if settings.p2p_configured() and not settings.one_time() and not settings.vpn_used():
            say("p2p.vpn", "k0s needs to be on the VPN", "remove vpn.create and vpn.use", "error")
    if settings.kubevip_enabled() and (settings.one_time() or not settings.p2p_configured()):
        say(
            "kubevip",
            "is deployed by coordinated nodes only",
            "set p2p.network_token, or deploy kube-vip with a manifest",
        )
    elif settings.kubevip.enable is True and not settings.kubevip.eip:
        say("kubevip.enable", "there is no elastic IP to announce", "set kubevip.eip")


def _altered_values(doc: Document, found: list[Notice]) -> None:
    """The agent reads and re-writes files before we see them: unquoted numbers may change on the way."""
    for path in (("p2p", "vpn", "env"), *((block, "env") for block in ("k3s", "k3s-agent", "k0s", "k0s-worker"))):
        node = doc.node(path)
        if not isinstance(node, Mapping):
            continue
        for name, entry in node.entries.items():
            value = entry.value
            if isinstance(value, Scalar) and value.plain and _ALTERED.fullmatch(value.text):
                mark = value.mark
                key = ".".join((*path, name))
                found.append(
                    Notice(
                        doc.path,
                        mark.line,
                        mark.column,
                        key,
                        "an unquoted number like this is re-written by the agent",
                        "quote it",
                    )
                )
