"""Our own routes on the ledger: buckets, records, and what EdgeVPN keeps in buckets of its own (``operations``).

Reading follows spec/edgevpn.md 8: a record that is no object counts as empty fields. A write is answered when it is on
this node's disk; one that the ownership rules refuse is a 409 that names the owner, where EdgeVPN says "Announcing".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from provider_kairos.api import documents
from provider_kairos.api import native_model as shapes
from provider_kairos.api.backend import Backend
from provider_kairos.api.dnstypes import NUMBERS
from provider_kairos.api.http import Request
from provider_kairos.api.model import SCHEMA
from provider_kairos.api.records import coded, printable, record, refusals
from provider_kairos.api.router import Call, HttpError
from provider_kairos.ledger.model import Written
from provider_kairos.token import gojson

__all__ = ["LedgerRoutes", "flag", "json_object"]


class LedgerRoutes:
    """Handlers by the names of ``operations``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def _place(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "instance": self._backend.instance, "revision": self._backend.revision}

    # -- reading

    async def ledger(self, _call: Call) -> Any:
        """GET /v1/ledger."""
        summaries: list[shapes.BucketSummary] = []
        for name in sorted(self._backend.bucket_names()):
            entries = self._backend.entries(name)
            deleted = sum(entry.deleted for entry in entries.values())
            summaries.append({"name": name, "records": len(entries) - deleted, "deleted": deleted})
        return {**self._place(), "index": self._backend.block_index, "buckets": summaries}

    async def bucket(self, call: Call) -> Any:
        """GET /v1/ledger/:bucket."""
        name, deleted = call.params["bucket"], flag(call.query, "deleted")
        entries = sorted(self._backend.entries(name).items())
        records = [record(key, entry) for key, entry in entries if deleted or not entry.deleted]
        return {**self._place(), "bucket": name, "records": records}

    async def record(self, call: Call) -> Any:
        """GET /v1/ledger/:bucket/:key."""
        bucket, key, deleted = call.params["bucket"], call.params["key"], flag(call.query, "deleted")
        entry = self._backend.entry(bucket, key)
        if entry is None or (entry.deleted and not deleted):
            raise HttpError(HTTPStatus.NOT_FOUND, f"there is no record {key!r} in bucket {bucket!r}")
        return {**record(key, entry), **self._place(), "bucket": bucket}

    # -- writing

    async def put_record(self, call: Call) -> Any:
        """PUT /v1/ledger/:bucket/:key."""
        body = json_object(call.request, {"value", "encoding"})
        encoding = body.get("encoding", "base64")
        if "value" not in body:
            raise _wrong("the body has no value")
        if encoding not in {"base64", "json"}:
            raise _wrong("encoding is neither base64 nor json")
        return await self._write(call.params["bucket"], call.params["key"], coded(body["value"], encoding))

    async def delete_record(self, call: Call) -> Any:
        """DELETE /v1/ledger/:bucket/:key."""
        return await self._done(self._backend.delete_key(call.params["bucket"], call.params["key"]))

    async def delete_bucket(self, call: Call) -> Any:
        """DELETE /v1/ledger/:bucket."""
        return await self._done(self._backend.delete_bucket(call.params["bucket"]))

    async def _write(self, bucket: str, key: str, text: str) -> Any:
        return await self._done(self._backend.persist(bucket, key, text))

    async def _done(self, written: Written) -> Any:
        refused = refusals(written, self._backend.entry)
        if refused and not written.changed:
            owner = refused[0]["owner"]
            raise HttpError(
                HTTPStatus.CONFLICT,
                f"{refused[0]['key']!r} belongs to {owner or 'somebody else'}: {refused[0]['reason']}",
                code="owned-by-another",
            )
        await self._backend.persisted()
        return {**self._place(), "changed": len(written.changed), "refused": refused}

    # -- buckets of EdgeVPN's own

    async def nodes(self, _call: Call) -> Any:
        """GET /v1/nodes."""
        now, seen = self._backend.unix_time(), documents.heartbeats(self._backend)
        nodes: list[shapes.NodeFacts] = [
            {
                "peer_id": each["PeerID"],
                "hostname": each["Hostname"],
                "os": each["OS"],
                "arch": each["Arch"],
                "address": each["Address"],
                "version": each["Version"],
                "own": each["PeerID"] == self._backend.peer_id,
                "connected": each["Connected"],
                "on_topic": each["OnChain"],
                "online": each["Online"],
                "heartbeat_age": round(now - seen[each["PeerID"]], 1) if each["PeerID"] in seen else None,
            }
            for each in documents.machines(self._backend)
        ]
        return {"schema": SCHEMA, "revision": self._backend.revision, "nodes": nodes}

    async def services(self, _call: Call) -> Any:
        """GET /v1/services."""
        return self._named("services", documents.services(self._backend), "Name")

    async def files(self, _call: Call) -> Any:
        """GET /v1/files."""
        return self._named("files", documents.files(self._backend), "Name")

    async def users(self, _call: Call) -> Any:
        """GET /v1/users."""
        return self._named("users", documents.users(self._backend), "Timestamp")

    def _named(self, what: str, found: Sequence[Mapping[str, Any]], name: str) -> Any:
        now, seen = self._backend.unix_time(), documents.heartbeats(self._backend)
        connected = set(self._backend.connected())
        records: list[shapes.NamedRecord] = [
            {
                "name": each[name],
                "peer_id": each["PeerID"],
                "own": each["PeerID"] == self._backend.peer_id,
                "connected": each["PeerID"] in connected,
                "online": seen.get(each["PeerID"], 0.0) + documents.MACHINE_ONLINE_SECONDS > now,
            }
            for each in found
        ]
        return {"schema": SCHEMA, "revision": self._backend.revision, what: records}

    async def dns(self, _call: Call) -> Any:
        """GET /v1/dns."""
        entries: list[shapes.DnsRecord] = []
        for found in documents.dns(self._backend):
            about = record(found["Regex"], self._backend.entry("dns", found["Regex"]))
            entries.append(
                {
                    "pattern": found["Regex"],
                    "records": found["Records"],
                    "author": about["author"],
                    "updated_at": about["updated_at"],
                }
            )
        return {"schema": SCHEMA, "revision": self._backend.revision, "entries": entries}

    async def put_dns(self, call: Call) -> Any:
        """PUT /v1/dns/:pattern. Stricter than EdgeVPN's route: a type must exist, an address must be one."""
        records = json_object(call.request, {"records"}).get("records")
        if not isinstance(records, dict) or not all(isinstance(text, str) for text in records.values()):
            raise _wrong("records is no object of texts")
        for name, text in records.items():
            _check_dns(name, text)
        numbered = {str(NUMBERS[name]): text for name, text in records.items()}
        return await self._write("dns", call.params["pattern"], gojson.dumps(dict(sorted(numbered.items()))))

    async def delete_dns(self, call: Call) -> Any:
        """DELETE /v1/dns/:pattern."""
        return await self._done(self._backend.delete_key("dns", call.params["pattern"]))


