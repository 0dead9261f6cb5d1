"""Our API server held against what EdgeVPN v0.35.4 and v0.30.2 answered: every recorded exchange, byte for byte.

States whose ledger was recorded are loaded; the course of odd routes, writes and deletes on one node is replayed on the
state before it. Each answer is the same, the same but for the order of a list, or different in a way that
``api_answers.DIFFERENCES`` names with its reason; a row that nothing needs is an error. What cannot be rebuilt says so
in :data:`MOVING`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import stat
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from provider_kairos.api.address import parse_unix_mode
from provider_kairos.api.testing import FakeBackend, FakeGate, ask, raw_exchange, serving
from provider_kairos.errors import HostError

HERE = Path(__file__).parent
VERSIONS = {"v0.35.4": "api-035.jsonl", "v0.30.2": "api-030.jsonl"}


def _load(name: str) -> Any:
    """A module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"interop_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


answers = _load("api_answers")

RECORDS: dict[str, list[dict[str, Any]]] = {
    version: [json.loads(line) for line in (HERE / "recordings" / name).read_text("utf-8").splitlines()]
    for version, name in VERSIONS.items()
}

LOADABLE = (
    ("api-command-first-moment", "c"),
    ("api-command-alone", "c"),
    ("vpn-first-moment", "a"),
    ("vpn-alone", "a"),
    ("two-nodes", "a"),
    ("two-nodes", "b"),
    ("just-after-delete", "a"),
    ("just-after-delete", "b"),
    ("after-delete", "a"),
    ("after-delete", "b"),
    ("peer-killed-20s", "a"),
    ("peerguard", "a"),
)
COURSE = (("routes", "a"), ("writes", "a"), ("after-writes", "a"), ("deletes", "a"))
"""What happened on one node after ``two-nodes``, in this order."""

FOLLOWER = ("after-writes", "b")
"""The other node at the end of the writes: it has the same records."""

MOVING = {
    ("after-writes", "/api/summary"): "BlockChain",
    ("after-writes", "/api/ledger"): "heartbeats",
    ("after-writes", "/api/blockchain"): "heartbeats, index and times",
}
"""What changed by itself between the recorded state and this answer: the rest of it is compared."""


def of_state(version: str, state: str, node: str) -> list[dict[str, Any]]:
    records = [record for record in RECORDS[version] if record["record"] == "exchange"]
    return [record for record in records if (record["state"], record["node"]) == (state, node)]


def answer_to(records: list[dict[str, Any]], path: str) -> Any:
    found = next((record for record in records if (record["path"], record["method"]) == (path, "GET")), None)
    return None if found is None or "body" not in found else json.loads(found["body"])


def recorded(record: dict[str, Any]) -> Any:
    return answers.Answer(
        record["status"],
        {name.lower(): value for name, value in record["headers"]},
        record.get("body"),
        record.get("body_length", 0),
        record.get("body_sha256", ""),
    )


# -- recorded states ---------------------------------------------------------------------------------------------------


def backend_of(version: str, state: str, node: str) -> FakeBackend:
    """A daemon in the recorded state."""
    records = of_state(version, state, node)
    summary = answer_to(records, "/api/summary")
    backend = FakeBackend(answer_to(records, "/api/ledger") or rebuilt(records))
    block = next((record["body"] for record in records if record["path"] == "/api/blockchain"), None)
    backend.block = block.rstrip("\n") if block else None
    backend.now = records[0]["t"] / 1e9
    if state == "peerguard":
        backend.gate = FakeGate()
    if summary is None:
        backend.topic = [each["PeerID"] for each in answer_to(records, "/api/machines") or () if each["OnChain"]]
        return backend
    backend.peer_id = summary["NodeID"]
    backend.block_index = summary["BlockChain"]
    backend.known = [each["ID"] for each in answer_to(records, "/api/peerstore") or [{"ID": backend.peer_id}]]
    off_topic = {each["PeerID"] for each in answer_to(records, "/api/machines") or () if not each["OnChain"]}
    nodes = [each["ID"] for each in answer_to(records, "/api/nodes") or ()]
    topic = [peer for peer in nodes if peer != backend.peer_id and peer not in off_topic]
    backend.topic = topic[: summary["OnChainNodes"]]
    assert len(backend.topic) == summary["OnChainNodes"]
    backend.total = answer_to(records, "/api/metrics") or backend.total
    backend.protocols = answer_to(records, "/api/metrics/protocol") or {}
    figures = answer_to(records, "/api/metrics/peer") or {}
    others = sorted(set(backend.known) - {backend.peer_id})
    if version == "v0.30.2":  # its keys are mangled: any order will do
        backend.peers = dict(zip(others, (each for each in figures.values() if each["TotalIn"]), strict=False))
    else:
        # names that were only asked for are no peers
        backend.peers = {peer: each for peer, each in figures.items() if peer in others or each["TotalIn"]}
    backend.protocols = {name: each for name, each in backend.protocols.items() if each["TotalIn"] or "%" not in name}
    backend.links = [peer for peer, each in backend.peers.items() if each["TotalIn"]]
    return backend


