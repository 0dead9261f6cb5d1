"""Codecs of the bucket's values, and the view of what anybody may have written."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.clock import Now
from provider_kairos.roles.model import Meta, Role, format_time, parse_role, parse_time, view_of

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.text(min_size=1) | st.builds(
    "{}-{}".format, st.text(max_size=8), st.sampled_from(["uuid", "role", "ip", "meta", "auto", "nodetoken"])
)


@given(st.integers(min_value=0, max_value=4_000_000_000 * 10**9))
def test_times_come_back_to_the_nanosecond(nanos):
    assert parse_time(format_time(nanos)) == nanos


@given(st.text() | ANY)
def test_any_time_and_role_is_read_without_raising(value):
    assert parse_time(value) is None or isinstance(parse_time(value), int)
    assert parse_role(value) is None or isinstance(parse_role(value), Role)


@given(
    st.sampled_from([None, *Role]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.text(),
)
def test_meta_comes_back(held, deployed, forced, published, generation):
    meta = Meta(held, deployed, forced, published, generation)
    assert Meta.of(json.loads(json.dumps(meta.value()))) == meta


@given(st.dictionaries(KEYS, ANY, max_size=12), st.dictionaries(st.text(), ANY, max_size=4))
def test_a_view_of_anything(values, healthcheck):
    view = view_of(values, healthcheck)
    now = Now(1_700_000_000 * 10**9, 0.0)
    assert set(view.advertising(now)) <= set(view.nodes)
    assert view.active(now) <= len(healthcheck)
