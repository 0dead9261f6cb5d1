"""Where the name server listens and where it forwards: ``HOST:PORT`` as EdgeVPN writes it (spec/edgevpn.md 10, 12.2)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from provider_kairos.errors import ConfigError

__all__ = ["DEFAULT_PORT", "Endpoint", "parse_listen", "parse_server", "reaches"]

DEFAULT_PORT = 53


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``host`` is empty for every address of this machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _split(text: str, what: str) -> Endpoint:
    rest = text.strip()
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = rest, str(DEFAULT_PORT)  # a bare address, of either family
    if not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:
        raise ConfigError(f"{what}={text!r} has no port", hint="write HOST:PORT, for example 127.0.0.1:53")
    bare = host.removeprefix("[").removesuffix("]")
    if any(c in bare for c in "/@[]? "):
        raise ConfigError(f"{what}={text!r} is no address", hint="write HOST:PORT, for example 127.0.0.1:53")
    return Endpoint(bare, int(port))


def parse_listen(text: str, what: str = "DNSADDRESS") -> Endpoint:
    """Where to listen: ``HOST:PORT``, ``[HOST]:PORT`` or ``:PORT``. Raises ConfigError that begins with ``what``."""
    return _split(text, what)


def parse_server(text: str, what: str = "DNSFORWARDSERVER") -> Endpoint:
    """A server to ask. A name is refused: this node may be the one that resolves it. Raises ConfigError."""
    server = _split(text, what)
    try:
        ip_address(server.host.partition("%")[0])
    except ValueError:
        raise ConfigError(
            f"{what}={text!r} is no IP address", hint="name servers are given by address, for example 192.168.1.1:53"
        ) from None
    return server


def reaches(server: Endpoint, listen: Endpoint) -> bool:
    """Whether what is sent to ``server`` plainly arrives at ``listen`` on this machine."""
    if server.port != listen.port:
        return False
    if server.host == listen.host:
        return True
    address = ip_address(server.host.partition("%")[0])
    if address.is_unspecified:
        return True  # the kernel takes it for loopback
    if listen.host in {"", "0.0.0.0", "::"}:
        return address.is_loopback
    return address.is_loopback and listen.host == "localhost"
