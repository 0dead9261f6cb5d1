"""The published document and the running server agree: whatever is asked, the answer is one that the document has."""

from __future__ import annotations

import copy
import json
import tempfile
from typing import Any
from urllib.parse import quote

import jsonschema  # type: ignore[import-untyped]
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from provider_kairos.api import native_model, openapi
from provider_kairos.api.model import ledger_text
from provider_kairos.api.native import native_routes
from provider_kairos.api.operations import EVENTS, OPERATIONS, STREAM, Operation, Query
from provider_kairos.api.sse import EventReader
from provider_kairos.api.testing import PEER, FakeBackend, FakeGate, ask, serving

DOCUMENT = openapi.document()
OTHER = "12D3KooWLTiwbgJhHPkV7jLHeBFSaHae6AEHHoQBdDiRR5SpGX7d"
BY_NAME = {operation.name: operation for operation in OPERATIONS}
ORDER = sorted(OPERATIONS, key=lambda operation: ["PUT", "GET", "DELETE"].index(operation.method))
UNDOCUMENTED = {400, 413, 431}
"""What is no request at all is refused before there is a route."""


def strict(value: Any) -> Any:
    """A schema whose objects have no other fields: a reader has to tolerate new ones, the server must not invent any."""
    if isinstance(value, dict):
        made = {name: strict(each) for name, each in value.items()}
        if made.get("type") == "object" and "properties" in made:
            made["additionalProperties"] = False
        return made
    return [strict(each) for each in value] if isinstance(value, list) else value


COMPONENTS = strict(copy.deepcopy(DOCUMENT["components"]))


