"""The event reader takes any bytes: an answer, or the one error that becomes exit code 1."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.provider.plugin import EventError, Response, answer, read_event


@given(st.binary(max_size=200))
def test_any_bytes(raw):
    with contextlib.suppress(EventError):
        answer("agent.boot", raw, {})


@given(st.text(), st.dictionaries(st.text(min_size=1), st.text()))
def test_a_payload_comes_through(name, payload):
    raw = json.dumps({"name": name, "data": json.dumps(payload), "file": ""}).encode()
    assert read_event(raw) == payload


@given(st.text(), st.text(), st.text(), st.text())
def test_any_answer_is_one_json_document_of_four_texts(state, data, error, log):
    raw = Response(state=state, data=data, error=error, log=log).encode()
    assert json.loads(raw) == {"state": state, "data": data, "error": error, "log": log}
    assert b"\n" not in raw
