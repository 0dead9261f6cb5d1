"""Value coding, Go's text, record types, addresses."""

from __future__ import annotations

import pytest

from provider_kairos.api import dnstypes
from provider_kairos.api.address import default_addresses, parse_address, parse_unix_mode
from provider_kairos.api.documents import parse_time
from provider_kairos.api.gotext import indent, quote_bytes
from provider_kairos.api.model import ValueCodingError, decode_value, encode_value, ledger_text
from provider_kairos.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "segment"),
    [
        ("master", "Im1hc3RlciI="),
        ("10.1.0.1", "IjEwLjEuMC4xIg=="),
        (
            {"Time": "2026-01-02T03:04:05.000000006Z"},
            "eyJUaW1lIjoiMjAyNi0wMS0wMlQwMzowNDowNS4wMDAwMDAwMDZaIn0=",
        ),
    ],
)
def test_vectors_of_the_value_coding(value: object, segment: str) -> None:
    assert encode_value(value) == segment
    assert ledger_text(value) == f'"{segment}"'
    assert decode_value(f'"{segment}"') == value


@pytest.mark.parametrize(
    "text",
    ["", "null", "5", "{}", '""', '"%%%"', '"Im1hc3RlciI"', '"eyJ="', '"\\u010d"', "[" * 100_000, '"//8="', '"e30=x"'],
)
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(ValueCodingError):
        decode_value(text)


def test_indent_like_go() -> None:
    assert indent('{"a":[],"b":{},"c":[1,"x,{}:[]\\"",{"d":null}]}') == (
        '{\n  "a": [],\n  "b": {},\n  "c": [\n    1,\n    "x,{}:[]\\"",\n    {\n      "d": null\n    }\n  ]\n}'
    )
    assert indent('""') == '""'


def test_bytes_that_are_no_utf8_are_printed_as_escapes() -> None:
    assert quote_bytes("a<\udcff\udcfeč") == r'"a\u003c\ufffd\ufffdč"'


def test_record_types() -> None:
    assert {dnstypes.NUMBERS[n] for n in ("A", "AAAA", "TXT", "CNAME", "SRV", "CAA", "HTTPS")} == {
        1, 28, 16, 5, 33, 257, 65,
    }  # fmt: skip
    assert dnstypes.NAMES[0] == "None"


@pytest.mark.parametrize(
    ("text", "mode"),
    [("0600", 0o600), ("600", 0o600), ("0o600", 0o600), ("1777", 0o777), ("", 0o660), ("9999", 0o660), (None, 0o660)],
)
def test_unix_mode(text: str | None, mode: int) -> None:
    assert parse_unix_mode(text) == mode


@pytest.mark.parametrize(
    ("text", "shown", "loopback"),
    [
        ("unix:///run/x.sock", "unix:///run/x.sock", True),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", True),
        ("localhost:80", "http://localhost:80", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        (":8080", "http://0.0.0.0:8080", False),
        ("http://10.1.0.1:1", "http://10.1.0.1:1", False),
    ],
)
def test_addresses(text: str, shown: str, loopback: bool) -> None:
    address = parse_address(text)
    assert (str(address), address.loopback) == (shown, loopback)


@pytest.mark.parametrize(
    "text", ["", "unix://x", "https://a:1", "host", "host:", "host:99999", "a/b:1", "u@h:1", "unix:///" + "x" * 120]
)
def test_bad_addresses_name_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match="expected unix"):
        parse_address(text)


def test_where_tools_look() -> None:
    assert default_addresses("a:1", {"EDGEVPN_API": "b:1"}) == ("a:1",)
    assert default_addresses(None, {"EDGEVPN_API": "b:1"}) == ("b:1",)
    assert default_addresses(None, {"EDGEVPN_API": ""}) == ("unix:///run/edgevpn-kairos.sock", "http://127.0.0.1:8080")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:01Z", 1.0),
        ("1970-01-01T01:00:01.5+01:00", 1.5),
        ("1970-01-01T00:00:00.000000001Z", 1e-9),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1970-01-01", "1970-13-01T00:00:00Z", "1970-01-01T00:00:00+99:00", "x" * 99])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_time(text)
