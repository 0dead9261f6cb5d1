from __future__ import annotations

import json
import logging

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.daemon.logs import JsonLines, OncePer, set_up


def test_a_line_has_edgevpns_fields():
    record = logging.LogRecord("x", logging.WARNING, "/a/daemon/main.py", 12, "Node ID: %s", ("12D3",), None)
    line = json.loads(JsonLines().format(record))
    assert line["level"] == "WARN"
    assert line["caller"] == "daemon/main.py:12"
    assert line["message"] == "Node ID: 12D3"
    assert line["time"].endswith("Z")


def test_repeats_are_counted_not_said():
    clock, once = ManualClock(), OncePer(60)
    assert once.allow("peer", clock.now()) == 0
    assert once.allow("peer", clock.now()) is None
    assert once.allow("other", clock.now()) == 0
    clock.advance(59)
    assert once.allow("peer", clock.now()) is None
    clock.advance(2)
    assert once.allow("peer", clock.now()) == 2


def test_the_memory_of_what_was_said_is_bounded():
    clock, once = ManualClock(), OncePer(60, limit=10)
    for key in range(1000):
        once.allow(key, clock.now())
    assert len(once._seen) == 10


@pytest.mark.parametrize(
    ("level", "mesh", "ours", "theirs"),
    [
        ("info", "", logging.INFO, logging.INFO),
        ("info", "fatal", logging.INFO, logging.INFO),
        ("warn", "debug", logging.WARNING, logging.DEBUG),
        ("Debug ", "error", logging.DEBUG, logging.DEBUG),
        ("banana", "", logging.ERROR, logging.ERROR),
    ],
)
def test_the_mesh_may_say_more_than_the_rest(level, mesh, ours, theirs):
    names = ("", "provider_kairos", "provider_kairos.mesh")
    before = [(logging.getLogger(name).level, logging.getLogger(name).handlers[:]) for name in names]
    try:
        set_up(level, mesh)
        assert logging.getLogger("provider_kairos.daemon").getEffectiveLevel() == ours
        assert logging.getLogger("provider_kairos.mesh.swarm").getEffectiveLevel() == theirs
    finally:
        for name, (was, handlers) in zip(names, before, strict=True):
            logging.getLogger(name).setLevel(was)
            logging.getLogger(name).handlers[:] = handlers
