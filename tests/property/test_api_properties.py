"""Codings of the API come back as they went; nothing that comes over the socket ends the server."""

from __future__ import annotations

import contextlib
import json
import tempfile
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from provider_kairos.api.client import DaemonClient
from provider_kairos.api.gotext import indent
from provider_kairos.api.model import ValueCodingError, decode_value, ledger_text
from provider_kairos.api.paths import PathError, quote_segment, route_path
from provider_kairos.api.testing import FakeBackend, raw_exchange, serving
from provider_kairos.token import gojson

texts = st.text(st.characters(codec="utf-8"))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
names = texts.filter(lambda text: text and "/" not in text)


@given(values)
def test_a_value_comes_back(value: Any) -> None:
    assert decode_value(ledger_text(value)) == value


@given(st.text() | st.binary().map(lambda raw: json.dumps(raw.decode("latin-1"))))
def test_any_text_decodes_or_is_refused(text: str) -> None:
    with contextlib.suppress(ValueCodingError):
        decode_value(text)


@given(names)
def test_a_written_segment_is_read_as_the_same(name: str) -> None:
    path, query = route_path(f"/a/{quote_segment(name)}".encode())
    assert (path.removeprefix("/a/"), query) == (name, "")


@given(st.binary(max_size=60))
def test_any_target_has_a_path_or_is_refused(target: bytes) -> None:
    with contextlib.suppress(PathError):
        route_path(target)


@given(values)
def test_indenting_changes_nothing_but_space(value: Any) -> None:
    compact = gojson.dumps(value)
    assert json.loads(indent(compact)) == json.loads(compact)


requests = st.binary(max_size=200) | st.builds(
    lambda method, path, header, body: (
        method + b" /api/" + path + b" HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n" + body
    ),
    st.sampled_from([b"GET", b"PUT", b"POST", b"DELETE", b"HEAD", b"OPTIONS", b"PRI", b"CONNECT"]),
    st.binary(max_size=40)
    | st.sampled_from([b"ledger/a/b/c", b"dns", b"ledger?pretty", b"v1/watch?since=1&timeout=0"]),
    st.binary(max_size=30)
    | st.sampled_from([b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Content-Type: application/json"]),
    st.binary(max_size=60),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(requests, min_size=1, max_size=8))
def test_the_server_outlives_any_bytes(messages: list[bytes]) -> None:
    async def run(listen: str) -> None:
        async with serving(FakeBackend(), listen) as address:
            for message in messages:
                # It may refuse while we are still sending.
                with contextlib.suppress(trio.BrokenResourceError):
                    await raw_exchange(address, message, half_close=True)
            async with DaemonClient(address) as client:
                assert (await client.summary())["NodeID"]

    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, f"unix://{folder}/s")


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(names, values, min_size=1, max_size=5))
def test_what_is_put_is_got(records: dict[str, Any]) -> None:
    async def run(listen: str) -> None:
        async with serving(FakeBackend(), listen) as address, DaemonClient(address) as client:
            for key, value in records.items():
                await client.put("bucket", key, value)
            for key, value in records.items():
                assert await client.get("bucket", key) == value

    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, f"unix://{folder}/s")
