"""TCP addresses as people write them: ``HOST:PORT``, ``:PORT``, ``[::1]:PORT``."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from provider_kairos.errors import ConfigError, HostError, PermissionHostError

__all__ = ["Endpoint", "bind", "parse_endpoint"]

BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``host`` is empty where all addresses (to listen) or this machine (to dial) are meant."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str, *, what: str = "address") -> Endpoint:
    """Read an address. Raises ConfigError."""
    hint = "HOST:PORT, for example 127.0.0.1:8080"
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"the {what} {text!r} has no port", hint=hint)
    if ":" in host and not bracketed:
        raise ConfigError(f"the {what} {text!r} is not clear: an IPv6 address stands in brackets", hint="[::1]:8080")
    host = host[1:-1] if bracketed else host
    if any(c in host for c in "/@?# ") or not host.isprintable():
        raise ConfigError(f"the {what} {text!r} holds no host name", hint=hint)
    return Endpoint(host, int(port))


def bind(endpoint: Endpoint) -> list[socket.socket]:
    """Listening sockets, one for each address that the host stands for. Raises HostError.

    Port 0 takes a free port, the same for all. An empty host is every address of this machine. A family that the
    machine does not have is left out, a port that something else has is an error.
    """
    bound: list[socket.socket] = []
    problems: list[OSError] = []
    port = endpoint.port
    for family, address in _addresses(endpoint):
        try:
            listener = _listen(family, address, port)
        except OSError as error:
            problems.append(error)
        else:
            port = port or listener.getsockname()[1]
            bound.append(listener)
    fatal = next((each for each in problems if each.errno in {errno.EADDRINUSE, errno.EACCES}), None)
    if bound and fatal is None:
        return bound
    for listener in bound:
        listener.close()
    if fatal is not None and fatal.errno == errno.EACCES:
        raise PermissionHostError(f"cannot listen on {endpoint}: {fatal.strerror}", hint="take a port above 1023")
    words = (fatal or problems[0]).strerror
    raise HostError(f"cannot listen on {endpoint}: {words}", hint="stop what uses the port, or name another address")


def _listen(family: int, address: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _addresses(endpoint: Endpoint) -> list[tuple[socket.AddressFamily, str]]:
    if not endpoint.host:
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except OSError:
        try:
            found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise HostError(f"cannot listen on {endpoint}: {error.strerror}", hint="name an address") from error
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))
