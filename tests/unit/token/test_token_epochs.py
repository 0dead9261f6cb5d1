"""Epochs, their neighbours, sealing and the envelope's edges."""

from __future__ import annotations

import json

import pytest

from provider_kairos.errors import LocalError, PeerError
from provider_kairos.token import codec, envelope, gojson, otp, seal

TOKEN = codec.generate(interval=30)
START = 1_700_000_010  # a multiple of 30


def test_neighbours_only_near_the_boundary():
    previous, current, following = otp.epochs_around(TOKEN, START, slack=10)
    assert previous is not None
    assert previous.ends == current.starts == START
    assert following is None
    assert otp.epochs_around(TOKEN, START + 15, slack=10)[::2] == (None, None)
    following = otp.epochs_around(TOKEN, START + 20, slack=10)[2]
    assert following is not None
    assert following.starts == current.ends == START + 30
    assert otp.epochs_around(TOKEN, START + 29.999, slack=0)[::2] == (None, None)


def test_a_token_that_never_rotates_has_no_neighbours():
    never = codec.generate(interval=2**63 - 1)
    assert otp.epochs_around(never, START, slack=1e6)[::2] == (None, None)
    assert otp.epoch_at(never, START).ends == otp.NEVER


def test_negative_interval_is_counter_zero():
    assert otp.epoch_at(codec.generate(interval=-1), START).counter == 0


def test_rendezvous_around_lists_the_previous_one_too():
    points = otp.rendezvous_around(TOKEN, START)
    assert points == (otp.rendezvous_at(TOKEN, START), otp.rendezvous_at(TOKEN, START - 30))
    assert len(otp.rendezvous_around(codec.generate(interval=2**63 - 1), START)) == 1


def test_epoch_repr_hides_the_key():
    epoch = otp.epoch_at(TOKEN, START)
    assert epoch.seal_key.decode() not in repr(epoch)


@pytest.mark.parametrize("text", ["", "zz", "abc", "00" * 11, "00" * 27, "ab cd" * 20, "é" * 80])
def test_what_is_not_sealed_text(text: str):
    with pytest.raises(seal.SealError):
        seal.unseal(b"k" * 32, text)


def test_another_key_or_a_changed_byte_does_not_open():
    text = seal.seal(b"k" * 32, b"hello")
    assert seal.unseal(b"k" * 32, text) == b"hello"
    with pytest.raises(seal.SealError):
        seal.unseal(b"l" * 32, text)
    with pytest.raises(seal.SealError):
        seal.unseal(b"k" * 32, text[:-1] + ("0" if text[-1] != "0" else "1"))


def test_each_sealing_has_its_own_nonce():
    assert seal.seal(b"k" * 32, b"hello") != seal.seal(b"k" * 32, b"hello")


def test_a_wrong_key_length_is_our_own_mistake():
    with pytest.raises(LocalError):
        seal.seal(b"short", b"")


def test_envelope_names_in_any_case_unknown_ignored_null_leaves():
    read = envelope.decode(b'{"message":"ab","SENDERID":"x","future":[1],"Annotations":null,"MESSAGE":null}')
    assert read == envelope.Envelope("ab", "x", None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"Message":5}',
        b'{"Annotations":[]}',
        b"[" * 100_000,
        b'{"Message":NaN}',
        b'{"Message":' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
    ],
)
def test_what_is_no_envelope(data: bytes):
    with pytest.raises(PeerError):
        envelope.decode(data)


def test_envelope_over_the_limit_is_not_parsed():
    with pytest.raises(envelope.EnvelopeError, match="over the limit"):
        envelope.decode(b'{"Message":"' + b"a" * 100 + b'"}', limit=50)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a<b>&c", '"a\\u003cb\\u003e\\u0026c"'),
        ("\u2028\u2029", '"\\u2028\\u2029"'),
        ("čé\x7f", '"čé\x7f"'),
        ('"\\\n\r\t\b\f\x01', '"\\"\\\\\\n\\r\\t\\b\\f\\u0001"'),
        ("\ud800", '"\ufffd"'),
        ({"b": 1, "a": [True, None, 1.5]}, '{"b":1,"a":[true,null,1.5]}'),
        (2**64 - 1, "18446744073709551615"),
        (1.0, "1"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1e-6, "0.000001"),
        (1.5e-7, "1.5e-7"),
        (-0.0, "-0"),
    ],
)
def test_json_as_go_prints_it(value: object, text: str):
    assert gojson.dumps(value) == text
    json.loads(text)


def test_json_that_go_cannot_print():
    with pytest.raises(ValueError, match="NaN"):
        gojson.dumps(float("nan"))
    with pytest.raises(TypeError):
        gojson.dumps({1, 2})


def test_surrogates_and_broken_utf8_read_as_replacement_characters():
    assert gojson.loads(rb'{"\ud800a":"\ud83d\ude00"}') == {"\ufffda": "😀"}
    assert gojson.loads(b'"\xff"') == "\ufffd"
