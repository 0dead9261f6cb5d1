"""Record sets of the ledger: which is found, which is left out, and who hears of it."""

from __future__ import annotations

import json

import pytest

from provider_kairos.dns import records
from provider_kairos.dns.records import Complaint, Row, Zone, build


def zone_of(*rows, before=None):
    *pauses, zone = build(rows, before or Zone())
    assert not any(pauses)
    assert zone is not None
    return zone


def row(key, owner="", **values):
    return Row(key, json.dumps(values or {"1": "10.1.0.1"}), owner)


def found(zone, name):
    return [each.pattern.text for each in zone.find(name)]


def test_the_most_specific_pattern_comes_first_whatever_the_order():
    keys = [".*", r"test\.$", r"^foo\.test\.$", r"foo\.test\.$", r"[a-z]+\.test\.$", "test"]
    expected = [r"^foo\.test\.$", r"foo\.test\.$", r"[a-z]+\.test\.$", r"test\.$", "test", ".*"]
    assert found(zone_of(*map(row, keys)), "foo.test.") == expected
    assert found(zone_of(*map(row, reversed(keys))), "foo.test.") == expected


def test_equals_are_taken_by_their_text():
    assert found(zone_of(row("a[bc]"), row("a[cb]"), row("a[cd]")), "xac.") == ["a[bc]", "a[cb]", "a[cd]"]


def test_case_counts_unless_the_pattern_says_otherwise():
    zone = zone_of(row("foo"), row("(?i)bar"))
    assert found(zone, "FOO.") == []
    assert found(zone, "BaR.") == ["(?i)bar"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"1":"10.1.0.1","28":"fd00::1"}', {1: "10.1.0.1", 28: "fd00::1"}),
        ('{"01":"x","65535":"y"}', {1: "x", 65535: "y"}),
        ('{"1":5,"A":"x","-1":"x","65536":"x","\u0661":"x","16":"kept"}', {16: "kept"}),
        ("{}", {}),
        ("null", {}),
    ],
)
def test_values(text, expected):
    zone = zone_of(Row("k", text))
    assert zone.sets[0].records == expected
    assert not zone.counters


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "5", "[" * 100_000, json.dumps({"1": "x" * 5000})])
def test_values_that_are_none(text):
    said: list[Complaint] = []
    zone = zone_of(Row("k", text, "peer"), row("good"), before=Zone(say=said.append))
    assert found(zone, "good.") == ["good"]
    assert zone.counters == {"dns_records_malformed": 1}
    assert [(each.kind, each.owner) for each in said] == [("dns_records_malformed", "peer")]


def test_what_is_wrong_is_said_once_and_what_is_right_is_kept():
    said: list[Complaint] = []
    rows = [row("bad[", "peer"), row("good")]
    first = zone_of(*rows, before=Zone(say=said.append))
    second = zone_of(*rows, row("more"), before=first)
    assert second.counters == {"dns_patterns_bad": 1}
    assert len(said) == 1
    assert "bad[" in said[0].detail
    (kept,) = [each for each in second.sets if each.pattern.text == "good"]
    assert kept.pattern is first.sets[0].pattern
    # mended, then broken in another way
    third = zone_of(row("bad[]x]", "peer"), row("bad(", "peer"), before=second)
    assert [each.pattern.text for each in third.sets] == ["bad[]x]"]
    assert third.counters["dns_patterns_bad"] == 2


def test_names_are_found_anew_after_a_change():
    first = zone_of(row("foo"))
    assert found(first, "bar.") == []
    assert found(zone_of(row("bar"), before=first), "bar.") == ["bar"]


def test_an_author_has_a_share_of_the_room(monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORDS", 6)
    said: list[Complaint] = []
    greedy = [row(f"greedy{number:04}", "greedy") for number in range(1000)]
    honest = [row(f"honest{number}", "honest") for number in range(2)]
    zone = zone_of(*greedy, *honest, before=Zone(say=said.append))
    assert found(zone, "honest0.honest1.") == ["honest0", "honest1"]
    assert len(zone.sets) == 6
    assert [each.owner for each in said] == ["greedy"]
    assert zone.counters == {"dns_records_left_out": 1}


def test_costly_patterns_do_not_match_and_those_of_others_do():
    said: list[Complaint] = []
    costly = [row(f"^(.?){{450}}xyz{'y' * number}$", "hostile") for number in range(20)]
    zone = zone_of(*costly, row("xyz", "honest"), row("", "hostile"), before=Zone(say=said.append))
    name = "xyz" + "y" * 200 + "."
    assert found(zone, name) == ["xyz"]
    assert zone.counters["dns_patterns_too_costly"] == 2  # then the author's share is used up
    assert {each.owner for each in said} == {"hostile"}
    zone.find(name)
    assert zone.counters["dns_patterns_too_costly"] == 2  # remembered
    assert found(zone, "xyz.") == ["xyz", ""]


def test_many_records_are_read_in_slices():
    steps = list(build([row(f"name{number}") for number in range(500)], Zone()))
    assert len(steps) > 10
    assert steps[-1] is not None


def test_remembered_names_are_bounded(monkeypatch):
    monkeypatch.setattr(records, "MAX_NAMES", 10)
    zone = zone_of(row("a"))
    for number in range(100):
        zone.find(f"a{number}.")
    assert len(zone._names) == 10
