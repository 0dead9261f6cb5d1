"""Every route and every write, to a running EdgeVPN and to our daemon, side by side (spec/edgevpn.md 11).

Two networks of two nodes each, the same but for the program of the first node, whose API is asked; the other node is an
EdgeVPN in both. The requests are those of the recordings. What changes with the node and the moment is made the same
(identities, times, versions, figures), then each pair of answers is judged as in ``test_api_recordings``: a difference
that ``api_answers`` does not name is an error. The whole is ``docs/reference/api-differences.md``: written to the file
that KAIROS_P2P_API_DIFFERENCES names (``make interop`` does), and held against the page as it is.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/reference/api-differences.md"


def _load(name: str) -> Any:
    """A module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"interop_live_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


answers, network = _load("api_answers"), _load("network")
until = network.until

RECORDS = [json.loads(line) for line in (HERE / "recordings/api-035.jsonl").read_text("utf-8").splitlines()]
READS, ROUTES, WRITES, AFTER, DELETES = "two-nodes", "routes", "writes", "after-writes", "deletes"


def recorded(state: str) -> list[dict[str, Any]]:
    """The requests of a state, on node a."""
    found = [each for each in RECORDS if each["record"] == "exchange" and each["node"] == "a"]
    return [each for each in found if each["state"] == state]


# -- asking ------------------------------------------------------------------------------------------------------------


GO_READS = (1 << 20) + 4096
"""Bytes of a header after which Go refuses it."""


def ask(node: Any, request: dict[str, Any], other: str) -> tuple[Any, Any]:
    """Send one recorded request; the request as it was sent, and the answer."""
    path = request["path"]
    if "path_length" in request:
        start = path.rstrip("x")
        path = start + "x" * (request["path_length"] - len(start))
    path = re.sub(r"12D3KooW\w{44}", other, path)
    body = (request["request_body"] or "").encode()
    head = f"{request['method']} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request["request_headers"].items())
    if body:
        head += f"Content-Length: {len(body)}\r\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(network.PATIENCE)
        stream.connect(str(node.socket))
        message = head.encode() + b"\r\n" + body
        if node.kind == "go":  # what it leaves unread when it refuses would reset its answer away
            message = message[:GO_READS]
        stream.sendall(message)
        with closing(http.client.HTTPResponse(stream, method=request["method"])) as answer:
            answer.begin()
            text = answer.read().decode("utf-8", "surrogateescape")
            headers = {name.lower(): value for name, value in answer.getheaders()}
    shown = answers.Request(request["method"], request["path"], request["request_body"] or "")
    return shown, answers.Answer(answer.status, headers, text)


_SAME: tuple[tuple[str, str], ...] = (
    (r"12D3KooW\w{44}", "PEER"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC( m=\+[\d.]+)?)", "TIME"),
    (r'("Version\\*":\s*\\*")(v[^"\\]*)?(?=\\*")', r"\1VERSION"),
    (r'("(?:Version|UpdatedAt|Index|BlockChain)":\s*)\d+', r"\g<1>1"),
    (r'("(?:Hash|PrevHash)":\s*")[0-9a-f]{64}', r"\1HASH"),
    (r'("Sig":\s*")[^"]*', r"\1SIGNATURE"),
    (r'("(?:TotalIn|TotalOut)":\s*)[1-9]\d*', r"\g<1>7"),
    (r'("(?:RateIn|RateOut)":\s*)[\d.e+-]+', r"\g<1>0"),
)
"""What differs between two nodes, or between two moments of one."""


def still(answer: Any, own: str, other: str) -> Any:
    """An answer with the same words for what differs by nature; its length falls away with them."""
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    text = (answer.body or "").replace(own, "OWN").replace(other, "OTHER")
    for pattern, word in _SAME:
        text = re.sub(pattern, word, text)
    return answers.Answer(answer.status, headers, text)


OURS_ALONE = "kairos-p2p.lease"
THEIR_MACHINE = "10.1.0.2"


def _values(theirs: Any, ours: Any) -> tuple[Any, Any] | None:
    """Both bodies as values, when both are answers in JSON."""
    if not all(each.status == 200 and each.kind == answers.JSON for each in (theirs, ours)):
        return None
    return theirs.json(), ours.json()


def _storage(value: Any) -> Any:
    return value.get("Storage", value) if isinstance(value, dict) else {}


