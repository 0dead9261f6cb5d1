"""Collecting and merging cloud-configs as the Kairos agent does."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.lab.agent import expand_host_name
from provider_kairos.lab.cloudconfig import MergeError, collect, has_header, merge, render


@pytest.mark.parametrize(
    ("left", "right", "merged"),
    [
        (None, {"a": 1}, {"a": 1}),
        ({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3}, {"a": {"b": 1, "c": 2}, "d": 3}),
        ([{"n": 1}], [{"n": 1}], [{"n": 1}, {"n": 1}]),
        ([1, 2], [2, 3], [1, 2, 3]),
        ("a", "b", "b"),
        (1, 2, 2),
        (True, False, False),
        ("a", None, ""),
        (5, None, 0),
        ([1], None, []),
        ({"a": 1}, None, {}),
    ],
)
def test_merge_rules(left, right, merged):
    assert merge(left, right) == merged


def test_lists_of_plain_values_lose_duplicates_which_is_the_trap_that_users_know():
    left, right = ["--disable", "traefik"], ["--disable", "servicelb"]
    assert merge(left, right) == ["--disable", "traefik", "servicelb"]


@pytest.mark.parametrize(("left", "right"), [("a", 1), ({}, []), ([], "a"), (True, 1), (True, "true")])
def test_different_kinds_do_not_merge(left, right):
    with pytest.raises(MergeError, match="cannot merge p2p"):
        merge({"p2p": left}, {"p2p": right})


json_values = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_merging_with_nothing_or_itself_changes_nothing(document):
    assert merge({}, document) == document
    assert merge(document, {}) == document
    assert merge(document, document) == document


def test_header_counts_in_the_first_ten_lines_only():
    assert has_header("#cloud-config  \np2p: {}")
    assert has_header("\n\n#kairos-config\r\n")
    assert has_header("\n" * 9 + "#node-config")
    assert not has_header("\n" * 10 + "#node-config")
    assert not has_header("# cloud-config\n")


def put(root, path, text):
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, "utf-8")


def test_files_are_read_in_order_and_later_ones_win(tmp_path):
    put(tmp_path, "oem/90_custom.yaml", "#cloud-config\np2p:\n  network_id: one\n  dns: true\n")
    put(tmp_path, "oem/99_lab.yaml", "#cloud-config\np2p:\n  minimum_nodes: 1\n")
    put(tmp_path, "oem/10/first.yml", "#cloud-config\np2p: {network_id: zero}\n")
    put(tmp_path, "oem/no.txt", "#cloud-config\np2p: {network_id: text}\n")
    put(tmp_path, "oem/headless.yaml", "p2p: {network_id: headless}\n")
    put(tmp_path, "oem/broken.yaml", "#cloud-config\np2p: [\n")
    put(tmp_path, "oem/list.yaml", "#cloud-config\n- a\n")
    put(tmp_path, "oem/big.yaml", "#cloud-config\n" + "#" * (2 << 20))
    put(tmp_path, "usr/local/cloud-config/x.yaml", "#cloud-config\np2p: {network_id: two}\n")
    collected = collect(root=str(tmp_path))
    assert collected.values == {"p2p": {"network_id": "two", "dns": True, "minimum_nodes": 1}}
    assert collected.sources == (
        "/oem/10/first.yml",
        "/oem/90_custom.yaml",
        "/oem/99_lab.yaml",
        "/usr/local/cloud-config/x.yaml",
    )
    assert len(collected.warnings) == 4


def test_the_text_for_the_provider(tmp_path):
    put(tmp_path, "oem/90_custom.yaml", "#cloud-config\nhostname: ü\np2p:\n  network_token: T\n")
    text = render(collect(root=str(tmp_path)))
    assert text.startswith("#cloud-config\n\n# Sources:\n# - /oem/90_custom.yaml\n\n")
    assert yaml.safe_load(text) == {"hostname": "ü", "p2p": {"network_token": "T"}}
    assert render(collect(root=str(tmp_path / "none"))).startswith("#cloud-config\n\n# Sources:\n\n")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("plain", "plain"),
        ("node-{{ trunc 4 .MachineID }}", "node-abcd"),
        ("{{.MachineID}}", "abcdef"),
        ("{{ trunc 4 .Random }}", None),
        ("no spaces", None),
    ],
)
def test_host_name_templates(text, name):
    assert expand_host_name(text, "abcdef") == name
