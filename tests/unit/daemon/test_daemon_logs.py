from __future__ import annotations

import json
import logging

from provider_kairos.clock import ManualClock
from provider_kairos.daemon.logs import JsonLines, OncePer


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
