"""YAML text to a tree with places: what is accepted, what is refused and where."""

from __future__ import annotations

import pytest

from provider_kairos.config.document import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse
from provider_kairos.config.notice import InvalidConfigError, Mark
from provider_kairos.config.tree import Scalar


def refused(text: str | bytes) -> InvalidConfigError:
    with pytest.raises(InvalidConfigError) as caught:
        parse(text, "/oem/90_custom.yaml")
    assert caught.value.path == "/oem/90_custom.yaml"
    return caught.value


def test_places_of_keys_values_and_items():
    doc = parse('#cloud-config\np2p:\n  network_id: dev\nk3s:\n  args:\n    - "a"\n    - b\n')
    assert doc.mark(("p2p",), key=True) == Mark(2, 1)
    assert doc.mark(("p2p", "network_id"), key=True) == Mark(3, 3)
    assert doc.mark(("p2p", "network_id")) == Mark(3, 15)
    assert doc.mark(("k3s", "args", 1)) == Mark(7, 7)


def test_a_path_that_is_not_there_has_the_place_of_its_nearest_parent():
    doc = parse("p2p:\n  auto:\n    enable: true\n")
    assert doc.mark(("p2p", "auto", "ha", "enable"), key=True) == Mark(2, 3)
    assert doc.node(("p2p", "auto", "ha")) is None


@pytest.mark.parametrize(
    "header", ["#cloud-config", "#kairos-config", "#node-config", "---", "#cloud-config\n---", "\ufeff#cloud-config"]
)
def test_headers(header):
    assert parse(f"{header}\np2p: {{}}\n").data() == {"p2p": {}}


@pytest.mark.parametrize("text", ["", "\n", "#cloud-config\n", "---\n", "# nothing\n~\n", b""])
def test_nothing_is_an_empty_mapping(text):
    assert parse(text).data() == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1200", 1200),
        ("0600", 384),
        ("0o17", 15),
        ("0x1F", 31),
        ("-0b11", -3),
        ("1_000", 1000),
        ("089", 89),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("~", None),
        ("", None),
        ('"1200"', "1200"),
        ("'true'", "true"),
        ("!!str 12", "12"),
        ("! 12", "12"),
        ("10.1.0.2", "10.1.0.2"),
        ("2026-01-02", "2026-01-02"),
        ("9" * 5000, "9" * 5000),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_untyped_values(text, value):
    assert parse(f"k: {text}").data() == {"k": value}


def test_a_scalar_keeps_its_text():
    node = parse("k: 0600").node(("k",))
    assert isinstance(node, Scalar)
    assert node.text == "0600"
    assert "0600" not in repr(node)


def test_keys_are_texts():
    assert parse("1: a\ntrue: b\n").data() == {"1": "a", "true": "b"}


def test_the_last_of_two_keys_counts_and_is_said():
    doc = parse("a: 1\nb:\n  c: 2\n  c: 3\n", "f")
    assert doc.data() == {"a": 1, "b": {"c": 3}}
    (notice,) = doc.notices
    assert (notice.line, notice.column, notice.key) == (4, 3, "c")
    assert "line 3" in notice.message


def test_only_the_first_document_is_read():
    doc = parse("a: 1\n---\nb: 2\n", "f")
    assert doc.data() == {"a": 1}
    assert [(n.line, n.column) for n in doc.notices] == [(2, 1)]


def test_aliases_and_merge_keys():
    doc = parse("base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: *b\nthree: {<<: [*b, {z: 4}]}\n")
    assert doc.data() == {
        "base": {"x": 1, "y": 2},
        "one": {"x": 1, "y": 3},
        "two": {"x": 1, "y": 2},
        "three": {"x": 1, "y": 2, "z": 4},
    }


def test_billion_laughs_are_refused():
    lines = ['a0: &a0 ["lol","lol","lol","lol","lol","lol","lol","lol","lol"]']
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    error = refused("\n".join(lines))
    assert "more than" in error.message
    assert error.line > 1


def test_merge_bombs_are_refused():
    lines = ["a0: &a0 {" + ", ".join(f"k{i}: v" for i in range(50)) + "}"]
    lines += [f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 10)]
    assert "more than" in refused("\n".join(lines)).message


def test_an_alias_inside_its_own_anchor_is_refused():
    error = refused("a: &x\n  b: *x\n")
    assert (error.line, error.column) == (2, 6)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 100_000, "- " * 5000 + "x", "a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)],
    ids=["flow", "maps", "block", "just-too-deep"],
)
def test_deep_nesting_is_refused(text):
    error = refused(text)
    assert "nested deeper" in error.message
    assert error.line == 1


def test_nesting_through_aliases_counts():
    deep = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    assert parse(f"a: &a {deep}\nb: [*a]\n").data()
    assert "nested deeper" in refused(f"a: &a {deep}\nb: [[[[*a]]]]\n").message


def test_too_many_values_and_too_large_files():
    assert "more than" in refused("a: [" + "1," * MAX_NODES + "]").message
    assert "larger" in refused("#" * (MAX_BYTES + 1)).message


@pytest.mark.parametrize(
    ("text", "line", "column", "hint"),
    [
        ("a: 1\n\tb: 2\n", 2, 1, "never with tabs"),
        ("p2p:\n  network_token: a: b\n", 2, 19, "colon"),
        ("a: [1, 2\nb: 3\n", 2, 2, ""),
        ("p2p:\n  a: 1\n c: 2\n", 3, 2, "indentation"),
        ("a: @x\n", 1, 4, "start with"),
        ("a: *nobody\n", 1, 4, "quote"),
        ('a: "open\n', 2, 1, ""),
        ("hostname: {{ trunc 4 .MachineID }}\n", 1, 12, "{{ }}"),
        ("? [a, b]\n: c\n", 1, 3, ""),
        ("- a\n- b\n", 1, 1, "start with a key"),
        ("just words\n", 1, 1, "start with a key"),
        ("a: {<<: 3}\n", 1, 9, ""),
    ],
)
def test_broken_files_say_where_and_what_to_do(text, line, column, hint):
    error = refused(text)
    assert (error.line, error.column) == (line, column)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        (b"a: 1\nb: \xff\n", 2, 4),
        ("ä: 1\nb: \udc80\n", 2, 4),
        ("ä: 1\nü: x\x00y\n", 2, 5),
        ("a: \x07\n", 1, 4),
    ],
)
def test_bytes_that_are_no_text(text, line, column):
    error = refused(text)
    assert (error.line, error.column) == (line, column)


def test_the_error_shows_no_value():
    error = refused("p2p:\n  network_token: c2VjcmV0c2VjcmV0: x\n")
    assert "c2Vj" not in str(error)
    assert "c2Vj" not in repr(error)
