"""Every stored gossip message of real EdgeVPN nodes opens, verifies and re-encodes to the same bytes.

The recordings come from EdgeVPN v0.35.4 (modes enforce, observe, off, and with peer guard) and v0.30.2.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import base58
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from provider_kairos.ids import public_key_of_peer_id
from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.signing import verify
from provider_kairos.token import codec, envelope, otp, seal

RECORDINGS = Path(__file__).parent / "recordings"
FILES = (
    "messages-030.jsonl",
    "messages-035-enforce.jsonl",
    "messages-035-guard.jsonl",
    "messages-035-observe.jsonl",
    "messages-035-off.jsonl",
)


@dataclass(frozen=True)
class Recorded:
    token: codec.NetworkToken
    message: dict[str, Any]

    @property
    def unix(self) -> float:
        return float(self.message["t"]) / 1e9

    @property
    def sealed(self) -> str:
        return envelope.decode(self.message["data"].encode()).message

    def open(self) -> tuple[otp.Epoch, bytes]:
        """The epoch whose key opens the message, among those that a node tries at the receipt time."""
        previous, current, following = otp.epochs_around(self.token, self.unix)
        for epoch in (current, previous, following):
            if epoch is not None:
                try:
                    return epoch, seal.unseal(epoch.seal_key, self.sealed)
                except seal.SealError:
                    continue
        raise AssertionError("no key of the receipt time opens it")


def load() -> list[Any]:
    found = []
    for name in FILES:
        token = None
        for number, line in enumerate((RECORDINGS / name).read_text().splitlines()):
            record = json.loads(line)
            if record["record"] == "header":
                token = codec.decode(record["token"])
            elif record["record"] == "message":
                assert token is not None
                found.append(pytest.param(Recorded(token, record), id=f"{name.removesuffix('.jsonl')}:{number}"))
    return found


MESSAGES = load()
LEDGER = [param for param in MESSAGES if param.values[0].message.get("room") != "public"]
PUBLIC = [param for param in MESSAGES if param.values[0].message.get("room") == "public"]


def field(number: int, data: bytes) -> bytes:
    """One length-delimited protobuf field."""
    length, size = b"", len(data)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def test_the_recordings_are_complete():
    assert (len(MESSAGES), len(PUBLIC)) == (195, 21)


@pytest.mark.parametrize("recorded", MESSAGES)
def test_pubsub_signature_is_valid_and_the_rpc_rebuilds(recorded: Recorded):
    message = recorded.message
    author = base58.b58decode(message["from"])
    body = (
        field(1, author)
        + field(2, message["data"].encode())
        + field(3, bytes.fromhex(message["seqno"]))
        + field(4, message["topic"].encode())
    )
    signature = bytes.fromhex(message["signature"])
    key = Ed25519PublicKey.from_public_bytes(public_key_of_peer_id(message["from"]))
    key.verify(signature, b"libp2p-pubsub:" + body)  # raises when wrong
    if "rpc" in message:
        assert field(2, body + field(5, signature)) == base64.b64decode(message["rpc"])


@pytest.mark.parametrize("recorded", MESSAGES)
def test_envelope_re_encodes_to_the_same_bytes(recorded: Recorded):
    data = recorded.message["data"].encode()
    assert envelope.encode(envelope.decode(data)) == data


@pytest.mark.parametrize("recorded", MESSAGES)
def test_opens_with_a_key_of_the_receipt_time_and_seals_to_the_same_text(recorded: Recorded):
    epoch, plaintext = recorded.open()
    if "step" in recorded.message:
        assert epoch.counter == recorded.message["step"]
    nonce = bytes.fromhex(recorded.sealed)[: seal.NONCE_LENGTH]
    assert seal.seal(epoch.seal_key, plaintext, nonce) == recorded.sealed


@pytest.mark.parametrize("recorded", MESSAGES)
def test_topic_is_the_epochs_or_the_one_before(recorded: Recorded):
    current = otp.epoch_at(recorded.token, recorded.unix)
    before = otp.epoch_at(recorded.token, current.starts - 1)
    public = recorded.message.get("room") == "public"
    topics = {epoch.public_topic if public else epoch.topic for epoch in (current, before)}
    assert recorded.message["topic"] in topics


@pytest.mark.parametrize("recorded", PUBLIC)
def test_public_room_carries_text(recorded: Recorded):
    assert recorded.open()[1].decode() == recorded.message["text"]


@pytest.mark.parametrize("recorded", LEDGER)
def test_block_unpacks_and_re_encodes_to_the_same_text(recorded: Recorded):
    _, plaintext = recorded.open()
    assert plaintext[:10] == blocks.GZIP_HEADER == bytes.fromhex(recorded.message["gzip_header"])
    block = blocks.unpack(plaintext)
    text = recorded.message["block"].encode()
    assert blocks.encode(block) == text
    packed = blocks.pack(block)
    assert packed[:10] == blocks.GZIP_HEADER
    assert zlib.decompress(packed, zlib.MAX_WBITS | 16) == text


@pytest.mark.parametrize("recorded", LEDGER)
def test_hash_recomputes(recorded: Recorded):
    block = blocks.decode(recorded.message["block"].encode())
    assert blocks.block_hash(block, legacy_form=recorded.message["hash_form"] == "v0.34") == block.hash


@pytest.mark.parametrize("recorded", LEDGER)
def test_every_signed_entry_verifies(recorded: Recorded):
    block = blocks.decode(recorded.message["block"].encode())
    for bucket, entries in block.storage.items():
        for key, entry in entries.items():
            assert entry.legacy or verify(bucket, key, entry), (bucket, key)
