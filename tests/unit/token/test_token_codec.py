"""Odd tokens: what is refused, with which words; what is accepted, as what."""

from __future__ import annotations

import base64

import pytest

from provider_kairos.errors import ExitCode, TokenError
from provider_kairos.token import codec

SECRET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"


def text(**changes: str) -> str:
    """A token's base64 with some lines replaced; a value of "-" takes the line away."""
    lines = {
        "dht_interval": "    interval: 9000",
        "dht_key": f"    key: {SECRET}",
        "dht_length": "    length: 43",
        "crypto_interval": "    interval: 9000",
        "crypto_key": f"    key: {SECRET}",
        "crypto_length": "    length: 43",
        "room": f"room: {SECRET}",
        "rendezvous": "rendezvous: rdv",
        "mdns": "mdns: tag",
        "max_message_size": "max_message_size: 20971520",
    } | changes
    shown = {name: line + "\n" for name, line in lines.items() if line != "-"}
    dht = "".join(line for name, line in shown.items() if name.startswith("dht"))
    crypto = "".join(line for name, line in shown.items() if name.startswith("crypto_"))
    rest = "".join(line for name, line in shown.items() if not name.startswith(("dht", "crypto_")))
    return base64.b64encode(f"otp:\n  dht:\n{dht}  crypto:\n{crypto}{rest}".encode()).decode()


@pytest.mark.parametrize(
    ("token", "field", "words"),
    [
        (text(crypto_interval="    interval: 0"), "otp.crypto.interval", "0 seconds"),
        (text(crypto_interval="-"), "otp.crypto.interval", "missing"),
        (text(dht_interval="    interval: 0"), "otp.dht.interval", "0 seconds"),
        (text(crypto_length="    length: 45"), "otp.crypto.length", "45 is more than the 44"),
        (text(dht_length="    length: 45"), "otp.dht.length", "45 is more than the 44"),
        (text(crypto_interval="    interval: '30'"), "otp.crypto.interval", "a text in quotes"),
        (text(crypto_interval="    interval: soon"), "otp.crypto.interval", "'soon' is not a whole number"),
        (text(crypto_interval="    interval: [1]"), "otp.crypto.interval", "must be a number, is a list"),
        (text(crypto_interval="    interval: 9223372036854775808"), "otp.crypto.interval", "64 bits"),
        (text(crypto_interval="    interval: .inf"), "otp.crypto.interval", "not a whole number"),
        (text(crypto_interval="    interval: 1e40"), "otp.crypto.interval", "not a whole number"),
        (text(crypto_interval="    interval: " + "9" * 5000), "otp.crypto.interval", "not a whole number"),
        (text(room="room: [a, b]"), "room", "must be a text, is a list"),
        (text(room="room: {a: b}"), "room", "must be a text, is a mapping"),
        (text(max_message_size="-"), "max_message_size", "missing"),
        (text(max_message_size="max_message_size: 0"), "max_message_size", "0 is too small"),
        (text(max_message_size="max_message_size: -1"), "max_message_size", "-1 is too small"),
        (text(max_message_size="max_message_size: 100"), "max_message_size", "100 is too small"),
        (text(mdns="mdns: " + "m" * 64), "mdns", "64 bytes"),
        (text(mdns="mdns: tag." + "č" * 32), "mdns", "64 bytes"),
    ],
)
def test_refusal_names_the_field_and_why(token: str, field: str, words: str):
    with pytest.raises(TokenError) as caught:
        codec.decode(token)
    assert caught.value.field == field
    assert words in caught.value.message
    assert f"network token: {field}: " in str(caught.value)
    assert caught.value.exit_code is ExitCode.CONFIG
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        ("!!!not base64!!!", "a foreign character at position 0"),
        ("b3Rw Ogog", "a space at position 4"),
        ("b3Rw-gog", "url-safe"),
        ("b3RwOgo", "1 characters are missing"),
        ("b3Rw=Ogo", "padding is misplaced"),
        ("otp:\n  dht:\n", "is the YAML itself"),
        ('{"otp": {}}', "is the YAML itself"),
        ("é", "a foreign character"),
        (base64.b64encode(b"hello world").decode(), "not a YAML mapping but a single value"),
        (base64.b64encode(b"- a\n").decode(), "not a YAML mapping but a list"),
        (base64.b64encode(b"# nothing\n").decode(), "not a YAML mapping but empty"),
        (base64.b64encode(b"otp: [\n").decode(), "is not YAML"),
        (base64.b64encode(b"otp:\n\tdht:\n").decode(), "is not YAML: found character '\\t'"),
        (base64.b64encode(bytes(range(256))).decode(), "is not YAML"),
        (base64.b64encode(b"[" * 20000).decode(), "nested too deeply"),
        (base64.b64encode(b"otp: 5\n").decode(), "otp: must be a mapping, is a single value"),
        ("A" * 100_000, "too many"),
    ],
)
def test_what_is_no_token_at_all(token: str, words: str):
    with pytest.raises(TokenError) as caught:
        codec.decode(token)
    assert words in str(caught.value)


