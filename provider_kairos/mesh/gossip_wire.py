"""Gossip RPCs: protobuf to values and back, message signatures (spec/edgevpn.md 4.3, 4.4).

A message keeps its encoded form, so that it is forwarded as it came. Decoding bounds every list; whatever is malformed
raises PeerError. Only Ed25519 authors exist here, as in EdgeVPN. Routing is
:mod:`provider_kairos.mesh.gossip_router`'s business.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId, public_key_of_peer_id
from provider_kairos.mesh import parts
from provider_kairos.mesh.wire import encode_varint

__all__ = ["GossipMessage", "Prune", "Rpc", "decode_rpc", "encode_rpc", "sign_message", "verify_message"]

_SIGNING_PREFIX = b"libp2p-pubsub:"
_PUBLISH_TAG = b"\x12"  # field 2, length-delimited

MAX_SUBSCRIPTIONS = 256
MAX_MESSAGES = 1024
MAX_CONTROL = 256
MAX_IDS = 5000
MAX_TOPIC = 256
MAX_BACKOFF = 3600


@dataclass(frozen=True, slots=True)
class GossipMessage:
    """One message: author and sequence number name it. ``encoded`` is the whole protobuf, signature included."""

    author: PeerId
    seqno: int
    topic: str
    data: bytes = field(repr=False)
    encoded: bytes = field(repr=False)
    message_id: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Prune:
    """Leave a mesh for ``backoff`` seconds."""

    topic: str
    backoff: int = 0


@dataclass(frozen=True, slots=True)
class Rpc:
    """What one RPC may hold. ``subscriptions`` are (subscribe?, topic); ``ihave`` are (topic, message IDs)."""

    subscriptions: tuple[tuple[bool, str], ...] = ()
    messages: tuple[GossipMessage, ...] = ()
    ihave: tuple[tuple[str, tuple[bytes, ...]], ...] = ()
    iwant: tuple[bytes, ...] = ()
    graft: tuple[str, ...] = ()
    prune: tuple[Prune, ...] = ()
    idontwant: tuple[bytes, ...] = ()
    refused: int = 0
    """Messages of a decoded RPC that were left out because they are malformed."""


def decode_rpc(data: bytes) -> Rpc:
    """Read an RPC. Raises PeerError when it is malformed or absurd; single bad messages are only counted."""
    taken = parts.load()
    rpc = taken.Rpc()
    try:
        rpc.ParseFromString(data)
        if len(rpc.subscriptions) > MAX_SUBSCRIPTIONS or len(rpc.publish) > MAX_MESSAGES:
            raise PeerError("RPC holds too many parts")
        subscriptions = tuple((bool(each.subscribe), _topic(each.topicid)) for each in rpc.subscriptions)
        messages = [_message(each) for each in rpc.publish]
        if not rpc.HasField("control"):
            return _rpc(subscriptions, messages)
        control = rpc.control
        lists = (control.ihave, control.iwant, control.graft, control.prune, control.idontwant)
        if any(len(each) > MAX_CONTROL for each in lists):
            raise PeerError("RPC holds too many control messages")
        return _rpc(
            subscriptions,
            messages,
            ihave=tuple((_topic(each.topicID), tuple(each.messageIDs[:MAX_IDS])) for each in control.ihave),
            iwant=tuple(each for want in control.iwant for each in want.messageIDs)[:MAX_IDS],
            graft=tuple(_topic(each.topicID) for each in control.graft),
            prune=tuple(Prune(_topic(each.topicID), min(int(each.backoff), MAX_BACKOFF)) for each in control.prune),
            idontwant=tuple(each for want in control.idontwant for each in want.messageIDs)[:MAX_IDS],
        )
    except (taken.DecodeError, ValueError) as error:
        raise PeerError(f"RPC is malformed: {type(error).__name__}") from error


def _rpc(
    subscriptions: tuple[tuple[bool, str], ...],
    messages: list[GossipMessage | None],
    *,
    ihave: tuple[tuple[str, tuple[bytes, ...]], ...] = (),
    iwant: tuple[bytes, ...] = (),
    graft: tuple[str, ...] = (),
    prune: tuple[Prune, ...] = (),
    idontwant: tuple[bytes, ...] = (),
) -> Rpc:
    good = tuple(message for message in messages if message is not None)
    return Rpc(subscriptions, good, ihave, iwant, graft, prune, idontwant, len(messages) - len(good))


def _topic(text: str) -> str:
    if len(text) > MAX_TOPIC:
        raise PeerError(f"topic of {len(text)} characters")
    return str(text)


def _message(message: Any) -> GossipMessage | None:
    """One message of an RPC, not yet verified; None when its fields make no sense."""
    author, seqno, topics = message.from_id, message.seqno, message.topicIDs
    if len(seqno) != 8 or len(topics) != 1 or not 0 < len(author) <= 64 or not message.signature:
        return None
    return GossipMessage(
        author=_peer_id(bytes(author)),
        seqno=int.from_bytes(seqno, "big"),
        topic=_topic(topics[0]),
        data=bytes(message.data),
        encoded=bytes(message.SerializeToString()),
        message_id=bytes(author) + bytes(seqno),
    )


@functools.lru_cache(maxsize=1024)
def _peer_id(raw: bytes) -> PeerId:
    return PeerId(base58.b58encode(raw).decode("ascii"))


def encode_rpc(rpc: Rpc) -> bytes:
    """The protobuf of an RPC."""
    taken = parts.load()
    message = taken.Rpc()
    for subscribe, topic in rpc.subscriptions:
        message.subscriptions.add(subscribe=subscribe, topicid=topic)
    if rpc.ihave or rpc.iwant or rpc.graft or rpc.prune or rpc.idontwant:
        control = message.control
        for topic, ids in rpc.ihave:
            control.ihave.add(topicID=topic, messageIDs=list(ids))
        if rpc.iwant:
            control.iwant.add(messageIDs=list(rpc.iwant))
        for topic in rpc.graft:
            control.graft.add(topicID=topic)
        for prune in rpc.prune:
            if prune.backoff:
                control.prune.add(topicID=prune.topic, backoff=prune.backoff)
            else:
                control.prune.add(topicID=prune.topic)
        if rpc.idontwant:
            control.idontwant.add(messageIDs=list(rpc.idontwant))
    # Protobuf messages may be written in any order of fields: finished messages are appended as they are.
    out = [message.SerializeToString()]
    for each in rpc.messages:
        out += (_PUBLISH_TAG, encode_varint(len(each.encoded)), each.encoded)
    return b"".join(out)


def sign_message(key: Ed25519PrivateKey, author: PeerId, seqno: int, topic: str, data: bytes) -> GossipMessage:
    """A message of ours."""
    raw_author = base58.b58decode(author)
    raw_seqno = seqno.to_bytes(8, "big")
    message = parts.load().RpcMessage(from_id=raw_author, seqno=raw_seqno, topicIDs=[topic], data=data)
    message.signature = key.sign(_SIGNING_PREFIX + message.SerializeToString())
    return GossipMessage(author, seqno, topic, data, message.SerializeToString(), raw_author + raw_seqno)


def verify_message(message: GossipMessage) -> bool:
    """Whether the author signed the message."""
    taken = parts.load()
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key_of_peer_id(message.author))
        parsed = taken.RpcMessage()
        parsed.ParseFromString(message.encoded)
        signature = bytes(parsed.signature)
        parsed.ClearField("signature")
        parsed.ClearField("key")
        key.verify(signature, _SIGNING_PREFIX + parsed.SerializeToString())
    except (InvalidSignature, PeerError, ValueError, taken.DecodeError):
        return False
    return True
