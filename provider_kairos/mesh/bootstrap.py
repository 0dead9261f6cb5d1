"""Bootstrap peers: what the user wrote, and where they are now (spec/edgevpn.md 6.2; libp2p specs/addressing, dnsaddr).

A bootstrap address ends in ``/p2p/ID``: who answers there must prove to be that peer. ``/dnsaddr/NAME`` stands for the
addresses in the TXT records of ``_dnsaddr.NAME``, which may refer to further names; answers are bounded in number and
depth and remembered for a while. Other names are resolved when they are dialled.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from provider_kairos.errors import ConfigError, UnreachableError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import multiaddr
from provider_kairos.mesh.addresses import NAME, Endpoint, parse_endpoint

__all__ = ["DEFAULT_PEERS", "Bootstrap", "BootstrapAddress", "parse_bootstrap", "resolve_txt"]

log = logging.getLogger(__name__)

DEFAULT_PEERS = (
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
    "/ip4/104.131.131.82/tcp/4001/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
)
"""The public DHT's, as go-libp2p-kad-dht names them."""

TXT_TIMEOUT = 5.0
REMEMBER, REMEMBER_FAILURE = 600.0, 20.0
"""Seconds for which answers, and their absence, are believed."""

MAX_DEPTH = 4
MAX_NAMES = 32
MAX_TEXTS = 64
MAX_ENDPOINTS = 16

ResolveTxt = Callable[[str], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class BootstrapAddress:
    """One address of a bootstrap peer: an ``endpoint`` that TCP can dial, or a name to ask the DNS for, or neither."""

    text: str
    peer: PeerId
    endpoint: Endpoint | None = None
    dnsaddr: str = ""


def parse_bootstrap(text: str) -> BootstrapAddress:
    """Read an address. Raises ConfigError that says what is wrong with it.

    One over another transport than TCP is read: EdgeVPN nodes may have it in the same file. It is only not dialled.
    """
    text = text.strip()
    binary = multiaddr.encode(text)
    parts = multiaddr.split(binary) or ()
    peer = multiaddr.peer_id(parts[-1][1]) if parts and len(parts) > 1 and parts[-1][0] == multiaddr.P2P else None
    if peer is None:
        raise ConfigError(f"{text!r} does not end in /p2p/ID", hint="the peer's ID is in its status and in its log")
    if parts[0][0] == multiaddr.DNSADDR and len(parts) == 2:
        return BootstrapAddress(text, peer, dnsaddr=parts[0][1].decode("ascii"))
    return BootstrapAddress(text, peer, endpoint=multiaddr.endpoint_of(binary))


async def resolve_txt(name: str) -> list[str]:
    """The TXT records of a name, by the machine's resolver. Raises UnreachableError."""
    import dns.asyncresolver  # noqa: PLC0415 - only where a /dnsaddr is to be resolved
    import dns.exception  # noqa: PLC0415

    try:
        answer = await dns.asyncresolver.Resolver().resolve(name, "TXT", lifetime=TXT_TIMEOUT)
    except (dns.exception.DNSException, OSError) as error:
        raise UnreachableError(f"{name}: {type(error).__name__}") from error
    return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]


class Bootstrap:
    """The bootstrap peers of one node."""

    def __init__(self, addresses: Iterable[str], resolve: ResolveTxt = resolve_txt) -> None:
        """Raises ConfigError for an address that makes no sense."""
        self.addresses = tuple(dict.fromkeys(map(parse_bootstrap, addresses)))
        self._resolve = resolve
        self._answers: dict[str, tuple[float, tuple[str, ...]]] = {}

    @property
    def named(self) -> bool:
        """Whether the DNS has to be asked."""
        return any(each.dnsaddr for each in self.addresses)

    def ids(self) -> list[PeerId]:
        """Every bootstrap peer, each once."""
        return list(dict.fromkeys(each.peer for each in self.addresses))

    async def peers(self) -> dict[PeerId, tuple[Endpoint, ...]]:
        """Where each can be dialled now; nowhere when a name does not resolve, or there is no TCP address."""
        found: dict[PeerId, dict[Endpoint, None]] = {peer: {} for peer in self.ids()}
        for each in self.addresses:  # one after the other: peers behind one name share its answer
            if each.endpoint is not None:
                found[each.peer][each.endpoint] = None
            elif each.dnsaddr:
                found[each.peer].update(dict.fromkeys(await self._look_up(each)))
        return {peer: tuple(endpoints)[:MAX_ENDPOINTS] for peer, endpoints in found.items()}

    async def _look_up(self, address: BootstrapAddress) -> list[Endpoint]:
        """The TCP addresses of one peer behind a name."""
        names, asked = [address.dnsaddr], set[str]()
        found: list[Endpoint] = []
        for _ in range(MAX_DEPTH):
            following: list[str] = []
            for name in names:
                if name in asked or len(asked) >= MAX_NAMES:
                    continue
                asked.add(name)
                for text in await self._texts(name):
                    host = _referred(text, address.peer)
                    if host:
                        following.append(host)
                    elif (parsed := parse_endpoint(text)) is not None and parsed[1] == address.peer:
                        found.append(parsed[0])
            names = following
        return found

    async def _texts(self, name: str) -> tuple[str, ...]:
        """The addresses in the records of a name."""
        texts: tuple[str, ...] = ()
        known = self._answers.get(name)
        now = trio.current_time()
        if known is not None and now < known[0]:
            return known[1]
        try:
            records = await self._resolve(f"_dnsaddr.{name}")
        except UnreachableError as error:
            log.debug("bootstrap: %s", error)
            until = now + REMEMBER_FAILURE
        else:
            texts = tuple(each.removeprefix("dnsaddr=") for each in records[:MAX_TEXTS] if each.startswith("dnsaddr="))
            until = now + REMEMBER
        if len(self._answers) >= MAX_TEXTS:
            self._answers.clear()
        self._answers[name] = (until, texts)
        return texts


def _referred(text: str, peer: PeerId) -> str:
    """The name that a record refers to for ``peer``; empty when it refers to none."""
    words = text.split("/")
    if len(words) == 5 and words[:2] == ["", "dnsaddr"] and words[3:] == ["p2p", peer] and NAME.fullmatch(words[2]):
        return words[2]
    return ""