def _check_dns(name: str, text: str) -> None:
    if not NUMBERS.get(name):
        raise _wrong(f"{name!r} is no type of DNS records")
    kind = {"A": ipaddress.IPv4Address, "AAAA": ipaddress.IPv6Address}.get(name)
    try:
        if kind is not None:
            kind(text)
    except ValueError:
        raise _wrong(f"{text!r} is no address for {name}") from None


# -- requests ----------------------------------------------------------------------------------------------------------


def _wrong(message: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, message)


def flag(query: Mapping[str, Sequence[str]], name: str) -> bool:
    """A parameter that is ``true`` or ``false``; absent is false, alone (``?name``) is true."""
    if name not in query:
        return False
    text = query[name][-1].lower()
    if text not in {"", "true", "false", "1", "0"}:
        raise _wrong(f"{name}={text[:40]!r} is neither true nor false")
    return text in {"", "true", "1"}


def json_object(request: Request, fields: set[str]) -> dict[str, Any]:
    """The body, which is a JSON object with some of these fields and no others."""
    kind = request.header(b"content-type").split(b";")[0].strip().lower()
    if kind not in {b"application/json", b""}:
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
    try:
        body = gojson.loads(request.body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _wrong("the body is no JSON") from None
    if not isinstance(body, dict):
        raise _wrong("the body is no JSON object")
    if not printable(body):
        raise _wrong("the body holds a number without end, or nests too deeply")
    if unknown := sorted(body.keys() - fields):
        raise _wrong(f"the body has an unknown field {unknown[0][:40]!r}")
    return body
