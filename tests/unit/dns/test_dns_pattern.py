"""Patterns: linear time, what they are bound to hold, and what is too much."""

from __future__ import annotations

import pytest

from provider_kairos.dns.pattern import MAX_PROGRAM, MAX_STEPS, TooCostlyError, compile_pattern
from provider_kairos.dns.pattern_syntax import MAX_DEPTH, MAX_LENGTH, PatternError

LONGEST = "a" * 63 + "." + "a" * 63 + "." + "a" * 63 + "." + "a" * 61 + "."


@pytest.mark.parametrize("text", ["(a+)+$b", "(a|a)*$b", "(a|aa)+$b", "(.*a){12}$b", "(a*)*$b", "((a?){20}a{20})+$b"])
def test_no_pattern_takes_longer_than_name_times_program(text):
    pattern = compile_pattern(text)
    for length in (10, 100, 250):
        matches, steps = pattern.search("a" * length, 10**9)
        assert not matches
        assert steps <= (length + 1) * (MAX_PROGRAM if length == 250 else 400)


def test_a_match_ends_when_its_steps_are_used_up():
    with pytest.raises(TooCostlyError, match=f"more than {MAX_STEPS} steps"):
        compile_pattern("^(.?){400}x$").search(LONGEST.replace("a", "x"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a" * (MAX_LENGTH + 1), "characters"),
        ("(" * (MAX_DEPTH + 2) + ")" * (MAX_DEPTH + 2), "groups inside groups"),
        ("(abcd){600}", "instructions"),
        ("(a{100}){100}", "repetition count"),
        (r"\p{Greek}", "not known here"),
    ],
)
def test_what_is_too_much(text, why):
    with pytest.raises(PatternError, match=why):
        compile_pattern(text)


def test_depth_that_is_allowed():
    assert compile_pattern("(" * MAX_DEPTH + "a" + ")*" * MAX_DEPTH).search("a")[0]


@pytest.mark.parametrize(
    ("text", "literal", "needs", "whole"),
    [
        (r"^foo\.test\.$", 9, "foo.test.", True),
        (r"foo\.test\.$", 9, "foo.test.", False),
        ("^exact.name.$", 9, "exact", True),
        (".*", 0, "", False),
        (r"(?i)CasE\.", 5, "case.", False),
        (r"x(?i:Y)Z.bc", 5, "xyz", False),
        (r"^(one|three)\.x\.$", 6, ".x.", True),
        ("a{3}b+c*", 4, "", False),
        (r"^a$|^bb$", 1, "", True),
        (r"(?:^a.b$)", 2, "a", True),
        ("[^a]x", 1, "x", False),
        ("", 0, "", False),
    ],
)
def test_what_a_pattern_is_bound_to_hold(text, literal, needs, whole):
    pattern = compile_pattern(text)
    assert (pattern.literal, pattern.needs, pattern.whole) == (literal, needs, whole)
