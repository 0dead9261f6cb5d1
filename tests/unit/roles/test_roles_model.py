"""Keys, times, values of the bucket (spec/provider.md 4.3, Appendix A)."""

from __future__ import annotations

import pytest

from provider_kairos.clock import NANO, Now
from provider_kairos.roles.model import (
    Meta,
    Node,
    Role,
    advertisement,
    format_time,
    parse_role,
    parse_time,
    view_of,
)

AT = 1_767_323_045 * NANO + 6  # 2026-01-02T03:04:05.000000006Z


def test_time_of_the_specification():
    assert advertisement(Now(AT, 0)) == {"Time": "2026-01-02T03:04:05.000000006Z"}
    assert parse_time("2026-01-02T03:04:05.000000006Z") == AT


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(0, "2026-01-02T03:04:05Z"), (500_000_000, "2026-01-02T03:04:05.5Z"), (10, "2026-01-02T03:04:05.00000001Z")],
)
def test_go_drops_trailing_zeros_of_the_fraction(nanos, text):
    assert format_time(1_767_323_045 * NANO + nanos) == text
    assert parse_time(text) == 1_767_323_045 * NANO + nanos


def test_offsets_are_read():
    assert parse_time("2026-01-02T04:04:05+01:00") == 1_767_323_045 * NANO


@pytest.mark.parametrize("bad", [None, 7, "", "2026-01-02", "2026-13-02T03:04:05Z", "2026-01-02T03:04:05", [], {}])
def test_what_is_no_time_counts_as_absent(bad):
    assert parse_time(bad) is None


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("master", Role.MASTER),
        ("master/clusterinit", Role.CLUSTER_INIT),
        ("auto, worker", Role.AUTO),
        ("nonsense,master/ha", Role.HA),
        ("", None),
        ("nonsense", None),
        (None, None),
        (["worker"], None),
    ],
)
def test_role_words(text, role):
    assert parse_role(text) is role


def test_view_of_a_bucket():
    view = view_of(
        {
            "a-1-uuid": {"Time": format_time(AT)},
            "a-1-role": "worker",
            "a-1-ip": "10.1.0.3",
            "b-role": "master",
            "b-meta": Meta(held=Role.WORKER, generation="g").value(),
            "leader-auto": "a-1",
            "ip-master": "10.1.0.1",
            "token-nodetoken": "secret-word",
            "x": 3,
        },
        {"peer": "2026-01-02T03:04:05Z", "odd": 3},
    )
    nodes: dict[str, Node] = {str(uuid): node for uuid, node in view.nodes.items()}
    assert set(nodes) == {"a-1", "b"}
    assert nodes["a-1"].ip == "10.1.0.3"
    assert nodes["b"].role is Role.WORKER  # what is on its disk counts
    assert view.leader == "a-1"
    assert view.heartbeats == {"peer": AT - 6}
    assert "secret-word" not in repr(view)


def test_window_of_fifteen_minutes():
    view = view_of({"a-uuid": {"Time": format_time(AT)}}, {"p": format_time(AT)})
    assert view.advertising(Now(AT + 899 * NANO, 0)) == ("a",)
    assert view.advertising(Now(AT + 900 * NANO, 0)) == ()
    assert view.active(Now(AT + 899 * NANO, 0)) == 1
    assert view.active(Now(AT + 900 * NANO, 0)) == 0


@pytest.mark.parametrize(
    "value", [None, 3, [], {}, {"v": "1"}, {"v": 1, "held": 3, "generation": 5, "deployed": "yes"}]
)
def test_meta_of_strangers_raises_nothing(value):
    meta = Meta.of(value)
    assert meta in {None, Meta()}
