"""Reading blocks: as lenient as Go, never more, and bounded."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.block import Block, BlockError
from provider_kairos.ledger.entry import Entry, LedgerError


def decode(storage: str) -> blocks.Storage:
    return blocks.decode(
        f'{{"Index":1,"Timestamp":"t","Storage":{storage},"Hash":"h","PrevHash":"p"}}'.encode()
    ).storage


def test_both_encodings_side_by_side():
    storage = decode(
        '{"b":{"old":"\\"v\\"","new":{"Value":"1","Owner":"o","Version":18446744073709551615,"Sig":"AQI="}}}'
    )
    assert storage["b"]["old"] == Entry('"v"')
    assert storage["b"]["new"] == Entry("1", "o", 2**64 - 1, 0, deleted=False, sig=b"\x01\x02")


def test_field_names_in_any_case_unknown_ignored_null_is_zero():
    storage = decode(
        '{"b":{"k":{"VALUE":"1","owner":"o","Future":[1],"Version":null,"Sig":null}},"empty":null,"n":{"x":null}}'
    )
    assert storage == {"b": {"k": Entry("1", "o")}, "empty": {}, "n": {"x": Entry("")}}


def test_a_version_above_2_to_53_stays_exact():
    exact = 1714979289123456789
    assert decode(f'{{"b":{{"k":{{"Value":"1","Version":{exact}}}}}}}')["b"]["k"].version == exact


@pytest.mark.parametrize(
    "entry",
    [
        "5",
        "true",
        "[]",
        '{"Version":1.0e18}',
        '{"Version":1.0}',
        '{"Version":-1}',
        '{"Version":18446744073709551616}',
        '{"Version":"1"}',
        '{"Version":true}',
        '{"UpdatedAt":9223372036854775808}',
        '{"UpdatedAt":1.5}',
        '{"Deleted":0}',
        '{"Value":5}',
        '{"Owner":[]}',
        '{"Sig":"???"}',
        '{"Sig":5}',
    ],
)
def test_one_entry_that_go_refuses_spoils_the_block(entry: str):
    with pytest.raises(LedgerError):
        decode(f'{{"b":{{"good":"v","bad":{entry}}}}}')


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"Index":1.5}',
        b'{"Index":"1"}',
        b'{"Index":9223372036854775807}',
        b'{"Storage":[]}',
        b'{"Storage":{"b":5}}',
        b'{"Hash":5}',
        b'{"Index":' + b"9" * 10_000 + b"}",
        b'{"Storage":' + b'{"a":' * 50_000,
        b'{"Storage":NaN}',
    ],
)
def test_what_is_no_block(text: bytes):
    with pytest.raises(BlockError):
        blocks.decode(text)


def test_missing_fields_are_zero_values():
    assert blocks.decode(b"{}") == Block(0, "", {}, "", "")


def test_all_gzip_members_are_read():
    text = blocks.encode(Block(3, "t", {"b": {"k": Entry("v")}}, "h", "p"))
    assert blocks.unpack(gzip.compress(text[:20]) + gzip.compress(text[20:])).index == 3


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", zlib.compress(b"{}"), gzip.compress(b"{}")[:-3], gzip.compress(b"{}") + b"x"],
    ids=["empty", "text", "zlib", "cut", "more"],  # a gzip header holds the time
)
def test_what_is_no_gzip(data: bytes):
    with pytest.raises(BlockError):
        blocks.unpack(data)


def test_a_bomb_is_not_unpacked():
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    with pytest.raises(BlockError, match="more than 4000 bytes"):
        blocks.unpack(bomb, limit=1000)
    with pytest.raises(BlockError, match="more than"):
        blocks.unpack(bomb)


def test_a_stream_of_very_many_members_is_not_read():
    with pytest.raises(BlockError, match="members"):
        blocks.unpack(gzip.compress(b"") * 100_000)


def test_keys_are_sorted_and_html_is_escaped():
    text = blocks.encode(Block(1, "t", {"b": {"z": Entry("<"), "a": Entry('"&"')}, "a": {}}, "h", "p")).decode()
    assert text == (
        '{"Index":1,"Timestamp":"t","Storage":{"a":{},"b":{"a":"\\"\\u0026\\"","z":"\\u003c"}},"Hash":"h","PrevHash":"p"}'
    )
    assert json.loads(text)["Storage"]["b"]["z"] == "<"


def unsigned(names):
    return dict.fromkeys(names, "1")


def limited(storage, held, most):
    text = json.dumps({"Index": 1, "Storage": storage}).encode()
    read = blocks.decode(text, {name: {key: Entry("0") for key in keys} for name, keys in held.items()}, most)
    return {name: set(records) for name, records in read.storage.items()}, read.surplus


def test_surplus_unsigned_records_are_left_out_and_counted():
    found, surplus = limited({"flood": unsigned(map(str, range(1000)))}, {}, 100)
    assert found == {"flood": set(map(str, range(100)))}
    assert surplus == 900


def test_surplus_of_a_bucket_never_costs_what_we_hold():
    flood = unsigned(map(str, range(1000)))
    found, surplus = limited({"roles": flood | unsigned(["z-known"])}, {"roles": ["z-known", "gone"]}, 100)
    assert found["roles"] == set(map(str, range(99))) | {"z-known"}
    assert surplus == 901


def test_surplus_never_costs_small_buckets_even_when_the_flood_is_held_and_they_are_not():
    flood = list(map(str, range(1000)))
    storage = {"flood": unsigned(flood), "new": unsigned("abc"), "newer": unsigned("de")}
    found, surplus = limited(storage, {"flood": flood[:100]}, 100)
    assert (found["new"], found["newer"]) == (set("abc"), set("de"))
    assert len(found["flood"]) == 95
    assert surplus == 905


def test_surplus_buckets_give_way_to_held_ones():
    storage = {f"a{number}": unsigned("k") for number in range(1000)} | {"mine": unsigned("k")}
    found, surplus = limited(storage, {"mine": []}, 100)
    assert found["mine"] == {"k"}
    assert len(found) == 100
    assert surplus == 901


def test_signed_records_are_no_surplus():
    signed = {f"s{number}": {"Value": "1", "Owner": "o", "Version": 1} for number in range(50)}
    found, surplus = limited({"b": unsigned(map(str, range(50))) | signed}, {}, 10)
    assert signed.keys() <= found["b"]
    assert (len(found["b"]), surplus) == (60, 40)


def test_a_malformed_record_behind_a_surplus_still_spoils_the_block():
    with pytest.raises(BlockError):
        limited({"b": unsigned(map(str, range(50))) | {"bad": 5}}, {}, 10)
