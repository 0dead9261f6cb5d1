"""Settings and facts to k3s' command line and environment (spec/provider.md 6, 13; spec/k3s.md 0, 6, 7).

Kept from the original: names, order and precedence of everything generated. Mended: external datastores append (16),
``k3s-agent`` counts whether enabled or not (17), agents keep their server's URL (9), node ids only where host names
clash or are not known (43), node addresses are always explicit, nothing secret is an argument, ``K3S_URL`` never stands
in a server's environment (it would make the first server join), and no server joins without its token (it would
silently found a cluster of its own).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provider_kairos.config.notice import InvalidConfigError, Notice
from provider_kairos.errors import LocalError, PeerError
from provider_kairos.kubernetes.arguments import read_args, secret_variable
from provider_kairos.kubernetes.facts import NodeFacts, NodeRole
from provider_kairos.kubernetes.flags import SINGLE, Flag

if TYPE_CHECKING:
    from provider_kairos.config import Settings
    from provider_kairos.config.schema import Distribution as Block

__all__ = ["API_PORT", "Command", "command", "server_url"]

API_PORT = 6443

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")
_TOKEN_VARIABLES = ("K3S_TOKEN", "K3S_TOKEN_FILE")


@dataclass(frozen=True, slots=True)
class Command:
    """Arguments after the binary, environment, and remarks."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    warnings: tuple[Notice, ...] = ()


def command(settings: Settings, facts: NodeFacts) -> Command:
    """What k3s is started with.

    Raises:
        LocalError: a fact is missing that the caller had to wait for (join token, addresses).
        PeerError: what the ledger holds as address or token cannot be one.
        InvalidConfigError: the user's settings would make this node found a cluster of its own, or cannot be parsed.
    """
    block: Block = settings.k3s if facts.role.is_server else settings.k3s_agent
    name = "k3s" if facts.role.is_server else "k3s-agent"
    generated = _generated(settings, facts)
    user, notices = read_args(f"{name}.args", block.args, agent=not facts.role.is_server)
    said = list(notices)
    flags = list(user) if block.replace_args else _merged(generated, user, name, said)
    if facts.role is NodeRole.SERVER and settings.k3s.embedded_registry and not _given(flags, "embedded-registry"):
        flags.append(Flag("embedded-registry"))
    environment = dict(block.env) if block.replace_env else {**_environment(settings, facts), **block.env}
    flags = _without_secrets(flags, environment, name, said)
    if facts.role.is_server:
        flags = _server_url_out_of_environment(flags, environment, facts, said)
        _never_join_without_token(flags, environment, facts, block)
    else:
        _agent_knows_its_server(flags, environment, facts, block, said)
    subcommand = "server" if facts.role.is_server else "agent"
    return Command((subcommand, *(flag.text() for flag in flags)), environment, tuple(said))


