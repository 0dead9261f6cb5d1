"""Whatever the values, a token, a sealed text and an envelope survive the way there and back; noise never crashes."""

from __future__ import annotations

import base64
import contextlib
import json
import string

import yaml
from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.errors import PeerError, TokenError
from provider_kairos.token import codec, envelope, gojson, otp, seal

ALPHABET = string.ascii_letters + string.digits
unicode_texts = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x85\u2028\u2029\ufeff"))
odd_words = st.sampled_from(
    ["yes", "on", "null", "~", "0x1F", "1e5", "010", ".inf", "1:20", "2001-01-01", "<<", "-", "?", "#x"]
)
secrets = st.text(ALPHABET, max_size=50) | odd_words | unicode_texts
intervals = st.integers(-(2**63), 2**63 - 1).filter(bool)
otp_settings = st.builds(codec.OtpSettings, intervals, secrets, st.integers(-5, 44))
tokens = st.builds(
    codec.NetworkToken,
    otp_settings,
    otp_settings,
    secrets,
    secrets,
    st.text(ALPHABET, max_size=63) | odd_words,
    st.integers(1024, 2**63 - 1),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(tokens)
def test_token_round_trip(token: codec.NetworkToken):
    text = codec.encode(token)
    assert codec.decode(text) == token
    assert codec.encode(codec.decode(text)) == text


@given(st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()))
def test_noise_is_a_token_error(text: str):
    try:
        codec.decode(text)
    except TokenError:
        pass
    else:
        raise AssertionError("noise passed for a token")


@given(tokens, st.data())
def test_a_damaged_token_is_read_or_refused(token: codec.NetworkToken, data: st.DataObject):
    document = bytearray(codec.to_yaml(token).encode())
    at = data.draw(st.integers(0, len(document) - 1))
    document[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TokenError):
        codec.from_yaml(bytes(document))


@given(st.text(ALPHABET + "._+-:~<", min_size=1, max_size=12))
def test_unquoted_text_reads_as_text_for_yaml_1_1_readers_too(secret: str):
    token = codec.generate()
    document = codec.to_yaml(
        codec.NetworkToken(token.dht, token.crypto, secret, token.rendezvous, token.mdns, token.max_message_size)
    )
    assert yaml.load(document, yaml.BaseLoader)["room"] == secret


@given(tokens, st.integers(0, 2**40), st.integers(0, 100))
def test_epochs_join_without_gap(token: codec.NetworkToken, unix: int, slack: int):
    previous, current, following = otp.epochs_around(token, unix, slack)
    assert current.starts <= unix < current.ends
    assert len(current.seal_key) == len(current.topic) == 32
    if previous is not None:
        assert previous.ends == current.starts
        assert unix - current.starts < slack
    if following is not None:
        assert following.starts == current.ends


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=2000))
def test_seal_round_trip(key: bytes, plaintext: bytes):
    text = seal.seal(key, plaintext)
    assert seal.unseal(key, text) == plaintext
    assert len(text) == 2 * (len(plaintext) + seal.OVERHEAD)


@given(st.text(max_size=200))
def test_noise_does_not_open(text: str):
    try:
        seal.unseal(b"k" * 32, text)
    except PeerError:
        return
    raise AssertionError("noise opened")


@given(st.text(), st.text(), st.none() | st.dictionaries(st.text(), json_values, max_size=3))
def test_envelope_round_trip(message: str, sender: str, annotations: dict[str, object] | None):
    data = envelope.encode(envelope.Envelope(message, sender, annotations))
    read = envelope.decode(data)
    assert envelope.encode(read) == data
    assert read.message == gojson.loads(gojson.dumps(message))


@given(st.binary(max_size=300))
def test_noise_is_an_envelope_error(data: bytes):
    try:
        envelope.decode(data)
    except PeerError:
        return
    assert isinstance(json.loads(data), dict)


@given(json_values)
def test_go_json_means_the_same_and_has_no_html(value: object):
    text = gojson.dumps(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert gojson.dumps(gojson.loads(text)) == text
