"""Our API server held against what EdgeVPN v0.35.4 answered, byte for byte (recordings/api-035.jsonl).

Two ways: states whose ledger was recorded are loaded and every answer compared; and the whole course of writes and
deletes on node a is replayed, request by request, on the state before it. Where we differ on purpose it says so here:

================================  ====================================================================================
difference                        reason
================================  ====================================================================================
order of lists                    Go's is random at every request; ours is sorted by key
framing                           Go chunks bodies above 2 kB; we always send Content-Length
``/``, ``/app``                   the web page is a part of its own and not built in (404, as the assets are in Go)
``/api/peergate``                 exists only with a peer gater, which this daemon has not got
HEAD 405                          ours carries Content-Type and Content-Length of the body that it leaves out
type errors of POST /api/dns      status 400 as in Go; the text does not imitate the names of Go's types
raw UTF-8 in a request line       400: HTTP forbids it, and every client escapes it
HTTP/1.0                          answered with a status line of HTTP/1.1, as HTTP asks for
refusals in plain text            ours carry Content-Length
``/api/metrics/peer/X``           an unknown X gives zeros without creating an entry
================================  ====================================================================================
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from provider_kairos.api.address import parse_unix_mode
from provider_kairos.api.testing import FakeBackend, ask, raw_exchange, serving
from provider_kairos.errors import HostError

RECORDS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "recordings" / "api-035.jsonl").read_text().splitlines()
]
EXCHANGES = [record for record in RECORDS if record["record"] == "exchange"]
LOADABLE = (
    ("api-command-alone", "c"),
    ("vpn-alone", "a"),
    ("two-nodes", "a"),
    ("two-nodes", "b"),
    ("just-after-delete", "a"),
    ("just-after-delete", "b"),
    ("after-delete", "a"),
    ("after-delete", "b"),
    ("peer-killed-20s", "a"),
)
LISTS = re.compile(r"/api/(machines|users|services|files|dns|nodes|peerstore)(\?pretty)?")
NOT_SERVED = re.compile(r"/app.*|/api/peergate.*")
OTHER_TEXT = {"[]", '{"Regex":5,"Records":{}}'}


def of_state(state: str, node: str) -> list[dict[str, Any]]:
    return [record for record in EXCHANGES if record["state"] == state and record["node"] == node]


def answer_to(records: list[dict[str, Any]], path: str) -> Any:
    found = next((record for record in records if record["path"] == path and record["method"] == "GET"), None)
    return None if found is None else json.loads(found["body"])


def backend_of(state: str, node: str) -> FakeBackend:
    """A daemon in the recorded state."""
    records = of_state(state, node)
    backend = FakeBackend(answer_to(records, "/api/ledger"))
    block = next((record["body"] for record in records if record["path"] == "/api/blockchain"), None)
    backend.block = block.rstrip("\n") if block else None
    backend.now = records[0]["t"] / 1e9
    summary = answer_to(records, "/api/summary")
    if summary is None:
        return backend
    backend.peer_id = summary["NodeID"]
    backend.block_index = summary["BlockChain"]
    backend.known = [item["ID"] for item in answer_to(records, "/api/peerstore")]
    off_topic = {item["PeerID"] for item in answer_to(records, "/api/machines") if not item["OnChain"]}
    nodes = [item["ID"] for item in answer_to(records, "/api/nodes")]
    topic = [peer for peer in nodes if peer != backend.peer_id and peer not in off_topic]
    backend.topic = topic[: summary["OnChainNodes"]]
    assert len(backend.topic) == summary["OnChainNodes"]
    backend.total = answer_to(records, "/api/metrics")
    backend.protocols = answer_to(records, "/api/metrics/protocol")
    backend.peers = answer_to(records, "/api/metrics/peer")
    return backend


def elements(body: str) -> list[str]:
    """The elements of a list, each as text, in an order that does not depend on the daemon."""
    return sorted(json.dumps(item) for item in json.loads(body, object_pairs_hook=list))


def compare(record: dict[str, Any], status: int, headers: dict[str, str], body: str) -> None:
    what = f"{record['state']} {record['node']}: {record['method']} {record['path']}"
    recorded = {name.lower(): value for name, value in record["headers"]}
    if NOT_SERVED.fullmatch(record["path"]):
        assert status in {200, 404, 405}, what
        return
    assert status == record["status"], what
    assert headers.get("allow") == recorded.get("allow"), what
    if record["method"] == "HEAD":
        assert body == record["body"] == "", what
        return
    assert headers.get("content-type") == recorded.get("content-type"), what
    if record["request_body"] in OTHER_TEXT and record["status"] == 400:
        assert json.loads(body)["message"].startswith("code=400, message=Unmarshal type error"), what
        return
    if "body" not in record:
        raw = body.encode("utf-8", "surrogateescape")
        assert len(raw) == record["body_length"], what
        assert hashlib.sha256(raw).hexdigest() == record["body_sha256"], what
        return
    if "content-length" in recorded:
        assert headers["content-length"] == recorded["content-length"], what
    if LISTS.fullmatch(record["path"]) and record["method"] == "GET":
        assert elements(body) == elements(record["body"]), what
        assert len(body) == len(record["body"]), what
    else:
        assert body == record["body"], what


async def replay(address: str, record: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    path = record["path"]
    if "path_length" in record:
        start = path.rstrip("x")
        path = start + "x" * (record["path_length"] - len(start))
    headers = "".join(f"{name}: {value}\r\n" for name, value in record["request_headers"].items())
    return await ask(address, record["method"], path, (record["request_body"] or "").encode(), headers)


@pytest.fixture
def listen(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/api.sock"


@pytest.mark.parametrize(("state", "node"), LOADABLE)
def test_every_answer_of_a_recorded_state(state: str, node: str, listen: str) -> None:
    compared = 0

    async def run() -> None:
        nonlocal compared
        async with serving(backend_of(state, node), listen) as address:
            for record in of_state(state, node):
                compare(record, *await replay(address, record))
                compared += 1

    trio.run(run)
    assert compared >= 2


def test_every_odd_route_and_method(listen: str) -> None:
    records = of_state("routes", "a")

    async def run() -> None:
        async with serving(backend_of("two-nodes", "a"), listen) as address:
            for record in records:
                compare(record, *await replay(address, record))

    trio.run(run)
    assert len(records) > 40


def course() -> Iterator[dict[str, Any]]:
    for state in ("writes", "after-writes", "deletes"):
        yield from of_state(state, "a")


# These hold what changes by itself while the recorder works: times of heartbeats, the block's index.
MOVING = {"/api/summary", "/api/ledger", "/api/blockchain"}


def test_the_course_of_writes_and_deletes_on_one_node(listen: str) -> None:
    backend = backend_of("two-nodes", "a")
    compared = 0

    async def run() -> None:
        nonlocal compared
        async with serving(backend, listen) as address:
            for record in course():
                backend.now = record["t"] / 1e9
                answer = await replay(address, record)
                if not (record["state"] == "after-writes" and record["path"] in MOVING):
                    compare(record, *answer)
                    compared += 1

    trio.run(run)
    assert compared > 100
    left = answer_to(of_state("just-after-delete", "a"), "/api/ledger")
    for name in set(left) | set(backend.data):
        if name != "healthcheck":
            assert (backend.data.get(name) or {}) == left.get(name, {}), name


RAW = {record["note"]: record for record in RECORDS if record["record"] == "raw-exchange"}


@pytest.mark.parametrize("note", sorted(RAW))
def test_raw_bytes(note: str, listen: str) -> None:
    record = RAW[note]
    backend = backend_of("two-nodes", "a")
    # The index and the number of machines grew while the recorder wrote: take them from the answer.
    if found := re.search(r'"Machines":(\d+).*?"BlockChain":(\d+)', record["response_raw"]):
        backend.block_index = int(found[2])
        while len(backend.data["machines"]) < int(found[1]):
            backend.data["machines"]["10.1.0.77"] = '"notjson"'

    async def run() -> bytes:
        async with serving(backend, listen) as address:
            return await raw_exchange(address, record["request_raw"].encode("latin-1"))

    ours = trio.run(run).decode("latin-1")
    if note == "raw UTF-8 bytes in the path":
        assert ours.startswith("HTTP/1.1 400 ")
        return
    if note == "two requests in one write":
        assert ours.count("HTTP/1.1 200 OK\r\n") == record["response_raw"].count("HTTP/1.1 200 OK\r\n") == 2
        return
    (our_head, _, our_body), (head, _, body) = ours.partition("\r\n\r\n"), record["response_raw"].partition("\r\n\r\n")
    assert our_head.split()[1] == head.split()[1]
    assert our_body == body
    assert re.findall("Content-Type: .*", our_head) == re.findall("Content-Type: .*", head)


UNIX = {record["name"]: record for record in RECORDS if record.get("kind") == "unix" and record["command"] == "api"}


@pytest.mark.parametrize("name", sorted(n for n, r in UNIX.items() if r["during"] and r["exit_code_after_3s"] is None))
def test_mode_of_the_socket(name: str, tmp_path: Path) -> None:
    record = UNIX[name]
    path = tmp_path / "api.sock"

    async def run() -> str:
        if record["before"] is not None:
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            await sock.bind(str(path))
            sock.close()  # stale: nobody listens
        mode = parse_unix_mode(record["env"].get("APILISTENUNIXMODE"))
        async with serving(FakeBackend(), f"unix://{path}", unix_mode=mode):
            return oct(stat.S_IMODE(path.stat().st_mode))

    assert trio.run(run) == record["during"]["mode"]
    assert not path.exists()


@pytest.mark.parametrize("name", ["live", "regular-file", "missing-directory"])
def test_what_lies_in_the_way_stops_the_start(name: str, tmp_path: Path) -> None:
    assert UNIX[name]["exit_code_after_3s"] == 1
    path = tmp_path / "api.sock"

    async def run() -> None:
        listen = f"unix://{path}"
        if name == "live":
            async with serving(FakeBackend(), listen), serving(FakeBackend(), listen):
                raise AssertionError("two servers at one socket")
        if name == "regular-file":
            path.write_text("precious")
        else:
            listen = f"unix://{tmp_path}/missing/api.sock"
        async with serving(FakeBackend(), listen):
            raise AssertionError("started")

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(run)
    _, rest = caught.value.split(HostError)
    assert rest is None
    if name == "regular-file":
        assert path.read_text() == "precious"