@pytest.mark.parametrize("keep", range(4, 390, 28))
def test_a_truncated_token_is_refused(keep: int):
    whole = text()
    with pytest.raises(TokenError):
        codec.decode(whole[: keep - keep % 4])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("30.0", 30),
        ("30.9", 30),
        ("1e3", 1000),
        ("1E+3", 1000),
        ("0x1e", 30),
        ("0X1E", 30),
        ("0b11", 3),
        ("0o17", 15),
        ("010", 8),
        ("08", 8),
        ("9_000", 9000),
        ("+9", 9),
        ("-1", -1),
        ("-0x10", -16),
        ("!!int '30'", 30),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_integers_as_go_reads_them(written: str, read: int):
    assert codec.decode(text(crypto_interval=f"    interval: {written}")).crypto.interval == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("null", ""),
        ("~", ""),
        ("", ""),
        ("'null'", "null"),
        ("yes", "yes"),
        ("0x1F", "0x1F"),
        ("1e5", "1e5"),
        ("2001-01-01", "2001-01-01"),
        ("'quo''ted'", "quo'ted"),
    ],
)
def test_secrets_are_the_literal_text(written: str, read: str):
    assert codec.decode(text(room=f"room: {written}")).room == read


def test_duplicate_key_last_wins_and_unknown_and_misspelt_keys_are_ignored():
    token = codec.decode(text(room="room: first\nroom: second\nfuture: {a: [1]}\nRoom: third"))
    assert token.room == "second"


def test_missing_texts_are_empty_and_a_missing_dht_is_static():
    token = codec.decode(text(room="-", mdns="-", rendezvous="-", dht_interval="-", dht_key="-", dht_length="-"))
    assert (token.room, token.mdns, token.rendezvous, token.dht.key) == ("", "", "", "")


def test_line_breaks_inside_base64_are_skipped():
    whole = text()
    wrapped = "\r\n".join(whole[i : i + 60] for i in range(0, len(whole), 60)) + "\n"
    assert codec.decode(wrapped) == codec.decode(whole)


@pytest.mark.parametrize(
    ("secret", "line"),
    [
        ("1234567890", 'room: "1234567890"'),
        ("0x1F", 'room: "0x1F"'),
        ("1e5", 'room: "1e5"'),
        ("true", 'room: "true"'),
        ("yes", 'room: "yes"'),
        ("y", 'room: "y"'),
        ("null", 'room: "null"'),
        ("", 'room: ""'),
        ("2001-01-01", 'room: "2001-01-01"'),
        ("1:20", 'room: "1:20"'),
        (".5", 'room: ".5"'),
        ("abc1e5", "room: abc1e5"),
        ("0123abc", "room: 0123abc"),
        ("maybe", "room: maybe"),
    ],
)
def test_quotes_only_where_it_would_read_as_something_else(secret: str, line: str):
    token = codec.generate()
    changed = codec.NetworkToken(token.dht, token.crypto, secret, token.rendezvous, token.mdns, token.max_message_size)
    assert line in codec.to_yaml(changed).splitlines()
    assert codec.decode(codec.encode(changed)) == changed


def test_fresh_tokens_rotate_and_are_random():
    first, second = codec.generate(), codec.generate()
    assert first.rotates
    assert first.crypto.interval == first.dht.interval == 9000
    assert first.crypto.length == first.dht.length == 43
    secrets = [
        t
        for token in (first, second)
        for t in (token.dht.key, token.crypto.key, token.room, token.mdns, token.rendezvous)
    ]
    assert len(set(secrets)) == 10
    assert {len(secret) for secret in secrets} == {43}
    assert codec.decode(codec.encode(first)) == first


def test_generator_takes_interval_size_and_length_and_refuses_what_cannot_work():
    token = codec.generate(30, 4096, 12)
    assert (token.crypto.interval, token.max_message_size, len(token.room), token.crypto.length) == (30, 4096, 12, 43)
    for wrong in ({"interval": 0}, {"max_message_size": 5}, {"secret_length": 0}, {"secret_length": 64}):
        with pytest.raises(TokenError):
            codec.generate(**wrong)


def test_neither_repr_nor_description_shows_a_secret():
    token = codec.generate()
    for shown in (repr(token), str(codec.describe(token))):
        for secret in (token.dht.key, token.crypto.key, token.room, token.rendezvous, token.mdns):
            assert secret not in shown
    assert codec.describe(token) == codec.describe(codec.decode(codec.encode(token)))
    assert codec.describe(token)["fingerprint"] != codec.describe(codec.generate())["fingerprint"]
