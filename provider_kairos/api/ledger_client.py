"""Records of either kind of daemon in one shape: with author and version from ours, without them from EdgeVPN's.

Ours is asked under ``/v1``, where any bucket and key can be named and a refusal says whose the record is; EdgeVPN's under
``/api`` as far as that reaches. What cannot be done there is a :class:`ConfigError` that says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from provider_kairos.api.client import DaemonClient
from provider_kairos.api.connection import Answer
from provider_kairos.api.native_model import BucketSummary, Record, Refusal
from provider_kairos.api.paths import quote_native
from provider_kairos.api.records import record
from provider_kairos.api.transport import status_error
from provider_kairos.errors import ConfigError, LocalError, NotFoundError, PeerError
from provider_kairos.ledger.entry import Entry

__all__ = ["LedgerClient"]


class LedgerClient:
    """Reads and writes records through a daemon's API."""

    def __init__(self, daemon: DaemonClient) -> None:
        self._daemon = daemon

    async def buckets(self) -> list[BucketSummary]:
        """Which buckets there are."""
        value = await self._daemon.native_call("/v1/ledger")
        if value is not None:
            return cast("list[BucketSummary]", _list_of(value, "buckets"))
        ledger = await self._daemon.ledger()
        return [{"name": name, "records": len(keys), "deleted": 0} for name, keys in sorted(ledger.items())]

    async def records(self, bucket: str, *, deleted: bool = False) -> list[Record]:
        """The records of a bucket, sorted by key; none when it is absent."""
        path = f"/v1/ledger/{quote_native(bucket)}?deleted={str(deleted).lower()}"
        value = await self._daemon.native_call(path) if bucket else None
        if value is not None:
            return cast("list[Record]", _list_of(value, "records"))
        with _NamedInPath(bucket):
            texts = await self._daemon.bucket_texts(bucket)
        return [record(key, Entry(text)) for key, text in sorted(texts.items())]

    async def record(self, bucket: str, key: str) -> Record:
        """One record. Raises NotFoundError."""
        answer = await self._native("GET", bucket, key)
        if answer is None:
            with _NamedInPath(bucket, key):
                text = await self._daemon.get_text(bucket, key)
            if text is None:
                raise NotFoundError(f"there is no record {key!r} in bucket {bucket!r}")
            return record(key, Entry(text))
        if answer.status == 404:
            raise NotFoundError(f"there is no record {key!r} in bucket {bucket!r}")
        return cast("Record", self._value(answer, "GET"))

    async def put(self, bucket: str, key: str, value: Any, *, encoding: str = "base64") -> None:
        """Store a value. Raises PeerError when the record belongs to a peer that lives."""
        body = json.dumps({"value": value, "encoding": encoding}).encode()
        answer = await self._native("PUT", bucket, key, body)
        if answer is not None:
            self._value(answer, "PUT")
            return
        with _NamedInPath(bucket, key):
            if encoding == "base64":
                await self._daemon.put(bucket, key, value)
            elif isinstance(value, str) and value:
                await self._daemon.put_text(bucket, key, value)
            else:
                raise ConfigError("this daemon is EdgeVPN's: of plain values it stores texts alone")

    async def delete(self, bucket: str, key: str | None = None) -> list[Refusal]:
        """Delete a record, or a whole bucket; what belongs to others stays and is returned.

        Raises PeerError when nothing at all could be deleted for that reason.
        """
        answer = await self._native("DELETE", bucket, key)
        if answer is not None:
            return cast("list[Refusal]", _list_of(self._value(answer, "DELETE"), "refused"))
        with _NamedInPath(bucket, *([] if key is None else [key])):
            if key is None:
                await self._daemon.delete_bucket(bucket)
            else:
                await self._daemon.delete(bucket, key)
        return []

    async def _native(self, method: str, bucket: str, key: str | None, body: bytes = b"") -> Answer | None:
        """The answer of our own routes; None when the daemon has none."""
        if self._daemon.native is None:
            await self._daemon.status()
        if not self._daemon.native or not bucket:
            return None
        path = f"/v1/ledger/{quote_native(bucket)}" + ("" if key is None else f"/{quote_native(key)}")
        answer = await self._daemon.request(method, path, body)
        if answer.status == 404 and b'"code"' not in answer.body:
            return None  # ours of an earlier version
        return answer

    def _value(self, answer: Answer, method: str) -> Any:
        if answer.status != 200:
            raise status_error(self._daemon.address, method, "/v1/ledger", answer)
        return self._daemon.value(answer, "/v1/ledger")


def _list_of(value: Any, field: str) -> Sequence[Mapping[str, Any]]:
    found = value.get(field) if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise PeerError("the daemon answers with an unexpected shape")
    return found


class _NamedInPath:
    """Names that EdgeVPN's routes cannot carry are the caller's mistake there, not a bug of ours."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __enter__(self) -> None:
        for name in self._names:
            if not name or "/" in name:
                raise ConfigError(
                    f"{name!r} cannot be named to this daemon",
                    hint="EdgeVPN's API takes neither empty names nor slashes; ours takes them within buckets that have a name",
                )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LocalError):
            raise ConfigError(str(error)) from error
