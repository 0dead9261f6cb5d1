"""The name server (spec/edgevpn.md 10, 12.2)."""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.daemon.environment import (
    Variable,
    WithoutEffect,
    parse_bool,
    parse_list,
    parse_number,
    parse_text,
)
from provider_kairos.dns.address import Endpoint, parse_listen, parse_server, reaches
from provider_kairos.errors import ConfigError

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "DnsSettings"]

MAX_CACHE = 100_000
"""Answers in the cache; each takes some kilobytes."""


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """The name server; off without ``listen``. Raises ConfigError for what cannot be an address, and for a loop."""

    listen: str = ""
    forward: bool = True
    forward_servers: tuple[str, ...] = ("8.8.8.8:53", "1.1.1.1:53")
    cache_size: int = 200

    def __post_init__(self) -> None:
        if self.cache_size > MAX_CACHE:
            raise ConfigError(f"DNSCACHESIZE={self.cache_size} is too large", hint=f"at most {MAX_CACHE}")
        servers = self.servers()
        if not self.listen:
            return
        listen = self.endpoint()
        for server in servers if self.forward else ():
            if reaches(server, listen):
                raise ConfigError(
                    f"DNSFORWARDSERVER={server} is the name server itself, which listens at {listen}",
                    hint="name a server outside of this node, or set DNSFORWARD=false",
                )

    def endpoint(self) -> Endpoint:
        """Where to listen."""
        return parse_listen(self.listen)

    def servers(self) -> tuple[Endpoint, ...]:
        """Where to forward to."""
        return tuple(map(parse_server, self.forward_servers))


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "DNSADDRESS",
        "listen",
        parse_text,
        "answer names at this `HOST:PORT`, over UDP and TCP; empty: no name server",
        flag="--dns",
    ),
    Variable(
        "DNSFORWARD", "forward", parse_bool, "ask other servers for names outside the mesh", flag="--dns-forwarder"
    ),
    Variable(
        "DNSFORWARDSERVER",
        "forward_servers",
        parse_list,
        "which ones: IP addresses with port, with commas",
        flag="--dns-forward-server",
    ),
    Variable(
        "DNSCACHESIZE",
        "cache_size",
        parse_number,
        "their answers that are kept, each for as long as it says; 0: none",
        flag="--dns-cache-size",
    ),
)

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = ()
