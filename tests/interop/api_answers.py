"""Two answers to one request, theirs and ours: the same, the same but for order, or different on purpose.

Every deliberate difference is one row of :data:`DIFFERENCES`, with the words for the documentation and a check of both
sides: a row is no waiver. Used with recorded answers (``test_api_recordings``) and with those of a running EdgeVPN
(``test_edgevpn_api_live``); knows nothing of pytest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LISTS = re.compile(r"/api/(machines|users|services|files|dns|nodes|peerstore)(\?pretty)?")
JSON = "application/json"
HTML = "text/html; charset=UTF-8"
ZEROS = {"TotalIn": 0, "TotalOut": 0, "RateIn": 0, "RateOut": 0}
NOT_FOUND = '{"message":"Not Found"}\n'
OLD_NOT_FOUND = "404 page not found\n"
COMPARED = ("content-type", "allow", "location", "cache-control")


@dataclass(frozen=True)
class Answer:
    """``headers`` by lower-case name. ``body`` is None where only its length and digest are known."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = ""
    length: int = 0
    digest: str = ""

    def json(self) -> Any:
        return json.loads(self.body or "null")

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: str = ""


Check = Callable[[Request, Answer, Answer], bool]


@dataclass(frozen=True)
class Difference:
    """One deliberate difference. ``check`` looks at both answers and must not hold by accident."""

    name: str
    theirs: str
    ours: str
    why: str
    check: Check


# -- the rows ----------------------------------------------------------------------------------------------------------


def _connected(request: Request, theirs: Answer, ours: Answer) -> bool:
    if not re.fullmatch(r"/api/machines(\?pretty)?", request.path) or (theirs.status, ours.status) != (200, 200):
        return False
    one, other = theirs.json(), ours.json()
    true = [each for each in other if each["Connected"]]
    flat = [sorted(json.dumps({**each, "Connected": False}) for each in side) for side in (one, other)]
    return flat[0] == flat[1] and not any(each["Connected"] for each in one) and bool(true)


def _head(request: Request, theirs: Answer, ours: Answer) -> bool:
    bodies = theirs.body == ours.body == ""
    return request.method == "HEAD" and theirs.status == ours.status == 405 and bodies and ours.kind == JSON


def _page(request: Request, theirs: Answer, ours: Answer) -> bool:
    same = (theirs.status, theirs.kind) == (ours.status, ours.kind) == (200, HTML)
    return same and request.path.startswith("/app") and "/v1/status" in (ours.body or "")


def _old_page(request: Request, theirs: Answer, ours: Answer) -> bool:
    moved = request.path == "/" and theirs.kind.startswith("text/html") and ours.status == 301
    index = request.path == "/index.html" and theirs.status == 301 and ours.status == 404
    app = request.path.startswith("/app") and theirs.status == 404 and (ours.status, ours.kind) == (200, HTML)
    return moved or index or app


def _profiler(request: Request, theirs: Answer, ours: Answer) -> bool:
    return request.path.startswith("/debug/pprof") and (theirs.status, ours.status, ours.body) == (200, 404, NOT_FOUND)


def _type_error(request: Request, theirs: Answer, ours: Answer) -> bool:
    start = '{"message":"code=400, message=Unmarshal type error: expected='
    return (
        request.path == "/api/dns"
        and theirs.status == ours.status == 400
        and all((side.body or "").startswith(start) for side in (theirs, ours))
    )


def _figures(request: Request, theirs: Answer, ours: Answer) -> bool:
    return (
        bool(re.fullmatch(r"/api/metrics/(peer|protocol)/[^/]+", request.path))
        and theirs.json() == ZEROS
        and ours.status == 200
        and list(ours.json()) == list(ZEROS)
        and ours.json() != ZEROS
    )


def _no_entries(request: Request, theirs: Answer, ours: Answer) -> bool:
    """Their lists hold an all-zero entry for every name that was ever asked for."""
    if not re.fullmatch(r"/api/metrics/(peer|protocol)", request.path) or ours.status != 200:
        return False
    one, other = theirs.json(), ours.json()
    extra = {name for name in one if name not in other}
    return bool(extra) and all(one[name] == ZEROS for name in extra) and set(other) <= set(one)


def _mangled(request: Request, theirs: Answer, ours: Answer) -> bool:
    if request.path != "/api/metrics/peer" or r"\ufffd" not in (theirs.body or ""):
        return False
    figures = [sorted(json.dumps(each) for each in side.json().values() if each != ZEROS) for side in (theirs, ours)]
    return figures[0] == figures[1] and all(re.match("12D3KooW|OTHER", name) for name in ours.json())


def _old_unknown(_request: Request, theirs: Answer, ours: Answer) -> bool:
    old = (theirs.status, theirs.kind, theirs.body) == (404, "text/plain; charset=utf-8", OLD_NOT_FOUND)
    return old and ours.status in {404, 405} and ours.kind == JSON


def _old_method(request: Request, theirs: Answer, ours: Answer) -> bool:
    old = (theirs.status, theirs.headers.get("allow")) == (405, "OPTIONS, GET")
    return old and request.method in {"POST", "PUT"} and (ours.status, ours.body) == (404, NOT_FOUND)