def check(schema: Any, value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": COMPONENTS}).validate(value)


# -- the document itself -----------------------------------------------------------------------------------------------


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"


def test_every_native_route_is_in_it_and_nothing_else() -> None:
    routes = {(route.method.lower(), openapi.template(route.pattern)) for route in native_routes(FakeBackend())}
    documented = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert documented == routes
    older = {
        path for path, methods in DOCUMENT["paths"].items() if any(each.get("deprecated") for each in methods.values())
    }
    assert older == {path for path in DOCUMENT["paths"] if path.startswith("/api/v1/")} != set()


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [each["operationId"] for methods in DOCUMENT["paths"].values() for each in methods.values()]
    assert len(names) == len(set(names))


def test_every_shape_is_used_and_described() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    shapes = {name for name in native_model.__all__ if hasattr(getattr(native_model, name), "__total__")}
    assert shapes <= set(schemas)
    assert all(each["description"] for each in schemas.values())


# -- the server --------------------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), max_size=12)
common = st.sampled_from(["kairos", "dns", "a/b", "é?#%2F"])
names = st.one_of(common, common, common, words)
peers = st.sampled_from([PEER, OTHER, "nobody", "machines/x"])
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
records = st.fixed_dictionaries(
    {"PeerID": peers | st.none()}, optional={"Name": values, "Hostname": words, "Address": words}
)
texts = st.one_of(
    values.map(ledger_text),
    values.map(json.dumps),
    records.map(json.dumps),
    words,
    st.sampled_from(["1e999", "[" * 300 + "]" * 300, '"2026-11-23T07:14:06Z"', '{"1":"10.1.0.1","x":"y"}']),
)
buckets = st.sampled_from(["machines", "healthcheck", "services", "files", "users", "dns", "kairos"]) | words
ledgers = st.dictionaries(common | buckets, st.dictionaries(common | peers | words, texts, max_size=5), max_size=8)
right: dict[Any, st.SearchStrategy[Any]] = {
    native_model.WriteBody: st.fixed_dictionaries(
        {"value": values}, optional={"encoding": st.sampled_from(["base64", "json"])}
    ),
    native_model.DnsBody: st.just({"records": {"A": "10.1.0.1", "AAAA": "fd00::1", "TXT": "x"}}),
    native_model.GateBody: st.fixed_dictionaries({"enabled": st.booleans()}),
}
wrong: st.SearchStrategy[str] = st.one_of(
    st.fixed_dictionaries({"value": values, "encoding": words}).map(json.dumps),
    st.dictionaries(st.sampled_from(["records", "enabled", "value", "x"]), values, max_size=2).map(json.dumps),
    values.map(json.dumps),
    st.sampled_from(["", "{", "[" * 3000, '{"value": NaN}', '{"value": 1e999}', "\ud800"]),
)


def wish(query: Query) -> st.SearchStrategy[str]:
    """A value of a parameter, right or wrong."""
    if query.name == "timeout":
        return st.just("0")
    fitting: st.SearchStrategy[Any] = st.sampled_from(query.choices) if query.choices else names
    if query.kind is not str:
        fitting = st.integers() if query.kind is int else st.sampled_from(["true", "false"])
    return fitting.map(str) if query.kind is bool else st.one_of(fitting.map(str), fitting.map(str), words)


@st.composite
def requests(draw: st.DrawFn, operation: Operation) -> tuple[str, str, str, str]:
    """The name of an operation, its target, a body and its type."""
    path = draw(st.sampled_from([operation.path, operation.older])) or operation.path
    target = "/".join(
        quote(draw(peers if "peer" in part else names), safe="") if part.startswith(":") else part
        for part in path.split("/")
    )
    query = [
        f"{each.name}={quote(draw(wish(each)), safe='')}"
        for each in operation.query
        for _ in range(draw(st.integers(each.name in {"timeout", "snapshot"}, 2 if each.many else 1)))
    ]
    body = ""
    if operation.body is not None:
        good = right[operation.body].map(json.dumps)
        body = draw(st.one_of(good, good, wrong))
    kind = draw(st.sampled_from(["application/json", "application/json; charset=utf-8", "text/plain"]))
    return operation.name, target + ("?" + "&".join(query) if query else ""), body, kind


def backend_of(ledger: dict[str, dict[str, str]], *, odd: bool) -> FakeBackend:
    backend = FakeBackend(ledger)
    backend.links, backend.topic = [OTHER], [OTHER]
    backend.counters = {"blocks": 3}
    backend.protocols = {'/x\n"': {"TotalIn": 1, "TotalOut": 2, "RateIn": 0.5, "RateOut": 1e-9}}
    backend.peers = dict.fromkeys([OTHER], backend.protocols['/x\n"'])
    backend.reasons = [{"code": "mesh-no-peers", "text": "nobody", "known": 0}]
    backend.events.state = [("address", {"address": None, "interface": "edgevpn0"})]
    backend.authors = {("kairos", key): OTHER for key in ledger.get("kairos", {})} if odd else {}
    backend.graves = {("dns", "gone"), ("kairos", "")}
    backend.others = [
        {
            "peer_id": OTHER,
            "hostname": None,
            "address": "10.1.0.2",
            "heartbeat_age": 3.5,
            "on_topic": True,
            "connected": True,
            "native": None,
            "direction": "in",
            "security": "noise",
            "rtt_ms": 0.5,
            "agent": None,
            "addresses": ["/ip4/10.0.0.1/tcp/1"],
            "last_error": None,
            "found_by": None,
        }
    ]
    if odd:
        backend.gate = FakeGate()
        backend.document = {"schema": 1, "role": "master", "leader": None, "phases": [], "waiting": [], "ready": True}
    return backend


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.tuples(*(requests(each) for each in ORDER)), ledgers, st.booleans())
def test_every_answer_is_one_that_the_document_has(
    asked: tuple[tuple[str, str, str, str], ...], ledger: dict[str, dict[str, str]], odd: bool
) -> None:
    async def run(listen: str) -> None:
        async with serving(backend_of(ledger, odd=odd), listen) as address:
            for name, target, body, kind in asked:
                operation = BY_NAME[name]
                data = body.encode("utf-8", "surrogatepass")
                headers = f"Content-Type: {kind}\r\n" if data else ""
                if operation.media == STREAM:
                    await look_at_stream(address, target)
                else:
                    judge(operation, target, *await ask(address, operation.method, target, data, headers))

    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, f"unix://{folder}/s")


def judge(operation: Operation, target: str, status: int, headers: dict[str, str], body: str) -> None:
    answers = DOCUMENT["paths"][openapi.template(operation.path)][operation.method.lower()]["responses"]
    if str(status) not in answers:
        assert status in UNDOCUMENTED, f"{operation.method} {target}: {status}"
        return
    assert status != 500
    media = headers["content-type"]
    schema = answers[str(status)]["content"][media]["schema"]
    if media.endswith("json"):
        check(schema, json.loads(body))
    else:
        assert isinstance(body, str)


async def look_at_stream(address: str, target: str) -> None:
    """Everything up to the point where nothing more comes has the shapes of the document."""
    stream = await trio.open_unix_socket(address.removeprefix("unix://"))
    async with stream:
        await stream.send_all(f"GET {target} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        head, _, rest = (await stream.receive_some(65536)).partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status != 200:
            assert status == 400
            return
        reader = EventReader()
        events = reader.feed(rest)
        while not events or (events[-1].kind != "synced" and "snapshot=true" in target):
            events += reader.feed(await stream.receive_some(65536))
        for event in events:
            shape = EVENTS[event.kind].__name__
            check({"$ref": f"#/components/schemas/{shape}"}, json.loads(event.data))