def rebuilt(records: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The ledger of a state whose /api/ledger was not recorded, from what else was."""
    machines = answer_to(records, "/api/machines") or []
    nodes = answer_to(records, "/api/nodes") or []
    fields = ("PeerID", "Hostname", "OS", "Arch", "Address", "Version")
    texts = {
        each["Address"]: json.dumps({name: each[name] for name in fields}, separators=(",", ":")) for each in machines
    }
    time = json.dumps("2026-11-23T07:14:06Z")
    return {"machines": texts, "healthcheck": {each["ID"]: time for each in nodes}}


# -- replay ------------------------------------------------------------------------------------------------------------


@dataclass
class Judged:
    """One exchange and what became of it."""

    record: dict[str, Any]
    verdict: Any

    def __str__(self) -> str:
        record = self.record
        return f"{record['state']} {record['node']}: {record['method']} {record['path'][:80]}: {self.verdict.what}"


async def replay(address: str, record: dict[str, Any]) -> Judged:
    path = record["path"]
    if "path_length" in record:
        start = path.rstrip("x")
        path = start + "x" * (record["path_length"] - len(start))
    headers = "".join(f"{name}: {value}\r\n" for name, value in record["request_headers"].items())
    body = record["request_body"] or ""
    status, said, text = await ask(address, record["method"], path, body.encode(), headers)
    request = answers.Request(record["method"], record["path"], body)
    theirs, ours = recorded(record), answers.Answer(status, said, text)
    moving = MOVING.get((record["state"], record["path"].partition("?")[0]))
    if moving and theirs.status == 200:
        known = theirs.body is not None
        theirs, ours = still(theirs, known=known), still(ours, known=known)
    return Judged(record, answers.judge(request, theirs, ours))


def still(answer: Any, *, known: bool) -> Any:
    """An answer without what moves by itself. Where only a digest is known, status and headers remain."""
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    if not known:
        return answers.Answer(answer.status, headers, "")
    value = answer.json()
    for name in ("BlockChain", "healthcheck"):
        value.pop(name, None)
    if "Storage" in value:
        value = sorted(value)
    return answers.Answer(answer.status, headers, json.dumps(value))


async def replay_states(version: str, listen: str) -> list[Judged]:
    judged: list[Judged] = []
    for state, node in LOADABLE:
        backend = backend_of(version, state, node)
        async with serving(backend, listen) as address:
            for record in of_state(version, state, node):
                before = backend.data
                if state == "vpn-first-moment" and record["path"] == "/api/summary":
                    backend.data = {}  # asked first, before its own machine was in the ledger
                judged.append(await replay(address, record))
                backend.data = before
    return judged


async def replay_course(version: str, listen: str) -> tuple[list[Judged], FakeBackend]:
    judged: list[Judged] = []
    backend = backend_of(version, "two-nodes", "a")
    follower = backend_of(version, "two-nodes", "b")
    async with serving(backend, listen) as address:
        for state, node in COURSE:
            if state == "deletes":
                follower.data = {name: dict(keys) for name, keys in backend.data.items()}
                if version == "v0.35.4":  # with ownership nobody else takes what is no record of a machine
                    del follower.data["machines"]["10.1.0.77"]
            for record in of_state(version, state, node):
                backend.now = record["t"] / 1e9
                judged.append(await replay(address, record))
    follower.now = backend.now
    async with serving(follower, listen) as address:
        judged += [await replay(address, record) for record in of_state(version, *FOLLOWER)]
    return judged, backend


@dataclass
class Replayed:
    judged: list[Judged]
    backend: FakeBackend


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def replayed(version: str, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    listen = f"unix://{tmp_path_factory.mktemp('api')}/api.sock"

    async def run() -> Replayed:
        states = await replay_states(version, listen)
        course, backend = await replay_course(version, listen)
        return Replayed(states + course, backend)

    return trio.run(run)


def test_every_recorded_answer_is_ours_or_a_named_difference(version: str, replayed: Replayed) -> None:
    assert len(replayed.judged) == sum(record["record"] == "exchange" for record in RECORDS[version]) == 359
    wrong = [str(each) for each in replayed.judged if each.verdict.kind == answers.WRONG]
    assert wrong == []
    kinds = Counter(each.verdict.kind for each in replayed.judged)
    # the same is the rule
    assert kinds[answers.SAME] > 200


def test_no_difference_is_listed_that_does_not_exist(tmp_path: Path) -> None:
    async def run() -> set[str]:
        found = set()
        for each in VERSIONS:
            states = await replay_states(each, f"unix://{tmp_path}/s")
            course, _ = await replay_course(each, f"unix://{tmp_path}/s")
            found |= {one.verdict.what for one in states + course if one.verdict.kind == answers.DIFFERENT}
        return found

    assert trio.run(run) == {row.name for row in answers.DIFFERENCES}


def test_the_ledger_is_theirs_after_the_course(version: str, replayed: Replayed) -> None:
    left = answer_to(of_state(version, "just-after-delete", "a"), "/api/ledger")
    for name in set(left) | set(replayed.backend.data):
        if name != "healthcheck":
            assert (replayed.backend.data.get(name) or {}) == left.get(name, {}), name


def test_the_documentation_names_every_difference() -> None:
    page = (HERE.parents[1] / "docs/reference/api-differences.md").read_text("utf-8")
    for row in answers.DIFFERENCES:
        assert f"| {row.name} | {row.theirs} | {row.ours} | {row.why} |" in page
    for cells in answers.ON_THE_WIRE:
        assert "| " + " | ".join(cells) + " |" in page


# -- literal bytes -----------------------------------------------------------------------------------------------------

RAW = {
    (version, record["note"]): record
    for version in VERSIONS
    for record in RECORDS[version]
    if record["record"] == "raw-exchange"
}


@pytest.mark.parametrize(("version", "note"), sorted(RAW))
def test_raw_bytes(version: str, note: str, tmp_path: Path) -> None:
    record = RAW[version, note]
    backend = backend_of(version, "two-nodes", "a")
    # The index and the number of machines grew while the recorder wrote: take them from the answer.
    if found := re.search(r'"Machines":(\d+).*?"BlockChain":(\d+)', record["response_raw"]):
        backend.block_index = int(found[2])
        while len(backend.data["machines"]) < int(found[1]):
            backend.data["machines"]["10.1.0.77"] = '"notjson"'

    async def run() -> bytes:
        async with serving(backend, f"unix://{tmp_path}/s") as address:
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


# -- the socket --------------------------------------------------------------------------------------------------------

UNIX = {
    (version, record["name"]): record
    for version in VERSIONS
    for record in RECORDS[version]
    if record.get("kind") == "unix"
}
FAILED = {"live", "regular-file", "missing-directory", "main-regular-file"}
OLD = "v0.30.2"


def test_every_socket_trial_is_looked_at() -> None:
    assert len(UNIX) == 38
    for (version, name), record in UNIX.items():
        stopped = record["exit_code_after_3s"] is not None
        if version == OLD:
            # any file in the way stops v0.30.2, also one that nobody serves
            assert stopped == (record["command"] == "api" and (record["before"] is not None or name in FAILED)), name
        else:
            # the main command goes on without an API, which ours does not: a node that nobody can ask is of no use
            assert stopped == (name in FAILED - {"main-regular-file"}), name


@pytest.mark.parametrize("name", sorted({name for _, name in UNIX} - FAILED))
def test_mode_of_the_socket(name: str, tmp_path: Path) -> None:
    record = UNIX["v0.35.4", name]
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
    # theirs stays behind, also after SIGTERM
    assert record["after"]["kind"] == "socket"
    assert not path.exists()


def test_v030_has_one_mode_and_trips_over_every_file() -> None:
    """What is not followed: it shows why."""
    modes = {record["during"]["mode"] for (v, _), record in UNIX.items() if v == OLD and record["summary"]}
    assert modes <= {"0o755"}


@pytest.mark.parametrize("name", sorted(FAILED - {"main-regular-file"}))
def test_what_lies_in_the_way_stops_the_start(name: str, tmp_path: Path) -> None:
    assert UNIX["v0.35.4", name]["exit_code_after_3s"] == 1
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
