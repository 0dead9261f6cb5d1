"""Whatever text comes, it is read or refused with a ConfigError; what is read has places; what is written is read back."""

from __future__ import annotations

import json
import re

from hypothesis import example, given
from hypothesis import strategies as st

from provider_kairos.config import CloudConfig, load
from provider_kairos.config.document import parse
from provider_kairos.config.notice import InvalidConfigError
from provider_kairos.config.tree import Mapping, Node, Sequence
from provider_kairos.errors import ConfigError

# text made of YAML's own pieces goes deeper than random characters
PIECES = st.sampled_from(
    [
        "p2p",
        "k3s",
        "k3s-agent",
        "kubevip",
        "kairos",
        "c3os",
        "network_token",
        "auto",
        "ha",
        "vpn",
        "env",
        "args",
        "enable",
        "enabled",
        "config",
        "role",
        "dns",
        "true",
        "no",
        "0600",
        "1e9",
        "-1",
        "null",
        "~",
        "&",
        "*",
        "&a",
        "*a",
        "<<",
        "!",
        "!!str",
        "!!int",
        "!!binary",
        "|",
        ">",
        "-",
        "?",
        ":",
        ",",
        "[",
        "]",
        "{",
        "}",
        "#",
        "%",
        "@",
        "`",
        "'",
        '"',
        "\\",
        "---",
        "...",
    ]
) | st.sampled_from([" ", "  ", "\n", "\n  ", "\n    ", ": ", "- ", "\t", "\r\n", "\x00", "\ufeff", "\x85", "ü"])
YAMLISH = st.lists(PIECES, max_size=60).map("".join)

BLOCKS = ("p2p", "k3s", "k3s-agent", "k0s", "k0s-worker", "kubevip", "kairos", "c3os", "vpn")
KEYS = st.sampled_from(
    [
        "network_token",
        "network_id",
        "role",
        "dns",
        "loglevel",
        "minimum_nodes",
        "vpn",
        "create",
        "use",
        "env",
        "auto",
        "enable",
        "ha",
        "master_nodes",
        "external_db",
        "enabled",
        "args",
        "replace_args",
        "replace_env",
        "embedded_registry",
        "eip",
        "interface",
        "config",
        "hybrid",
        "kubevip",
        "x",
    ]
)
VALUES: st.SearchStrategy[object] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def loaded(text: str | bytes) -> CloudConfig | ConfigError:
    try:
        return load(text, "f")
    except ConfigError as error:
        return error


def reads_or_refuses(text: str | bytes) -> None:
    result = loaded(text)
    if isinstance(result, ConfigError):
        assert result.path == "f"
        assert result.message
        assert result.line >= 0
    else:
        assert all(notice.line >= 1 and notice.column >= 1 for notice in result.warnings)


def dumps(value: object, indent: int | None = None) -> str:
    """JSON that is YAML: one escape for every character, where JSON takes two beyond 16 bits."""
    pairs = re.compile(r"\\u(d[89ab]..)\\u(d[c-f]..)")
    text = json.dumps(value, indent=indent)
    return pairs.sub(lambda m: chr(0x10000 + ((int(m[1], 16) & 0x3FF) << 10) + (int(m[2], 16) & 0x3FF)), text)


@given(st.text())
@example("[" * 5000)
@example("? [")
@example("\ud800")
def test_any_text(text):
    reads_or_refuses(text)


@given(st.binary())
def test_any_bytes(data):
    reads_or_refuses(data)


@given(YAMLISH)
def test_any_mixture_of_yaml(text):
    reads_or_refuses(text)


@given(st.dictionaries(st.sampled_from(BLOCKS), VALUES, max_size=4))
def test_any_structure_in_our_blocks(data):
    reads_or_refuses(dumps(data))


@given(st.dictionaries(st.sampled_from(BLOCKS), VALUES, max_size=4))
def test_errors_and_notices_point_into_the_text(data):
    text = dumps(data, indent=1)
    lines = text.split("\n")
    try:
        places = [(n.line, n.column) for n in load(text).warnings]
    except InvalidConfigError as error:
        places = [(e.line, e.column) for e in (error, *error.others)]
    for line, column in places:
        assert 1 <= line <= len(lines)
        assert 1 <= column <= len(lines[line - 1]) + 1


@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=9), VALUES, max_size=5))
def test_json_is_read_as_what_it_is(data):
    data.pop("<<", None)
    assert parse(dumps(data)).data() == data or _has_odd_float(data)


def _has_odd_float(value: object) -> bool:
    """Numbers such as 1e-07 are read as floats by JSON and, without a dot, as texts or numbers by YAML."""
    if isinstance(value, float):
        return True
    if isinstance(value, dict):
        return any(map(_has_odd_float, value.values()))
    return isinstance(value, list) and any(map(_has_odd_float, value))


@given(
    st.dictionaries(
        st.sampled_from(["K3S_TOKEN", "A", "B_1"]), st.text(st.characters(codec="utf-8", exclude_categories=["C"]))
    )
)
def test_quoted_environments_arrive_unchanged(env):
    assert load(dumps({"k3s": {"env": env}})).settings.k3s.env == env


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30)))
def test_quoted_arguments_arrive_unchanged(args):
    assert load(dumps({"k3s": {"args": args}})).settings.k3s.args == tuple(args)


@given(VALUES)
def test_places_stand_where_the_value_begins(value):
    text = dumps({"k": value}, indent=2)
    lines = text.split("\n")

    def check(node: Node) -> None:
        start = lines[node.mark.line - 1][node.mark.column - 1]
        if isinstance(node, Mapping):
            assert start == "{"
            for entry in node.entries.values():
                check(entry.value)
        elif isinstance(node, Sequence):
            assert start == "["
            for item in node.items:
                check(item)
        else:
            assert start in '"-0123456789tfn'

    check(parse(text).root)
