"""Our own routes: what each says of a given state, what a write does, what is refused and how."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from provider_kairos.api.http import Limits, Load
from provider_kairos.api.model import ledger_text
from provider_kairos.api.openapi import text as published
from provider_kairos.api.testing import PEER, FakeBackend, FakeGate, ask, raw_exchange, serving
from provider_kairos.errors import HostError

OTHER = "12D3KooWLTiwbgJhHPkV7jLHeBFSaHae6AEHHoQBdDiRR5SpGX7d"
JSON = "Content-Type: application/json\r\n"


class Api:
    """A server in a thread-less loop: each call is a run of its own on the same backend."""

    def __init__(self, folder: Path) -> None:
        self.backend = FakeBackend()
        self.listen = f"unix://{folder}/api.sock"

    def call(self, method: str, path: str, body: Any = None, headers: str = JSON) -> tuple[int, Any]:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()

        async def run() -> tuple[int, dict[str, str], str]:
            async with serving(self.backend, self.listen) as address:
                return await ask(address, method, path, data, headers if data else "")

        status, said, text = trio.run(run)
        return status, json.loads(text) if said.get("content-type", "").endswith("json") else text

    def get(self, path: str) -> Any:
        status, value = self.call("GET", path)
        assert status == 200, value
        return value


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


# -- the ledger


def test_records_say_what_they_hold_and_whose_they_are(api: Api) -> None:
    api.backend.data = {
        "kairos": {"ip": ledger_text("10.1.0.1"), "plain": '{"a":[1,2]}', "junk": "no json", "word": '"Im1hc3RlciI="'}
    }
    api.backend.authors = {("kairos", "ip"): OTHER}
    found = {each["key"]: each for each in api.get("/v1/ledger/kairos")["records"]}
    assert {key: (each["encoding"], each["value"]) for key, each in found.items()} == {
        "ip": ("base64", "10.1.0.1"),
        "plain": ("json", {"a": [1, 2]}),
        "junk": ("none", None),
        "word": ("base64", "master"),
    }
    assert found["junk"]["text"] == "no json"
    assert found["ip"]["author"] == OTHER
    assert found["ip"]["signed"]
    # above 2**53, where a number would lose digits
    assert found["ip"]["version"] == str(2**60 + 1)
    one = api.get("/v1/ledger/kairos/ip")
    assert one == {**found["ip"], "schema": 1, "instance": "fake1", "revision": 0, "bucket": "kairos"}


def test_what_was_deleted_is_shown_when_asked_for(api: Api) -> None:
    api.backend.data = {"b": {"stays": '"1"', "goes": '"2"'}}
    assert api.call("DELETE", "/v1/ledger/b/goes")[1]["changed"] == 1
    assert [each["key"] for each in api.get("/v1/ledger/b")["records"]] == ["stays"]
    whole = api.get("/v1/ledger/b?deleted=true")["records"]
    assert [(each["key"], each["deleted"], each["text"]) for each in whole] == [
        ("goes", True, ""),
        ("stays", False, '"1"'),
    ]
    assert api.call("GET", "/v1/ledger/b/goes")[0] == 404
    assert api.get("/v1/ledger/b/goes?deleted")["deleted"]
    assert api.get("/v1/ledger")["buckets"] == [{"name": "b", "records": 1, "deleted": 1}]
    assert api.get("/v1/ledger/nothing")["records"] == []


def test_a_value_is_written_as_tools_do_or_as_json(api: Api) -> None:
    status, said = api.call("PUT", "/v1/ledger/kairos/ip-master", {"value": "10.1.0.1"})
    assert (status, said["changed"], said["refused"]) == (200, 1, [])
    assert api.backend.data["kairos"]["ip-master"] == ledger_text("10.1.0.1")
    assert api.backend.flushed == 1, "only what is on disk is acknowledged"
    assert api.call("PUT", "/v1/ledger/kairos/ip-master", {"value": "10.1.0.1"})[1]["changed"] == 0
    api.call("PUT", "/v1/ledger/kairos/ip-master", {"value": {"a": None}, "encoding": "json"})
    assert api.backend.data["kairos"]["ip-master"] == '{"a":null}'


@pytest.mark.parametrize(
    ("path", "place"), [("a%2Fb/c%25d", ("a/b", "c%d")), ("b/", ("b", "")), ("%C3%A4/%20", ("ä", " "))]
)
def test_any_bucket_and_key_can_be_named(api: Api, path: str, place: tuple[str, str]) -> None:
    assert api.call("PUT", f"/v1/ledger/{path}", {"value": 1})[0] == 200
    assert api.backend.data == {place[0]: {place[1]: ledger_text(1)}}
    assert api.get(f"/v1/ledger/{path}")["value"] == 1
    assert api.call("DELETE", f"/v1/ledger/{path}")[1]["changed"] == 1
    assert not api.backend.get(*place)


def test_a_record_of_somebody_else_is_refused_with_its_owner(api: Api) -> None:
    api.backend.data = {"machines": {"10.1.0.2": '"theirs"', "10.1.0.1": '"ours"'}}
    api.backend.authors = {("machines", "10.1.0.2"): OTHER}
    for method, path in (("PUT", "/10.1.0.2"), ("DELETE", "/10.1.0.2")):
        status, said = api.call(method, f"/v1/ledger/machines{path}", {"value": 1} if method == "PUT" else None)
        assert (status, said["code"]) == (409, "owned-by-another")
        assert OTHER in said["message"]
    # of a whole bucket what may go goes
    status, said = api.call("DELETE", "/v1/ledger/machines")
    assert (status, said["changed"]) == (200, 1)
    assert said["refused"][0]["owner"] == OTHER
    assert api.backend.data == {"machines": {"10.1.0.2": '"theirs"'}}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", "", 400),
        (b"{", JSON, 400),
        (b"[1]", JSON, 400),
        (b"{}", JSON, 400),
        (b'{"value":1,"more":2}', JSON, 400),
        (b'{"value":1,"encoding":"hex"}', JSON, 400),
        (b'{"value":NaN}', JSON, 400),
        (b'{"value":1e999}', JSON, 400),
        (b'{"value":' + b"[" * 100 + b"]" * 100 + b"}", JSON, 400),
        (b'{"value":"\xff"}', JSON, 400),
        (b'{"value":1}', "Content-Type: text/plain\r\n", 415),
    ],
)
def test_a_wrong_body_is_refused(api: Api, body: bytes, headers: str, status: int) -> None:
    found, said = api.call("PUT", "/v1/ledger/b/k", body, headers)
    assert found == status
    assert set(said) == {"code", "message"}
    assert api.backend.data == {}


def test_refusals_have_a_word_also_under_the_older_paths(api: Api) -> None:
    assert api.call("GET", "/v1/nothing") == (404, {"code": "not-found", "message": "Not Found"})
    assert api.call("POST", "/v1/status")[1]["code"] == "method-not-allowed"
    assert api.call("GET", "/api/v1/watch?since=x")[1]["code"] == "bad-request"
    assert api.call("GET", "/api/nothing") == (404, {"message": "Not Found"})
    assert api.call("OPTIONS", "/v1/ledger/a/b")[0] == 204
    assert api.call("GET", "/v1/ledger/%zz")[0] == 400
    assert api.call("GET", "/v1/ledger/%ff")[0] == 400
    assert api.call("GET", "/v1/ledger/a?deleted=maybe")[1]["code"] == "bad-request"


def test_a_full_disk_is_said(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full() -> None:
        await trio.lowlevel.checkpoint()
        raise HostError("cannot write mesh.db: disk is full", hint="free some space")

    monkeypatch.setattr(api.backend, "persisted", full)
    status, said = api.call("PUT", "/v1/ledger/b/k", {"value": 1})
    assert (status, said["code"]) == (503, "service-unavailable")
    assert "free some space" in said["message"]


# -- what the ledger says


def test_nodes_services_files_users(api: Api) -> None:
    backend = api.backend
    backend.links, backend.topic = [OTHER], [OTHER]
    backend.data = {
        "machines": {
            "10.1.0.1": json.dumps({"PeerID": PEER, "Hostname": "box1", "Address": "10.1.0.1"}),
            "10.1.0.2": json.dumps({"PeerID": OTHER, "Hostname": "box2", "Address": "10.1.0.2", "OS": "linux"}),
            "10.1.0.3": "junk",
        },
        "healthcheck": {OTHER: '"2023-11-14T22:13:00Z"', PEER: '"2023-11-14T21:00:00Z"'},
        "services": {"web": json.dumps({"PeerID": OTHER, "Name": "web"})},
        "files": {"image": json.dumps({"PeerID": PEER, "Name": "image"})},
        "users": {OTHER: json.dumps({"PeerID": OTHER, "Timestamp": "then"})},
    }
    own, other, junk = api.get("/v1/nodes")["nodes"]
    assert (own["hostname"], own["own"], own["connected"], own["online"]) == ("box1", True, False, False)
    assert (other["own"], other["connected"], other["on_topic"], other["online"]) == (False, True, True, True)
    assert other["heartbeat_age"] == 20.0
    assert (junk["peer_id"], junk["heartbeat_age"]) == ("", None)
    named = {"peer_id": OTHER, "own": False, "connected": True, "online": True}
    assert api.get("/v1/services")["services"] == [{"name": "web", **named}]
    assert api.get("/v1/files")["files"] == [
        {"name": "image", "peer_id": PEER, "own": True, "connected": False, "online": False}
    ]
    assert api.get("/v1/users")["users"] == [{"name": "then", **named}]


def test_names_are_written_read_and_deleted(api: Api) -> None:
    pattern = r"db\.site\.$"
    path = "/v1/dns/db%5C.site%5C.%24"
    assert api.call("PUT", path, {"records": {"AAAA": "fd00::1", "A": "10.1.0.9", "TXT": "x"}})[0] == 200
    assert api.backend.data["dns"][pattern] == '{"1":"10.1.0.9","16":"x","28":"fd00::1"}'
    (entry,) = api.get("/v1/dns")["entries"]
    assert entry == {
        "pattern": pattern,
        "records": {"A": "10.1.0.9", "AAAA": "fd00::1", "TXT": "x"},
        "author": PEER,
        "updated_at": 1_700_000_000,
    }
    assert api.call("DELETE", path)[1]["changed"] == 1
    assert api.get("/v1/dns")["entries"] == []


@pytest.mark.parametrize(
    "records", [{"A": "fd00::1"}, {"AAAA": "10.1.0.1"}, {"NOPE": "x"}, {"None": "x"}, {"A": 1}, [], None]
)
def test_names_that_nobody_could_answer_with_are_refused(api: Api, records: Any) -> None:
    assert api.call("PUT", "/v1/dns/x", {"records": records})[0] == 400
    assert api.backend.data == {}


# -- the node


def test_peers_and_one_of_them(api: Api) -> None:
    peer: Any = {"peer_id": OTHER, "hostname": "box2", "agent": "x"}
    api.backend.others = [peer]
    assert api.get("/v1/peers")["peers"] == [peer]
    assert api.get(f"/v1/peers/{OTHER}") == peer
    assert api.call("GET", f"/v1/peers/{PEER}")[0] == 404


def test_status_is_the_same_under_both_paths(api: Api) -> None:
    assert api.get("/v1/status") == api.get("/api/v1/status") == api.backend.status()
    assert api.call("GET", "/v1/healthz") == api.call("GET", "/api/v1/healthz") == (200, "ok\n")
    api.backend.is_healthy = False
    assert api.call("GET", "/v1/healthz")[0] == 503
    assert api.get("/v1/watch?bucket=a") == api.get("/api/v1/watch?bucket=a")


def test_what_the_provider_says(api: Api) -> None:
    assert api.call("GET", "/v1/provider")[0] == 404
    api.backend.document = {"schema": 1, "role": "master"}
    assert api.get("/v1/provider")["role"] == "master"


def test_the_gate(api: Api) -> None:
    assert api.call("GET", "/v1/peergate")[0] == 404
    assert api.call("PUT", "/v1/peergate", {"enabled": False})[0] == 404
    api.backend.gate = FakeGate()
    assert api.get("/v1/peergate")["enabled"]
    assert api.call("PUT", "/v1/peergate", {"enabled": False}) == (200, {"schema": 1, "enabled": False})
    assert api.call("PUT", "/v1/peergate", {"enabled": "no"})[0] == 400
    assert not api.backend.gate.enabled


def test_the_document_is_the_published_one(api: Api) -> None:
    assert json.dumps(api.get("/v1/openapi.json")) == json.dumps(json.loads(published())), "run docs/generate.py"


def test_metrics_are_what_prometheus_reads(api: Api) -> None:
    backend = api.backend
    backend.counters = {"blocks_received": 3, 'odd"\\\n': 1}
    backend.protocols = {'/x"\\\n/1': {"TotalIn": 5, "TotalOut": 7, "RateIn": 0.5, "RateOut": 0}}
    backend.reasons = [{"code": "mesh-no-peers", "text": "nobody"}, {"code": "mesh-no-peers", "text": "nobody else"}]
    status, text = api.call("GET", "/v1/metrics")
    assert status == 200
    families = {each.name: each for each in text_string_to_metric_families(text)}
    samples = {(s.name, *sorted(s.labels.items())): s.value for f in families.values() for s in f.samples}
    assert samples["kairos_p2p_ready",] == 1
    assert samples["kairos_p2p_waiting", ("reason", "mesh-no-peers")] == 1
    assert samples["kairos_p2p_events_total", ("kind", "blocks_received")] == 3
    assert samples["kairos_p2p_events_total", ("kind", 'odd"\\\n')] == 1
    assert samples["kairos_p2p_received_bytes_total", ("protocol", '/x"\\\n/1')] == 5
    assert samples["process_resident_memory_bytes",] > 1e6
    assert PEER not in text
    assert families["kairos_p2p_events"].type == "counter"


# -- the page, the debugging


def test_a_person_finds_a_page(api: Api) -> None:
    status, text = api.call("GET", "/app/anything")
    assert status == 200
    for link in re.findall('href="([^"?]+)', text):
        assert api.call("GET", link)[0] == 200
    assert api.call("GET", "/app/../api/summary")[0] == 404


def test_tasks_are_shown_only_when_asked_for(api: Api) -> None:
    assert api.call("GET", "/debug/tasks")[0] == 404
    api.backend.debug = True
    api.backend.data = {"secret": {"token": '"very-secret"'}}
    status, text = api.call("GET", "/debug/tasks")
    assert status == 200
    assert "listener.py" in text
    assert "very-secret" not in text
    assert api.call("GET", "/debug/pprof/")[0] == 404


# -- many at once


def test_all_clients_together_hold_a_bounded_amount(tmp_path: Path) -> None:
    """Clients that ask for much and read nothing cost what the limit says; the next one is told to come later."""
    backend = FakeBackend({"big": {"k": "x" * 3_000_000}})
    listen = f"unix://{tmp_path}/s"
    load = Load()

    async def run() -> None:
        async with serving(backend, listen, Limits(held_bytes=8_000_000), load=load) as address:
            streams = []
            for _ in range(6):
                stream = await trio.open_unix_socket(address.removeprefix("unix://"))
                streams.append(stream)
                await stream.send_all(b"GET /api/ledger/big HTTP/1.1\r\nHost: x\r\n\r\n")
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert 8_000_000 < load.held < 12_000_000
            assert b" 503 " in await raw_exchange(address, b"GET /api/summary HTTP/1.1\r\nHost: x\r\n\r\n")
            for stream in streams:
                await stream.aclose()
            with trio.fail_after(60):
                while load.held:  # noqa: ASYNC110 - nothing tells
                    await trio.sleep(0.01)
            assert (await ask(address, "GET", "/api/summary"))[0] == 200

    trio.run(run)


def test_heads_that_never_end_hold_a_bounded_amount(tmp_path: Path) -> None:
    listen = f"unix://{tmp_path}/s"

    async def run() -> None:
        async with serving(FakeBackend(), listen, Limits(held_bytes=1_000_000)) as address:
            answers: list[bytes] = []

            async def greedy() -> None:
                stream = await trio.open_unix_socket(address.removeprefix("unix://"))
                async with stream:
                    try:
                        await stream.send_all(b"GET /" + b"x" * 400_000)
                        answers.append(await stream.receive_some(100))
                    except trio.BrokenResourceError:
                        answers.append(b" 503 ")

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(greedy)
                with trio.fail_after(60):
                    while len(answers) < 3:  # noqa: ASYNC110 - nothing tells
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            assert all(b" 503 " in answer for answer in answers)

    trio.run(run)


def test_slow_clients_do_not_keep_others_out(tmp_path: Path) -> None:
    """All places are taken by clients that send a byte now and then: the newest client is served all the same."""
    listen = f"unix://{tmp_path}/s"

    async def run() -> None:
        limits = Limits(connections=4, crowded_seconds=0, request_seconds=3600, idle_seconds=3600)
        async with serving(FakeBackend(), listen, limits) as address:
            streams = [await trio.open_unix_socket(address.removeprefix("unix://")) for _ in range(4)]
            for stream in streams:
                await stream.send_all(b"GET /api/")
            await trio.testing.wait_all_tasks_blocked(0.01)
            for _ in range(10):
                assert (await ask(address, "GET", "/api/summary"))[0] == 200
            for stream in streams:
                await stream.aclose()

    trio.run(run)


def test_pipelined_requests_are_answered_one_after_the_other(tmp_path: Path) -> None:
    listen = f"unix://{tmp_path}/s"
    one = b"GET /api/summary HTTP/1.1\r\nHost: x\r\n\r\n"

    async def run() -> None:
        async with serving(FakeBackend(), listen) as address:
            said = await raw_exchange(address, one * 500 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert said.count(b"HTTP/1.1 200 OK\r\n") == 501

    trio.run(run)
