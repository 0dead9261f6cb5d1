"""EdgeVPN's routes over a :class:`~provider_kairos.api.backend.Backend`.

Specification: spec/edgevpn.md 11.2 and 17. ``/api/peergate`` exists only where the node has a peer gate, as in
EdgeVPN. What stands in the place of its web page is in ``landing``, in that of its profiler in ``debug``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from provider_kairos.api import documents
from provider_kairos.api.backend import Backend, PeerGate
from provider_kairos.api.dnstypes import NUMBERS
from provider_kairos.api.gotext import quote_bytes
from provider_kairos.api.http import Request
from provider_kairos.api.model import ANNOUNCING, Announcing, Traffic
from provider_kairos.api.router import Call, HttpError, Json, Route, RouteHandler
from provider_kairos.token import gojson

__all__ = ["edgevpn_routes"]

_NO_TRAFFIC = Traffic(TotalIn=0, TotalOut=0, RateIn=0.0, RateOut=0.0)


def edgevpn_routes(backend: Backend) -> list[Route]:
    """The table of EdgeVPN's routes."""
    api = _Api(backend)
    return [
        Route("GET", "/api/summary", api.summary),
        Route("GET", "/api/machines", api.document(documents.machines)),
        Route("GET", "/api/users", api.document(documents.users)),
        Route("GET", "/api/services", api.document(documents.services)),
        Route("GET", "/api/files", api.document(documents.files)),
        Route("GET", "/api/dns", api.document(documents.dns)),
        Route("POST", "/api/dns", api.post_dns),
        Route("GET", "/api/nodes", api.document(documents.nodes)),
        Route("GET", "/api/peerstore", api.document(documents.peerstore)),
        Route("GET", "/api/blockchain", api.blockchain),
        Route("GET", "/api/ledger", api.ledger),
        Route("GET", "/api/ledger/:bucket", api.bucket),
        Route("DELETE", "/api/ledger/:bucket", api.delete_bucket),
        Route("GET", "/api/ledger/:bucket/:key", api.key),
        Route("DELETE", "/api/ledger/:bucket/:key", api.delete_key),
        Route("PUT", "/api/ledger/:bucket/:key/:value", api.put),
        Route("GET", "/api/metrics", api.document(lambda b: b.traffic())),
        Route("GET", "/api/metrics/protocol", api.document(lambda b: _sorted(b.traffic_by_protocol()))),
        Route("GET", "/api/metrics/protocol/:protocol", api.protocol_traffic),
        Route("GET", "/api/metrics/peer", api.document(lambda b: _sorted(b.traffic_by_peer()))),
        Route("GET", "/api/metrics/peer/:peer", api.peer_traffic),
        *(_gate_routes(backend.gate) if backend.gate is not None else ()),
    ]


def _gate_routes(gate: PeerGate) -> list[Route]:
    """The switch of the trust zone; a word other than these two changes nothing."""

    async def show(_call: Call) -> bool:
        return gate.enabled

    async def switch(call: Call) -> bool:
        if call.params["state"] in {"enable", "disable"}:
            gate.switch(on=call.params["state"] == "enable")
        return gate.enabled

    return [Route("GET", "/api/peergate", show), Route("PUT", "/api/peergate/:state", switch)]


def _sorted(value: Any) -> dict[str, Any]:
    """A mapping in the order in which Go prints maps."""
    return dict(sorted(value.items(), key=lambda item: item[0].encode("utf-8", "surrogateescape")))


class _Api:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def document(self, make: Callable[[Backend], Any]) -> RouteHandler:
        async def handler(_call: Call) -> Any:
            return make(self._backend)

        return handler

    async def summary(self, _call: Call) -> Any:
        value = documents.summary(self._backend)
        if value is None:
            raise HttpError(HTTPStatus.INTERNAL_SERVER_ERROR)
        return value

    # -- ledger

    async def blockchain(self, _call: Call) -> Json:
        return Json(self._backend.block_json())

    async def ledger(self, _call: Call) -> Any:
        return _sorted({name: _sorted(keys) for name, keys in self._backend.current().items()})

    async def bucket(self, call: Call) -> Any:
        keys = self._backend.bucket(_text(call.params["bucket"]))
        return _sorted(keys) if keys else None

    async def key(self, call: Call) -> Any:
        return self._backend.get(_text(call.params["bucket"]), _text(call.params["key"])) or ""

    async def put(self, call: Call) -> Announcing:
        bucket, key = _text(call.params["bucket"]), _text(call.params["key"])
        self._backend.persist(bucket, key, quote_bytes(call.params["value"]))
        await self._backend.persisted()
        return ANNOUNCING

    async def delete_key(self, call: Call) -> Announcing:
        self._backend.delete_key(_text(call.params["bucket"]), _text(call.params["key"]))
        await self._backend.persisted()
        return ANNOUNCING

    async def delete_bucket(self, call: Call) -> Announcing:
        self._backend.delete_bucket(_text(call.params["bucket"]))
        await self._backend.persisted()
        return ANNOUNCING

    # -- metrics; the raw path rule hands protocol IDs over undecoded, and so they are looked up both ways

    async def protocol_traffic(self, call: Call) -> Traffic:
        found = self._backend.traffic_by_protocol()
        name = call.params["protocol"]
        return found.get(name) or found.get(unquote(name)) or _NO_TRAFFIC

    async def peer_traffic(self, call: Call) -> Traffic:
        return self._backend.traffic_by_peer().get(call.params["peer"]) or _NO_TRAFFIC

    # -- dns

    async def post_dns(self, call: Call) -> Announcing:
        regex, records = _read_dns(call.request)
        numbered = {str(NUMBERS.get(name, 0)): text for name, text in records.items()}
        self._backend.persist("dns", regex, gojson.dumps(_sorted(numbered)))
        await self._backend.persisted()
        return ANNOUNCING


def _text(segment: str) -> str:
    """A bucket or key as the ledger can hold it: bytes that are no UTF-8 become U+FFFD."""
    if segment.isascii():
        return segment
    return segment.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _bad(message: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, f"code=400, message={message}")


def _read_dns(request: Request) -> tuple[str, dict[str, str]]:
    """Regular expression and records of a POST. As in EdgeVPN an empty body or a form gives the empty entry."""
    if not request.body:
        return "", {}
    kind = request.header(b"content-type").split(b";")[0].strip().lower()
    if kind in {b"application/x-www-form-urlencoded", b"multipart/form-data"}:
        return "", {}
    if kind != b"application/json":
        raise HttpError(HTTPStatus.BAD_REQUEST, "code=415, message=Unsupported Media Type")
    text = request.body.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        message = "unexpected EOF" if error.pos >= len(text) else f"Syntax error: offset={error.pos}, error={error.msg}"
        raise _bad(f"{message}, internal={message}" if message == "unexpected EOF" else message) from error
    except RecursionError as error:
        raise _bad("nested too deeply") from error
    if value is None:
        return "", {}
    if not isinstance(value, dict):
        raise _bad("Unmarshal type error: expected=types.DNS")
    fields = {name.lower(): item for name, item in value.items()}
    regex, records = fields.get("regex"), fields.get("records")
    if not isinstance(regex, str | None):
        raise _bad("Unmarshal type error: expected=string, field=Regex")
    if not isinstance(records, dict | None) or not all(isinstance(x, str | None) for x in (records or {}).values()):
        raise _bad("Unmarshal type error: expected=map of string, field=Records")
    return regex or "", {name: item or "" for name, item in (records or {}).items()}
