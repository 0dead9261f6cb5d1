"""The text of an enormous block is shortened before it is parsed: large buckets give way, nothing else does."""

from __future__ import annotations

import json

import pytest

from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.block import Block, BlockError
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.trim import trim

SIGNED = Entry('"2024"', "owner", 5, 6, deleted=False, sig=b"s" * 64)


def flooded(keys, **more):
    flood = {f"key-{number:07d}": Entry('"a \\"value\\""') for number in range(keys)}
    return Block(1, "t", {"flood": flood, **more}, "h", "p")


def test_a_flood_gives_way_and_small_buckets_and_signed_records_stay():
    small = {"a": Entry("1"), "b": Entry("2")}
    healthcheck = {f"peer{number}": SIGNED for number in range(200)}
    block = flooded(100_000, roles=small, healthcheck=healthcheck)
    block.storage["flood"]["signed among them"] = SIGNED
    text = blocks.encode(block)
    trimmed = trim(text, 500_000)
    assert trimmed is not None
    assert 400_000 < len(trimmed.text) <= 500_000
    read = blocks.decode(trimmed.text)
    assert (read.storage["roles"], read.storage["healthcheck"]) == (small, healthcheck)
    assert read.storage["flood"]["signed among them"] == SIGNED
    assert len(read.storage["flood"]) + trimmed.dropped == 100_001


def test_two_floods_share_what_there_is():
    block = flooded(50_000)
    block.storage["other"] = dict(block.storage["flood"])
    trimmed = trim(blocks.encode(block), 1_000_000)
    assert trimmed is not None
    sizes = [len(bucket) for bucket in blocks.decode(trimmed.text).storage.values()]
    assert min(sizes) > 0.9 * max(sizes)


def test_a_bucket_of_which_nothing_is_left_is_absent():
    trimmed = trim(blocks.encode(Block(1, "t", {"a": {"k": Entry("x" * 1000)}, "b": {}}, "h", "p")), 500)
    assert trimmed is not None
    assert (json.loads(trimmed.text)["Storage"], trimmed.dropped) == ({"b": {}}, 1)


def test_signed_records_are_never_cut_so_too_many_of_them_cannot_be_trimmed():
    block = Block(1, "t", {"healthcheck": {f"peer{number}": SIGNED for number in range(1000)}}, "h", "p")
    assert trim(blocks.encode(block), 10_000) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"Index": 1}',
        b'{"Index":1,"Timestamp":"t","Storage":{"a":{"k":5}},"Hash":"h","PrevHash":"p"}',
        b'{"Index":1,"Timestamp":"t","Storage":{"a":{"k":"v"}},"Hash":"h","PrevHash":"p"}trailing',
        b'{"Index":1,"Timestamp":"t","Storage":{"a":{"k":"v"}"b":{}},"Hash":"h","PrevHash":"p"}',
        b'{"Index":1,"Timestamp":"t","Storage":{"a":{"k":{"Value":{}}}},"Hash":"h","PrevHash":"p"}',
        b'{"Index":1,"Timestamp":"t","Storage":{"a":{"k":"v',
    ],
)
def test_what_go_does_not_write_is_not_trimmed(text):
    assert trim(text, 10) is None


@pytest.mark.parametrize("storage", [b'"a":{' + b'"":{},"":"",' * 300_000 + b"}", b'"a":{},' * 300_000])
def test_what_is_made_of_very_many_pieces_is_not_trimmed(storage):
    assert trim(b'{"Index":1,"Timestamp":"t","Storage":{' + storage + b'},"Hash":"h","PrevHash":"p"}', 1000) is None


def test_an_enormous_block_is_read_as_far_as_it_is_taken():
    """Thirty megabytes of a flood, and the heartbeat behind it is there."""
    block = flooded(700_000, healthcheck={"peer": SIGNED})
    text = blocks.encode(block)
    assert len(text) > 20_000_000
    read = blocks.unpack(blocks.pack_text(text), most=20_000)
    assert read.storage["healthcheck"] == {"peer": SIGNED}
    assert len(read.storage["flood"]) == 20_000
    assert read.surplus == 680_000


def test_an_enormous_block_that_cannot_be_trimmed_is_refused():
    with pytest.raises(BlockError, match="more than"):
        blocks.unpack(blocks.pack_text(b'{"Index": 1, "Storage": {' + b" " * (17 << 20) + b"}}"))
