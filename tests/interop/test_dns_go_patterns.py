"""Our pattern engine held against what Go's regexp package said of the same patterns and names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provider_kairos.dns.pattern import compile_pattern
from provider_kairos.dns.pattern_syntax import PatternError

HEADER, *ROWS = [
    json.loads(line) for line in (Path(__file__).parent / "recordings" / "go-regexp.jsonl").read_text().splitlines()
]


def said(pattern: str) -> str | None:
    try:
        compiled = compile_pattern(pattern)
    except PatternError:
        return None
    return "".join("01"[compiled.search(name)[0]] for name in HEADER["names"])


@pytest.mark.parametrize("row", ROWS, ids=[row["pattern"] or "empty" for row in ROWS])
def test_a_pattern_means_what_it_means_in_go(row: dict[str, str | None]) -> None:
    assert row["pattern"] is not None
    assert said(row["pattern"]) == row["matches"]
