"""The specification's vectors for blocks, hashes, signed entries, FNV and the leader (5.2, 5.4, 5.11, 5.14; provider A)."""

from __future__ import annotations

import base64
import hashlib

import pytest

from provider_kairos.errors import LocalError
from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.block import Block, block_hash
from provider_kairos.ledger.entry import Entry, canonical_bytes, to_json
from provider_kairos.ledger.leader import fnv1a32, leader
from provider_kairos.ledger.signing import Signer, verify

SIGNER = Signer(b"\x07" * 32)
PEER = "12D3KooWRawPbxPtP1eZaJpumGnyWX2DcUyd3RQnydr3eAto4Az7"
VALUE = '"2024-05-06T07:08:09Z"'
SIGNED = Entry(
    VALUE,
    PEER,
    1714979289123456789,
    1714979289,
    deleted=False,
    sig=base64.b64decode("KpeKXwGHd85LOoGvkeRvEDteWTh1XAdsK1QEI4D5TEaw4xUrXeG97O8t39RFVWM8ofrbo7JWlipcbXrs5SRpBg=="),
)
CANONICAL = (
    "000000000000000b6865616c7468636865636b"
    "0000000000000034313244334b6f6f5752617750627850745031655a614a70756d476e7957583244635579643352516e796472336541746f34417a37"
    "0000000000000034313244334b6f6f5752617750627850745031655a614a70756d476e7957583244635579643352516e796472336541746f34417a37"
    "17ccd493bd5b0715"
    "00000000663881d9"
    "00"
    "000000000000001622323032342d30352d30365430373a30383a30395a22"
)
MACHINE = (
    '{"PeerID":"12D3KooWX","Hostname":"a<b>&c","OS":"linux","Arch":"amd64","Address":"10.1.0.2","Version":"v0.35.4"}'
)


def test_genesis_hash():
    empty = Block(0, "", {}, "", "")
    assert block_hash(empty) == block_hash(empty, legacy_form=True) == blocks.GENESIS_HASH
    assert hashlib.sha256(b"0map[]").hexdigest() == blocks.GENESIS_HASH
    assert blocks.genesis(0).hash == blocks.GENESIS_HASH


def header(storage: blocks.Storage) -> Block:
    return Block(1, "2024-05-06 07:08:09.123456789 +0000 UTC", storage, "", blocks.GENESIS_HASH)


def test_hash_of_unsigned_entries():
    storage = {"healthcheck": {"12D3KooWX": Entry(VALUE)}, "machines": {"10.1.0.2": Entry(MACHINE)}}
    assert block_hash(header(storage)) == "83faf5a2549e222271084283c65b482e9ba8ea342a498da54972e91397074bcc"


def test_hash_of_a_signed_entry():
    storage = {"healthcheck": {PEER: SIGNED}}
    assert block_hash(header(storage)) == "919d6d73ccfc733dcd6055562a1696c31f9598b76e81f25ef9953f88dc9e7e94"


def test_go_timestamps():
    assert blocks.go_timestamp(1714979289123456789) == "2024-05-06 07:08:09.123456789 +0000 UTC"
    assert blocks.go_timestamp(1714979289120000000) == "2024-05-06 07:08:09.12 +0000 UTC"
    assert blocks.go_timestamp(1714979289000000000) == "2024-05-06 07:08:09 +0000 UTC"


def test_signed_entry_canonical_bytes():
    raw = canonical_bytes("healthcheck", PEER, SIGNED)
    assert raw == bytes.fromhex(CANONICAL)
    assert len(raw) == 186
    assert hashlib.sha256(raw).hexdigest() == "e72599ff5bc1c7a165776b0f33b43046efeb1560e79ce50994def45e2b910600"


def test_signed_entry_signature():
    assert SIGNER.peer_id == PEER
    assert SIGNER.sign("healthcheck", PEER, VALUE, 1714979289123456789, 1714979289) == SIGNED
    assert verify("healthcheck", PEER, SIGNED)


def test_tombstone_signature():
    tombstone = SIGNER.sign("kairos", "u1-role", "", 1714979290000000000, 1714979290, deleted=True)
    expected = "yXlCyOWgXFxTrHsZpj883F89aSc37BhBe2hOY4sPe4HSstYZXCnil9/8bDb7Z/oL3ed+XZTc2ammxgH3s0X5DQ=="
    assert base64.b64encode(tombstone.sig).decode() == expected
    assert verify("kairos", "u1-role", tombstone)


def test_signed_entry_json():
    assert to_json(SIGNED) == (
        '{"Value":"\\"2024-05-06T07:08:09Z\\"","Owner":"' + PEER + '","Version":1714979289123456789,'
        '"UpdatedAt":1714979289,"Deleted":false,'
        '"Sig":"KpeKXwGHd85LOoGvkeRvEDteWTh1XAdsK1QEI4D5TEaw4xUrXeG97O8t39RFVWM8ofrbo7JWlipcbXrs5SRpBg=="}'
    )
    assert to_json(Entry(VALUE)) == '"\\"2024-05-06T07:08:09Z\\""'


@pytest.mark.parametrize("field", ["bucket", "key", "value", "owner", "version", "updated_at", "deleted", "sig"])
def test_a_signature_covers_every_field(field: str):
    other = Signer(b"\x08" * 32).peer_id
    bucket = "machines" if field == "bucket" else "healthcheck"
    key = other if field == "key" else PEER
    changes = {"value": "x", "owner": other, "version": 5, "updated_at": 5, "deleted": True, "sig": bytes(64)}
    fields = {name: getattr(SIGNED, name) for name in changes}
    if field in changes:
        fields[field] = changes[field]
    assert not verify(bucket, key, Entry(**fields))


def test_an_owner_without_an_ed25519_key_cannot_be_verified():
    for owner in ("", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "not a peer ID", "1" * 100):
        assert not verify("b", "k", Entry("v", owner, 1, 1, deleted=False, sig=b"\x01" * 64))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0x811C9DC5),
        ("a", 0xE40C292C),
        ("foobar", 0xBF9CF968),
        ("node-1", 0x54C43383),
        ("node-2", 0x55C43516),
        ("node-3", 0x56C436A9),
        ("12D3KooWA", 2214487526),
        ("12D3KooWB", 2197709907),
        ("12D3KooWC", 2180932288),
        ("12D3KooWD", 2298375621),
    ],
)
def test_fnv1a32(text: str, value: int):
    assert fnv1a32(text.encode()) == value


@pytest.mark.parametrize(
    ("candidates", "winner"),
    [
        ("a b c d", "b"),
        ("a b c d e f G bb z b1 b2", "z"),
        ("1 2 3 4 5", "2"),
        ("1 2 3 4 5 6 7 21 22", "22"),
        ("node-1 node-2 node-3", "node-3"),
        ("12D3KooWA 12D3KooWB 12D3KooWC 12D3KooWD", "12D3KooWD"),
        (
            (
                "be249c08f7f043f0a16243985875afc2-kairos-be24 0e34593a16cc4eab96b149dfa653ac79-kairos-0e34 "
                "690b186899e44cf3b7139659271d9d5f-kairos-690b dd24ec0920764fec8748213c161b9079-kairos-dd24"
            ),
            "690b186899e44cf3b7139659271d9d5f-kairos-690b",
        ),
    ],
)
def test_leader(candidates: str, winner: str):
    assert leader(candidates.split()) == winner


def test_leader_of_nobody_is_a_bug():
    with pytest.raises(LocalError):
        leader([])
