"""TCP sockets for the swarm: listen on what can be bound, connect an address or a name (spec/edgevpn.md 7).

What is done with the connections is :mod:`provider_kairos.mesh.swarm`'s business.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from contextlib import suppress

import trio

from provider_kairos.errors import HostError, PeerError
from provider_kairos.mesh.addresses import Endpoint, Networks
from provider_kairos.mesh.channels import TcpChannel

__all__ = ["CONNECT_TIMEOUT", "DialError", "bare", "bind", "connect", "multiaddr_of"]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds for the TCP handshake of one address."""


MAX_NAMED = 4
"""Addresses behind one name that are tried, one after the other."""


class DialError(PeerError):
    """One address could not be connected."""


def bare(host: str) -> str:
    """The address without zone, an IPv4 one as such."""
    return host.partition("%")[0].removeprefix("::ffff:")


def multiaddr_of(host: str, port: int) -> str:
    """The multiaddr of a socket's name."""
    host = bare(host)
    return f"/ip6/{host}/tcp/{port}" if ":" in host else f"/ip4/{host}/tcp/{port}"


def bind(listen: Sequence[tuple[str, int]]) -> list[trio.SocketListener]:
    """Bind what can be bound; the families that follow a port 0 get the port that the first one got."""
    listeners: list[trio.SocketListener] = []
    problems: list[str] = []
    for host, port in listen:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        chosen = port or next((each.socket.getsockname()[1] for each in listeners), 0)
        for attempt in dict.fromkeys((chosen, port)):
            try:
                bound = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            except OSError as error:  # IPv6 is switched off
                problems.append(f"{host}: {error.strerror}")
                break
            try:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                bound.bind((host, attempt))
                bound.listen(128)
            except OSError as error:
                bound.close()
                problems.append(f"{host} port {attempt}: {error.strerror}")
            else:
                listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(bound)))
                break
    if not listeners:
        raise HostError(
            f"cannot listen on any address: {'; '.join(problems)}",
            hint="stop what uses the port, or choose another listen address",
        )
    for problem in problems:
        log.warning("not listening on %s", problem)
    return listeners


async def _resolve(endpoint: Endpoint, blocked: Networks) -> list[str]:
    """The addresses behind a name, those of its family alone, in the order of the machine's resolver. Raises DialError."""
    families = {"dns4": trio.socket.AF_INET, "dns6": trio.socket.AF_INET6}
    family = families.get(endpoint.family, trio.socket.AF_UNSPEC)
    found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, family=family, type=trio.socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(each[4][0]) for each in found)
    allowed = [each for each in addresses if each not in blocked]
    if addresses and not allowed:
        raise DialError(f"{endpoint} is a name for an address in a blocked network")
    return allowed[:MAX_NAMED]


async def _open(address: str, port: int) -> trio.SocketStream:
    """One TCP handshake. Raises OSError."""
    family = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
    raw = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        with suppress(OSError):
            raw.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        await raw.connect((address, port))
    except BaseException:
        raw.close()
        raise
    return trio.SocketStream(raw)


async def connect(endpoint: Endpoint, blocked: Networks) -> TcpChannel:
    """A TCP connection to an address or name. Raises DialError."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            addresses = [endpoint.host] if endpoint.ip is not None else await _resolve(endpoint, blocked)
            for number, address in enumerate(addresses, start=1):
                try:
                    with trio.fail_after(CONNECT_TIMEOUT / len(addresses)):
                        return TcpChannel(await _open(address, endpoint.port), initiator=True)
                except (OSError, trio.TooSlowError):
                    if number == len(addresses):
                        raise
        raise DialError(f"{endpoint}: a name without an address")
    except trio.TooSlowError:
        raise DialError(f"{endpoint}: no answer within {CONNECT_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise DialError(f"{endpoint}: {error.strerror or error}") from error
    except UnicodeError as error:  # a part of the name is empty or too long for the DNS
        raise DialError(f"{endpoint} is no name") from error
