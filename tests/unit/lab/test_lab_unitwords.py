"""The little languages of unit files, as systemd reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.lab.unitwords import (
    UnitSyntaxError,
    expand_arguments,
    expand_specifiers,
    parse_duration,
    parse_environment_file,
    split_words,
    valid_variable,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b  c", ["a", "b", "c"]),
        ('"a b" c', ["a b", "c"]),
        ("'a \"b' c", ['a "b', "c"]),
        ('--flag="two words"', ["--flag=two words"]),
        ('""', [""]),
        (r"a\x20b\tc\s\"", ['a b\tc "']),
        (r"\101\u00e9", ["A\u00e9"]),
        (r"unknown\d", [r"unknown\d"]),
        (r'"in \"quotes\" \\"', ['in "quotes" \\']),
        ("", []),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize("text", ['"open', "a 'b", "end\\"])
def test_words_that_systemd_refuses(text):
    with pytest.raises(UnitSyntaxError):
        split_words(text)


@given(st.lists(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)))
def test_quoted_words_come_back(words):
    quoted = " ".join('"' + w.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"' for w in words)
    assert split_words(quoted) == words


def test_specifiers():
    table = {"i": "kairos", "n": "edgevpn@kairos.service"}
    assert expand_specifiers("/etc/edgevpn-%i.env", table) == "/etc/edgevpn-kairos.env"
    assert expand_specifiers("100%% of %n, %z, 5%", table) == "100% of edgevpn@kairos.service, %z, 5%"


def test_variables_in_a_command_line():
    environment = {"LIST": "a 'b c'", "ONE": "x y", "EMPTY": ""}
    words = ["$LIST", "${LIST}", "-o${ONE}", "pre$ONE", "$EMPTY", "${NONE}", "$$ONE", "$NONE", "5$"]
    assert expand_arguments(words, environment) == [
        "a",
        "b c",
        "a 'b c'",
        "-ox y",
        "pre$ONE",
        "",
        "$ONE",
        "5$",
    ]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=plain", "plain"),
        ("A=  two words  ", "two words"),
        ('A="two words"', "two words"),
        (r'A="a\"b\\c\$d\`e\!f"', r'a"b\c$d`e\!f'),
        (r"A='a\"b'", r"a\"b"),
        (r"A=a\ b", "a b"),
        ("A=one\\\ntwo", "onetwo"),
        ('A="one\ntwo"', "one\ntwo"),
        ('A="one\\\ntwo"', "onetwo"),
        ("A=#no comment", "#no comment"),
        ("A=", ""),
        ("A=\"x\"'y'", "xy"),
        ("A=$HOME", "$HOME"),
        ("  A = v", "v"),
    ],
)
def test_environment_file_values(line, value):
    assert parse_environment_file(line) == {"A": value}


def test_environment_file_as_a_whole():
    text = "# comment\n; other\n\nA=1\nexport B=2\nno equals\n9X=3\nA=4\r\nC=5"
    assert parse_environment_file(text) == {"A": "4", "C": "5"}


@given(st.text(max_size=200))
def test_environment_files_never_break_the_parser(text):
    assert all(valid_variable(name) for name in parse_environment_file(text))


@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), st.text(max_size=30), max_size=5))
def test_what_our_env_writer_writes_is_read_back(variables):
    """The provider's env files go through systemd's reader, which this one stands for."""
    from provider_kairos.quoting import systemd_env_file

    clean = {k: v for k, v in variables.items() if v.isprintable()}
    assert parse_environment_file(systemd_env_file(clean)) == clean


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("100ms", 0.1), ("1min 20s", 80), ("5s", 5), ("2h", 7200), ("0", 0), ("1.5s", 1.5)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


def test_infinite_and_wrong_durations():
    assert parse_duration("infinity") == float("inf")
    for text in ("", "soon", "5 parsecs"):
        with pytest.raises(UnitSyntaxError):
            parse_duration(text)