DIFFERENCES = (
    Difference(
        "connected",
        "`Connected` is false for every machine",
        "true for peers with an open connection, this node itself excepted",
        "theirs compares an ID that it did not decode; a flag that is never true tells nobody anything",
        _connected,
    ),
    Difference(
        "figures of one",
        "`/api/metrics/peer/:peer` and `/api/metrics/protocol/:protocol` are zeros for whoever has traffic",
        "the figures of that peer or protocol",
        "theirs looks under an ID that it did not decode, and under a protocol with its slashes still escaped",
        _figures,
    ),
    Difference(
        "asked-for names",
        "asking for the metrics of X puts an all-zero X into the lists, for ever",
        "an unknown X is zeros and leaves no trace",
        "memory that anybody can fill",
        _no_entries,
    ),
    Difference(
        "mangled peers (v0.30.2)",
        "`/api/metrics/peer` has raw bytes as keys, most of them lost",
        "peer IDs, as v0.35.4",
        "nobody can read the others",
        _mangled,
    ),
    Difference(
        "web page",
        "`/app` is the web UI",
        "a page that says what is here; `/assets` and icons are 404",
        "the web UI is a part of its own",
        _page,
    ),
    Difference(
        "old web page (v0.30.2)",
        "`/` is a page, `/index.html` leads to it, `/app` does not exist",
        "as v0.35.4",
        "one version has to be followed",
        _old_page,
    ),
    Difference(
        "profiler",
        "`/debug/pprof` with `--debug`",
        "404; with `--debug` there is `/debug/tasks`",
        "Go's profiler has no counterpart; and theirs gives the command line away, network token included",
        _profiler,
    ),
    Difference(
        "HEAD",
        "405 without Content-Type and Content-Length",
        "405 with those of the body that is left out",
        "as HTTP has it; nobody asks with HEAD",
        _head,
    ),
    Difference(
        "type errors of POST /api/dns",
        "400 whose text names Go's types",
        "400 with a text that begins in the same way",
        "the rest is Go's own wording",
        _type_error,
    ),
    Difference(
        "unknown paths (v0.30.2)",
        "`404 page not found` as plain text, also for GET where only PUT exists",
        "as v0.35.4: JSON, and 405 for a known path",
        "one version has to be followed",
        _old_unknown,
    ),
    Difference(
        "methods on unknown paths (v0.30.2)",
        "405 for other methods than GET, because its page answers to every path",
        "as v0.35.4: 404",
        "one version has to be followed",
        _old_method,
    ),
)

ON_THE_WIRE = (
    ("order of lists", "random at every request", "sorted by key", "so that two answers can be compared"),
    ("framing", "bodies above 2 kB are chunked", "always Content-Length", "the length is known"),
    ("raw UTF-8 in a request line", "accepted", "400", "HTTP forbids it, and every client escapes it"),
    ("HTTP/1.0", "answered as HTTP/1.0", "answered with a status line of HTTP/1.1", "as HTTP asks for"),
    ("refusals in plain text", "without Content-Length", "with it", "the length is known"),
    ("Date", "in every answer", "never", "nobody uses it"),
    (
        "writes",
        '`{"State":"Announcing"}` at once',
        "the same, once the record is on disk; 503 when the disk refuses it",
        "an acknowledged write survives a power cut",
    ),
    (
        "socket file",
        "left behind at the end; deleted while it runs, the API is gone",
        "removed at the end; deleted while it runs, it is made again",
        "a node that cannot be asked counts as dead",
    ),
)
"""Differences that no single answer shows: subject, theirs, ours, why."""


# -- the judgement -----------------------------------------------------------------------------------------------------

SAME, ORDER, DIFFERENT, WRONG = "same", "same but for order", "different", "WRONG"


@dataclass(frozen=True)
class Verdict:
    """``what`` names the difference, or says what is wrong."""

    kind: str
    what: str = ""


def judge(request: Request, theirs: Answer, ours: Answer) -> Verdict:
    """Compare two answers; WRONG is a difference that nobody wrote down."""
    problem = _problem(request, theirs, ours)
    if problem in {SAME, ORDER}:
        return Verdict(problem)
    for row in DIFFERENCES:
        if row.check(request, theirs, ours):
            return Verdict(DIFFERENT, row.name)
    return Verdict(WRONG, problem)


def _problem(request: Request, theirs: Answer, ours: Answer) -> str:
    if theirs.status != ours.status:
        return f"status {ours.status} instead of {theirs.status}"
    for name in COMPARED:
        if theirs.headers.get(name) != ours.headers.get(name):
            return f"{name} {ours.headers.get(name)!r} instead of {theirs.headers.get(name)!r}"
    body = ours.body or ""
    if theirs.body is None:
        raw = body.encode("utf-8", "surrogateescape")
        same = (len(raw), hashlib.sha256(raw).hexdigest()) == (theirs.length, theirs.digest)
        return SAME if same else f"another body of {len(raw)} bytes instead of {theirs.length}"
    if body == theirs.body:
        counted = theirs.headers.get("content-length", ours.headers.get("content-length"))
        return SAME if ours.headers.get("content-length") == counted else "another Content-Length"
    if LISTS.fullmatch(request.path) and request.method == "GET" and _elements(body) == _elements(theirs.body):
        return ORDER if len(body) == len(theirs.body) else "other white space"
    return f"body {body[:200]!r} instead of {theirs.body[:200]!r}"


def _elements(body: str) -> list[str]:
    """The elements of a list, each as text with the order of its fields, in an order that does not depend on the daemon."""
    try:
        value = json.loads(body, object_pairs_hook=list)
    except ValueError:
        return [body]
    return sorted(json.dumps(item) for item in value) if isinstance(value, list) else [body]