def server_url(address: str) -> str:
    """``https://<address>:6443`` for the address of the first master, which comes from the ledger.

    Raises:
        PeerError: neither an IP address nor a host name.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        if not _HOST.fullmatch(address):
            raise PeerError(
                f"the first master's address {address[:64]!r} is neither an IP address nor a host name"
            ) from None
        return f"https://{address}:{API_PORT}"
    return f"https://[{ip}]:{API_PORT}" if ip.version == 6 else f"https://{ip}:{API_PORT}"


def _generated(settings: Settings, facts: NodeFacts) -> list[Flag]:
    if facts.role.standalone:
        return []
    if not facts.role.is_server:
        return _agent_flags(settings, facts)
    flags: list[Flag] = []
    on_vpn = settings.vpn_used()
    if on_vpn:
        flags.append(Flag("flannel-iface", facts.vpn_interface))
    if settings.kubevip_enabled():
        names = settings.kubevip.eip or _need(facts.virtual_ip, "virtual IP")
        flags += [Flag("tls-san", name.strip()) for name in names.split(",") if name.strip()]
    elif settings.vpn_created() and not on_vpn and facts.virtual_ip:
        # operators reach the API over the VPN, where the node address is not the certificate's
        flags.append(Flag("tls-san", facts.virtual_ip))
    if on_vpn and not settings.kubevip_enabled():
        flags.append(Flag("node-ip", _need(facts.virtual_ip, "virtual IP")))
    else:
        flags.append(Flag("node-ip", _need(facts.interface_ip, "interface address")))
    if settings.k3s.embedded_registry:
        flags.append(Flag("embedded-registry"))
    if facts.role is NodeRole.HA:
        flags.append(Flag("server", server_url(_need(facts.master_address, "first master's address"))))
    elif facts.role is NodeRole.CLUSTERINIT and not settings.external_db():
        flags.append(Flag("cluster-init"))
    return flags


def _agent_flags(settings: Settings, facts: NodeFacts) -> list[Flag]:
    wanted = settings.k3s_agent.with_node_id
    with_id = wanted if wanted is not None else facts.hostname_unique is not True
    flags = [Flag("with-node-id")] if with_id else []
    if settings.vpn_used():
        flags.append(Flag("node-ip", _need(facts.virtual_ip, "virtual IP")))
        flags.append(Flag("flannel-iface", facts.vpn_interface))
    else:
        flags.append(Flag("node-ip", _need(facts.interface_ip, "interface address")))
    return flags


def _environment(settings: Settings, facts: NodeFacts) -> dict[str, str]:
    environment: dict[str, str] = {}
    if facts.role.is_server and not facts.role.standalone and settings.external_db():
        environment["K3S_DATASTORE_ENDPOINT"] = settings.external_db()
    if facts.role is NodeRole.WORKER:
        environment["K3S_URL"] = facts.server_url or server_url(_need(facts.master_address, "first master's address"))
    if facts.role in {NodeRole.WORKER, NodeRole.HA}:
        token = _need(facts.join_token, "join token").strip()
        if not _TOKEN.fullmatch(token):
            raise PeerError("the join token in the ledger is not one word of printable characters")
        environment["K3S_TOKEN"] = token
    return environment


def _need(value: str, what: str) -> str:
    if not value:
        raise LocalError(f"rendering k3s without the {what}: the caller has to wait for it")
    return value


def _given(flags: list[Flag], name: str) -> bool:
    return any(flag.name == name for flag in flags)


def _merged(generated: list[Flag], user: tuple[Flag, ...], name: str, said: list[Notice]) -> list[Flag]:
    """User's flags follow everything; a generated flag gives way to the user's own."""
    own = {flag.name for flag in user}
    kept: list[Flag] = []
    for flag in generated:
        if flag.name in SINGLE and flag.name in own:
            said.append(Notice("", 0, 0, f"{name}.args", f"replaces the generated --{flag.name}"))
        else:
            kept.append(flag)
    return [*kept, *user]


def _without_secrets(flags: list[Flag], environment: dict[str, str], name: str, said: list[Notice]) -> list[Flag]:
    kept: list[Flag] = []
    for flag in flags:
        if variable := secret_variable(flag):
            environment[variable] = flag.value or ""
            said.append(
                Notice(
                    "",
                    0,
                    0,
                    f"{name}.args",
                    f"--{flag.name} is a secret, passed as {variable}",
                    f"write it as {name}.env.{variable}",
                )
            )
        else:
            kept.append(flag)
    return kept


def _server_url_out_of_environment(
    flags: list[Flag], environment: dict[str, str], facts: NodeFacts, said: list[Notice]
) -> list[Flag]:
    """``K3S_URL`` in a server's environment means ``--server``: make it one, or leave it out on nodes that know better."""
    url = environment.pop("K3S_URL", "")
    if not url:
        return flags
    if facts.role.standalone and not _given(flags, "server"):
        said.append(
            Notice(
                "",
                0,
                0,
                "k3s.env.K3S_URL",
                "makes this server join, passed as --server",
                "write --server=URL in k3s.args",
            )
        )
        return [Flag("server", url), *flags]
    said.append(Notice("", 0, 0, "k3s.env.K3S_URL", "is left out: servers are told where to join", "remove it"))
    return flags


def _has_token(flags: list[Flag], environment: dict[str, str], facts: NodeFacts) -> bool:
    return (
        any(environment.get(variable) for variable in _TOKEN_VARIABLES)
        or any(flag.name == "token-file" and flag.value for flag in flags)
        or bool({"token", "token-file"} & facts.config_keys)
    )


def _never_join_without_token(flags: list[Flag], environment: dict[str, str], facts: NodeFacts, block: Block) -> None:
    joins = any(flag.name == "server" and flag.value for flag in flags) or "server" in facts.config_keys
    if facts.role is NodeRole.HA and not joins and not environment.get("K3S_DATASTORE_ENDPOINT"):
        key = "k3s.replace_args" if block.replace_args else "k3s.args"
        raise InvalidConfigError(
            f"{key} leaves out --server: this additional master would found a cluster of its own",
            key=key,
            hint="add --server=URL, or leave it to the provider",
        )
    if (joins or facts.role is NodeRole.HA) and not _has_token(flags, environment, facts):
        raise InvalidConfigError(
            "k3s: a server that joins without a token would silently found a cluster of its own",
            key="k3s.replace_env" if block.replace_env else "k3s.env" if block.env else "k3s",
            hint="set K3S_TOKEN in k3s.env",
        )


def _agent_knows_its_server(
    flags: list[Flag], environment: dict[str, str], facts: NodeFacts, block: Block, said: list[Notice]
) -> None:
    missing = []
    if not environment.get("K3S_URL") and not _given(flags, "server") and "server" not in facts.config_keys:
        missing.append("K3S_URL")
    if not _has_token(flags, environment, facts):
        missing.append("K3S_TOKEN")
    if not missing:
        return
    words = " and ".join(missing)
    if facts.role is NodeRole.WORKER:
        key = "k3s-agent.replace_env" if block.replace_env else "k3s-agent.env"
        raise InvalidConfigError(
            f"{key} leaves out {words}", key=key, hint="set it in k3s-agent.env, or leave it to the provider"
        )
    said.append(Notice("", 0, 0, "k3s-agent.env", f"no {words}: this agent cannot join", "set it in k3s-agent.env"))
