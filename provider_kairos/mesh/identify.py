"""Identify, identify-push and ping (spec/edgevpn.md 4.3, 7): who we are, what we serve, whether we live.

Go opens no stream on a connection before identify has answered, and learns there which protocols we serve, so an
answer must always be quick and a changed list must be pushed. Messages are made and read here; streams and the
decision when to ask are :mod:`provider_kairos.mesh.host`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from provider_kairos.errors import PeerError
from provider_kairos.mesh import parts
from provider_kairos.mesh.addresses import Endpoint, parse_endpoint
from provider_kairos.mesh.wire import Read, encode_delimited, read_delimited

__all__ = ["IDENTIFY", "MAX_MESSAGE", "PING", "PUSH", "Identity", "decode", "encode", "read"]

IDENTIFY = "/ipfs/id/1.0.0"
PUSH = "/ipfs/id/push/1.0.0"
PING = "/ipfs/ping/1.0.0"
PING_LENGTH = 32

MAX_MESSAGE = 64 * 1024
"""Longest identify message in bytes; Go's limit is 8 KiB per part."""

MAX_ADDRESSES = 64
MAX_PROTOCOLS = 256


@dataclass(frozen=True, slots=True)
class Identity:
    """What a peer says of itself; nothing here is proven."""

    agent: str
    protocols: frozenset[str]
    endpoints: tuple[Endpoint, ...]


def encode(
    public_key: bytes, addresses: Iterable[str], protocols: Iterable[str], agent: str, observed: str | None
) -> bytes:
    """Our identify message with its length in front. ``public_key`` is the libp2p protobuf of the key."""
    taken = parts.load()
    message = taken.Identify(
        protocol_version="",
        agent_version=agent,
        public_key=public_key,
        listen_addrs=[taken.Multiaddr(address).to_bytes() for address in addresses],
        protocols=list(protocols),
    )
    if observed is not None:
        message.observed_addr = taken.Multiaddr(observed).to_bytes()
    return encode_delimited(message.SerializeToString())


def decode(data: bytes) -> Identity:
    """Read a peer's message. Raises PeerError. Addresses that we cannot dial are left out."""
    taken = parts.load()
    message = taken.Identify()
    try:
        message.ParseFromString(data)
        agent = str(message.agent_version)[:128]
        protocols = frozenset(str(protocol) for protocol in message.protocols[:MAX_PROTOCOLS])
    except (taken.DecodeError, ValueError) as error:
        raise PeerError(f"identify message is malformed: {type(error).__name__}") from error
    endpoints = []
    for raw in message.listen_addrs[:MAX_ADDRESSES]:
        try:
            text = str(taken.Multiaddr(bytes(raw)))
        except Exception:  # noqa: BLE001, S112 - the library raises KeyError, ValueError, struct.error and more on garbage
            continue
        if (parsed := parse_endpoint(text)) is not None:
            endpoints.append(parsed[0])
    return Identity(agent, protocols, tuple(dict.fromkeys(endpoints)))


async def read(read_some: Read) -> Identity:
    """Read one message from a stream's ``read``. Raises PeerError."""
    return decode(await read_delimited(read_some, MAX_MESSAGE))
