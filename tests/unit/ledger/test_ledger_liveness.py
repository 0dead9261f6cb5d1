"""Heartbeat texts, as Go writes them and as nobody should."""

from __future__ import annotations

import pytest

from provider_kairos.ledger.liveness import heartbeat_text, parse_heartbeat


def test_written_in_utc_with_whole_seconds():
    assert heartbeat_text(1714979289) == '"2024-05-06T07:08:09Z"'


@pytest.mark.parametrize(
    ("value", "unix"),
    [
        ('"2024-05-06T07:08:09Z"', 1714979289),
        ('"2024-05-06T07:08:09.5Z"', 1714979289.5),
        ('"2024-05-06T07:08:09.123456789Z"', 1714979289.123456),
        ('"2024-05-06T09:08:09+02:00"', 1714979289),
        ("2024-05-06T07:08:09Z", None),
        ('"2024-05-06T07:08:09"', None),
        ('"2024-05-06"', None),
        ('"0001-01-01T00:00:00+23:59"', -62135683140),
        ('"9999-12-31T23:59:59-23:59"', 253402387139),
        ('"2024-13-06T07:08:09Z"', None),
        ("5", None),
        ("[]", None),
        ("null", None),
        ("", None),
        ("[" * 100_000, None),
    ],
)
def test_read(value: str, unix: float | None):
    assert parse_heartbeat(value) == (pytest.approx(unix, abs=1e-6) if unix is not None else None)