def _own_bucket(_path: str, theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Without the bucket that only our nodes have."""
    if OURS_ALONE in _storage(ours):
        del _storage(ours)[OURS_ALONE]
    return theirs, ours


def _protocols(path: str, theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Without the names of protocols; the records behind them have to have the same shape."""
    if path != "/api/metrics/protocol":
        return theirs, ours
    return tuple([sorted({tuple(each) for each in side.values()}) for side in (theirs, ours)])  # type: ignore[return-value]


def _others_record(path: str, theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Without the other node's machine record, which is only looked for once it was deleted on this one."""
    if path == "/api/summary":
        near = abs(ours["Machines"] - theirs["Machines"]) == 1
        return ({**theirs, "Machines": 0}, {**ours, "Machines": 0}) if near else (theirs, ours)
    if path == "/api/machines":
        one, other = ([each for each in side if each["Address"] != THEIR_MACHINE] for side in (theirs, ours))
        return one, other
    if path == "/api/ledger/machines":
        mine, yours = ({key: text for key, text in side.items() if key != THEIR_MACHINE} for side in (theirs, ours))
        return mine, yours
    for side in (theirs, ours):
        _storage(side).get("machines", {}).pop(THEIR_MACHINE, None)
    return theirs, ours


LENSES = {"bucket of our own": _own_bucket, "protocols in use": _protocols, "records of others": _others_record}
"""What a running node has that no recording could show: each leaves one difference out of both answers."""

LIVE_ROWS = (
    (
        "bucket of our own",
        "only buckets that EdgeVPN knows",
        f"also `{OURS_ALONE}`, in which our nodes tell each other who waits for an address",
        "leases without EdgeVPN's turns; its nodes carry the bucket and do not read it",
    ),
    (
        "protocols in use",
        "those that two Go nodes agree on",
        "those that our node and its peer agree on",
        "`/ipfs/id/push` and the version of gossip depend on the peer",
    ),
    (
        "records of others",
        "with ownership, a record of a live peer that is deleted is gone from this node's copy, and from no other's",
        "the record stays; `/v1` says 409",
        "two nodes would see different ledgers until the owner writes again",
    ),
)


def judge(request: Any, theirs: Any, ours: Any, *, deleted: bool) -> Any:
    """As ``api_answers.judge``, with the lenses where that finds something that nobody wrote down."""
    verdict = answers.judge(request, theirs, ours)
    values = _values(theirs, ours)
    if verdict.kind != answers.WRONG or values is None or request.method != "GET":
        return verdict
    path, used = request.path.partition("?")[0], []
    for name, lens in LENSES.items():
        if lens is _others_record and not deleted:
            continue
        before = json.dumps(values, sort_keys=True)
        values = lens(path, *values)
        if json.dumps(values, sort_keys=True) != before:
            used.append(name)
        if values[0] == values[1]:  # the order of peers is that of their IDs
            return answers.Verdict(answers.DIFFERENT if used else answers.ORDER, ", ".join(used))
    return verdict


class Pair:
    """The two nodes that are asked, and what was said."""

    def __init__(self, theirs: Any, ours: Any, others: tuple[Any, Any], peers: dict[str, tuple[str, str]]) -> None:
        self.nodes = {"theirs": theirs, "ours": ours}
        self.others = dict(zip(self.nodes, others, strict=True))
        self.peers = peers
        self.rows: list[tuple[Any, Any, Any, Any]] = []
        self.deleted = False  # whether the other node's machine record was deleted

    def ask(self, request: dict[str, Any]) -> None:
        said = {}
        for side, node in self.nodes.items():
            own, other = self.peers[side]
            shown, answer = ask(node, request, other)
            said[side] = still(answer, own, other)
        self.deleted |= (shown.method, shown.path) == ("DELETE", f"/api/ledger/machines/{THEIR_MACHINE}")
        verdict = judge(shown, said["theirs"], said["ours"], deleted=self.deleted)
        self.rows.append((shown, said["theirs"], said["ours"], verdict))

    def texts(self, bucket: str) -> list[dict[str, str]]:
        return [node.bucket(bucket) for node in self.nodes.values()]


# -- the run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[network.NEW, network.OLD])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(version: str, make_lasting_site: Any) -> Pair:
    """Both networks after the whole course of requests."""
    options = {"version": version, "ownership": "enforce" if version == network.NEW else "off"}
    control, mixed = make_lasting_site(2, 0, **options), make_lasting_site(1, 1, **options)
    mixed.ours[0].address, mixed.go[0].address = "10.1.0.1", "10.1.0.2"
    control.start()
    mixed.start()
    theirs, their_peer = control.go
    (ours,), (our_peer,) = mixed.ours, mixed.go
    for node, peer in ((theirs, their_peer), (ours, our_peer)):
        for one, two in ((node, peer), (peer, node)):
            other = two.peer
            until(lambda one=one, other=other: other in one.heartbeats() and other in one.room(), "they see each other")
            until(lambda one=one: len(one.machines()) == 2, "both machine records")
    others = their_peer, our_peer
    pair = Pair(theirs, ours, others, {"theirs": (theirs.peer, their_peer.peer), "ours": (ours.peer, our_peer.peer)})
    course(pair)
    return pair


def course(pair: Pair) -> None:
    for state in (READS, ROUTES, WRITES):
        for request in recorded(state):
            pair.ask(request)

    until(lambda: all(one == other != {} for one, other in map(pair.texts, ("demo", "dns", "huge"))), "writes are done")
    for request in recorded(AFTER):
        pair.ask(request)
    # EdgeVPN defends a write until it looked again, up to 8 s later: deletions before that would be undone by it
    time.sleep(8)
    for request in recorded(DELETES):
        pair.ask(request)
    until(lambda: all(deleted(node) for node in pair.nodes.values()), "the deletions are done")
    for request in recorded("after-delete"):
        pair.ask(request)


@pytest.mark.row(9, "every route and every write: the same answers")
def test_every_answer_is_the_same_or_a_named_difference(pair: Pair, version: str, seen: Any) -> None:
    wrong = [
        f"{request.method} {request.path[:80]}: {verdict.what}"[:700]
        for request, theirs, ours, verdict in pair.rows
        if verdict.kind == answers.WRONG
    ]
    assert not wrong, "\n".join(wrong)
    different = sum(verdict.kind == answers.DIFFERENT for *_, verdict in pair.rows)
    seen(f"{len(pair.rows)} requests: {len(pair.rows) - different} the same, {different} different as listed")
    assert len(pair.rows) > 180


@pytest.mark.row(9, "what was written is the same record to the other node")
def test_the_written_records_are_the_same(pair: Pair, seen: Any) -> None:
    one, other = pair.texts("demo")
    assert one == other
    assert len(one) > 15
    seen(f"{len(one)} records")


# -- our tools on both -------------------------------------------------------------------------------------------------


def tool(node: Any, *words: str, status: int = 0) -> str:
    """What a command of ours prints, on the API of either program."""
    program = str(Path(sys.executable).with_name("kairos-p2p"))
    environment = {**os.environ, "EDGEVPN_API": f"unix://{node.socket}"}
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, timeout=network.PATIENCE)
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.mark.row(9, "our command line on the API of both programs: ledger, peers")
@pytest.mark.parametrize("side", ["theirs", "ours"])
def test_our_tools_work_on_both(pair: Pair, side: str) -> None:
    node, (_, other) = pair.nodes[side], pair.peers[side]
    tool(node, "ledger", "set", "tools", "text", "a b")
    tool(node, "ledger", "set", "tools", "json", "--json", '{"a": [1]}')
    tool(node, "ledger", "set", "tools", "plain", "--plain", "word")
    until(lambda: len(node.bucket("tools")) == 3, "they are written")
    assert tool(node, "ledger", "get", "tools", "text") == "a b\n"
    assert json.loads(tool(node, "ledger", "get", "tools", "json")) == {"a": [1]}
    assert node.bucket("tools")["plain"] == '"word"'
    tool(node, "ledger", "get", "tools", "absent", status=4)
    listed = json.loads(tool(node, "ledger", "get", "tools", "--json"))
    assert [each["key"] for each in listed["records"]] == ["json", "plain", "text"]
    assert "tools" in tool(node, "ledger", "get")
    peers = json.loads(tool(node, "peers", "--json"))
    assert peers["daemon"] == ("edgevpn" if side == "theirs" else "kairos-p2p")
    (peer,) = [each for each in peers["peers"] if each["peer_id"] == other]
    # EdgeVPN tells it of machines only, and the course has deleted the other's record
    assert peer["on_topic"] or side == "theirs"
    assert peer["connected"] is (None if side == "theirs" else True)
    tool(node, "ledger", "delete", "tools")
    until(lambda: not node.bucket("tools"), "they are deleted")


@pytest.mark.parametrize("side", ["theirs", "ours"])
def test_a_watcher_sees_what_the_other_node_writes(pair: Pair, side: str) -> None:
    program = str(Path(sys.executable).with_name("kairos-p2p"))
    api = f"unix://{pair.nodes[side].socket}"
    words = [program, "ledger", "watch", "watched", "--json", "--api", api]
    pair.nodes[side].put("watched", "here", "one")
    until(lambda: pair.nodes[side].bucket("watched"), "it is written")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["value"] == "one"
        pair.others[side].put("watched", "there", "two")
        said = json.loads(process.stdout.readline())
        assert (said["key"], said["value"]) == ("there", "two")
        process.send_signal(signal.SIGINT)
        assert process.wait(network.PATIENCE) == 130


def deleted(node: Any) -> bool:
    """Whether everything that the course deletes is gone, the other's machine record apart."""
    ledger = node.ledger()
    gone = {"k1", "space key", "slash%2Fkey", "star*", ".*%5C.foo", r"foo\.test\.$", "10.1.0.77"}
    return not {"huge", "buck et", "buck%2Fet"} & set(ledger) and not any(gone & set(keys) for keys in ledger.values())


# -- the page ----------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def shown(answer: Any) -> str:
    """Status and the beginning of the body, where that says the same in every run."""
    text = " ".join((answer.body or "").split())
    code = f"`{text[:60]}{'...' if len(text) > 60 else ''}`".replace("|", "\\|") if text else ""
    return f"{answer.status} {code}".strip()


def table(rows: list[tuple[Any, Any, Any, Any]]) -> list[str]:
    lines = ["| request | EdgeVPN | ours |", "| --- | --- | --- |"]
    for request, theirs, ours, verdict in rows:
        what = cell(f"{request.method} `{sent(request.path)}`")
        mine = "same" if verdict.kind in {answers.SAME, answers.ORDER} else f"{ours.status}, *{verdict.what}*"
        # what has another order or other words in every run would make another page of it
        steady = verdict.kind == answers.SAME and not answers.LISTS.fullmatch(request.path)
        steady = steady and not re.search(r"TIME|SIGNATURE|OTHER|metrics", f"{theirs.body}{request.path}")
        line = f"| {what} | {shown(theirs) if steady else theirs.status} | {mine} |"
        if line not in lines:
            lines.append(line)
    return lines


def sent(path: str) -> str:
    """A path as it was sent, long ones cut, peers by a word."""
    path = re.sub(r"12D3KooW\w{44}", "PEER", path)
    return path if len(path) <= 90 else path[:60] + "..."


def page(pair: Pair) -> str:
    def rows(*all_rows: tuple[str, ...]) -> list[str]:
        return ["| " + " | ".join(each) + " |" for each in all_rows]

    named = [(each.name, each.theirs, each.ours, each.why) for each in answers.DIFFERENCES]
    return "\n".join(
        [
            "<!-- Generated by `make interop` from tests/interop/api_answers.py and the run beside EdgeVPN. -->",
            "# Where the API answers otherwise than EdgeVPN's",
            "",
            "Each row is deliberate. Every recorded answer of v0.35.4 and v0.30.2 (359 exchanges of each) and every answer of a",
            "running EdgeVPN is compared with ours in the tests; a difference that is not listed here fails them.",
            "",
            "| what | EdgeVPN | ours | why |",
            "| --- | --- | --- | --- |",
            *rows(*named, *LIVE_ROWS, *answers.ON_THE_WIRE),
            "",
            "## Side by side",
            "",
            "The same requests to EdgeVPN v0.35.4 and to our daemon, each with an EdgeVPN as its only peer. Times, identities,",
            "versions, figures and the order of lists are left out of the comparison. *Slanted*: the row above that says why.",
            "",
            *table(pair.rows),
            "",
        ]
    )


def test_the_page_is_what_was_seen(pair: Pair, version: str) -> None:
    if version != network.NEW:
        pytest.skip("the page shows v0.35.4")
    made = page(pair)
    if path := os.environ.get("KAIROS_P2P_API_DIFFERENCES"):
        Path(path).write_text(made, "utf-8")
    assert made == PAGE.read_text("utf-8"), "KAIROS_P2P_API_DIFFERENCES=docs/reference/api-differences.md renews it"
