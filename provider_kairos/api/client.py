"""Typed client of a daemon's HTTP API, ours or EdgeVPN's own.

Specification: spec/edgevpn.md 11.2 to 11.4, spec/provider.md 4.1. Values are coded in three layers (``api.model``).
What other nodes wrote is not trusted: a text that does not decode counts as absent (:attr:`DaemonClient.garbage`).

``watch`` uses our long poll where the daemon has it and otherwise polls the buckets once a second, so that callers
need not know which daemon they talk to. Logs name bucket and key, never a value: join tokens pass through here.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

import trio

from provider_kairos.api.address import Address, parse_address
from provider_kairos.api.connection import Answer, Connection
from provider_kairos.api.model import (
    DnsEntry,
    MachineRecord,
    NodeRecord,
    StatusDocument,
    Summary,
    ValueCodingError,
    decode_value,
    encode_value,
    plain_value,
)
from provider_kairos.api.paths import quote_segment
from provider_kairos.errors import HostError, LocalError, PeerError, TimeoutHostError, UnreachableError

__all__ = ["DaemonClient", "WatchCursor", "WatchResult"]

log = logging.getLogger(__name__)

_LONG_POLL_SLACK = 10.0
"""Seconds that an answer of a long poll may come late."""


@dataclass(frozen=True, slots=True)
class WatchCursor:
    """What a watcher has seen: pass the one of the last result to the next call. Opaque."""

    instance: str = ""
    revision: int = -1


@dataclass(frozen=True, slots=True)
class WatchResult:
    """State of the watched buckets; ``texts`` are ledger texts, None for an absent bucket."""

    cursor: WatchCursor
    texts: Mapping[str, Mapping[str, str] | None] = field(repr=False)
    native: bool = True

    def value(self, bucket: str, key: str) -> Any | None:
        """One decoded value; None when absent or garbage."""
        text = (self.texts.get(bucket) or {}).get(key)
        if not text:
            return None
        try:
            return decode_value(text)
        except ValueCodingError:
            return None

    def values(self, bucket: str) -> dict[str, Any]:
        """All values of a bucket that decode."""
        found = ((key, self.value(bucket, key)) for key in self.texts.get(bucket) or {})
        return {key: value for key, value in found if value is not None}


class DaemonClient:
    """Client of one daemon; several addresses are tried in order until one answers.

    Usable from several trio tasks at once: each request takes an idle connection or opens one. Cancelling a call
    drops its connection and nothing else.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        timeout: float = 5.0,
        poll_interval: float = 1.0,
        write_timeout: float = 15.0,
    ) -> None:
        texts = [address] if isinstance(address, str) else list(address)
        if not texts:
            raise LocalError("a client needs an address")
        self._addresses: list[Address] = [parse_address(text) for text in texts]
        self._timeout = timeout
        self._write_timeout = write_timeout
        self._poll_interval = poll_interval
        self._idle: list[Connection] = []
        self._native: bool | None = None
        self.garbage = 0
        """Values that did not decode and were taken as absent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections. The client stays usable."""
        while self._idle:
            self._idle.pop().close()

    @property
    def address(self) -> str:
        """The address in use: the one that answered last, or the first of those to try."""
        return str(self._addresses[0])

    # -- transport

    async def _connect(self) -> Connection:
        last: UnreachableError | None = None
        for address in self._addresses:
            try:
                connection = await Connection.open(address)
            except UnreachableError as error:
                last = last or error
                continue
            if address is not self._addresses[0]:
                # Stay with what answered, so that one run does not mix two daemons.
                self._addresses.remove(address)
                self._addresses.insert(0, address)
            return connection
        assert last is not None
        if len(self._addresses) > 1:
            places = ", ".join(str(a) for a in self._addresses)
            raise UnreachableError(f"no daemon answers at any of {places}", hint=last.hint) from last
        raise last

    async def _request(self, method: str, path: str, body: bytes = b"", *, timeout: float | None = None) -> Answer:
        limit = self._timeout if timeout is None else timeout
        try:
            with trio.fail_after(limit):
                while True:
                    fresh = not self._idle
                    connection = await self._connect() if fresh else self._idle.pop()
                    try:
                        answer = await connection.request(method, path, body)
                    except UnreachableError:
                        connection.close()
                        if fresh:
                            raise
                        continue  # the daemon closed an idle connection; every request of ours may be repeated
                    except BaseException:
                        connection.close()
                        raise
                    if connection.reusable:
                        self._idle.append(connection)
                    else:
                        connection.close()
                    return answer
        except trio.TooSlowError:
            raise TimeoutHostError(
                f"the daemon at {self.address} did not answer within {limit:g} s",
                hint="see whether it is alive: systemctl status edgevpn@kairos",
            ) from None

    async def _call(self, method: str, path: str, body: bytes = b"", *, timeout: float | None = None) -> Any:
        answer = await self._request(method, path, body, timeout=timeout)
        if answer.status != 200:
            raise _status_error(self.address, method, path, answer)
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise PeerError(
                f"the daemon at {self.address} answers {_short(path)} with something that is no JSON"
            ) from error

    async def _call_shaped(self, kind: type, method: str, path: str, body: bytes = b"") -> Any:
        value = await self._call(method, path, body)
        if not isinstance(value, kind):
            raise PeerError(f"the daemon at {self.address} answers {_short(path)} with an unexpected shape")
        return value

    # -- ledger

    async def get_text(self, bucket: str, key: str) -> str | None:
        """The ledger text of one record; None when absent."""
        path = f"/api/ledger/{quote_segment(bucket)}/{quote_segment(key)}"
        text = await self._call("GET", path)
        # A daemon prints "" for what is absent; null is tolerated.
        if text is None or text == "":
            return None
        if not isinstance(text, str):
            raise PeerError(f"the daemon at {self.address} answers {_short(path)} with an unexpected shape")
        return text

    async def get(self, bucket: str, key: str) -> Any | None:
        """One decoded value; None when absent or when the text does not decode (counted)."""
        text = await self.get_text(bucket, key)
        return None if text is None else self._decode(bucket, key, text)

    async def bucket_texts(self, bucket: str) -> dict[str, str]:
        """Key to ledger text of a bucket; empty when it is absent."""
        value = await self._call("GET", f"/api/ledger/{quote_segment(bucket)}")
        return {} if value is None else _texts(value, self.address)

    async def bucket(self, bucket: str) -> dict[str, Any]:
        """Key to decoded value of a bucket; what does not decode is left out and counted."""
        texts = await self.bucket_texts(bucket)
        values = ((key, self._decode(bucket, key, text)) for key, text in texts.items())
        return {key: value for key, value in values if value is not None}

    async def plain_bucket(self, bucket: str) -> dict[str, Any]:
        """A bucket that daemons write themselves (``healthcheck``, ``machines``): plain JSON, no base64."""
        found: dict[str, Any] = {}
        for key, text in (await self.bucket_texts(bucket)).items():
            try:
                found[key] = plain_value(text)
            except ValueCodingError:
                self.garbage += 1
        return found

    async def ledger(self) -> dict[str, dict[str, str]]:
        """Bucket to key to ledger text."""
        value = await self._call_shaped(dict, "GET", "/api/ledger")
        return {bucket: _texts(keys, self.address) for bucket, keys in value.items()}

    async def put(self, bucket: str, key: str, value: Any) -> None:
        """Store a value. Returns when the daemon has accepted it: a promise about its own copy only."""
        path = f"/api/ledger/{quote_segment(bucket)}/{quote_segment(key)}/{encode_value(value)}"
        await self._write("PUT", path)

    async def put_text(self, bucket: str, key: str, text: str) -> None:
        """Store a text as it is, as EdgeVPN's own records have it: the JSON string, no base64."""
        await self._write("PUT", f"/api/ledger/{quote_segment(bucket)}/{quote_segment(key)}/{quote_segment(text)}")

    async def delete(self, bucket: str, key: str) -> None:
        """Delete one record; deleting what is absent succeeds."""
        await self._write("DELETE", f"/api/ledger/{quote_segment(bucket)}/{quote_segment(key)}")

    async def delete_bucket(self, bucket: str) -> None:
        """Delete every record of a bucket."""
        await self._write("DELETE", f"/api/ledger/{quote_segment(bucket)}")

    async def _write(self, method: str, path: str) -> None:
        # A fresh daemon may hold its ledger lock while it writes to a slow disk: writes get more time.
        answer = await self._call(method, path, timeout=self._write_timeout)
        if not isinstance(answer, dict) or answer.get("State") != "Announcing":
            raise PeerError(f"the daemon at {self.address} did not accept {method} {_short(path)}")

    def _decode(self, bucket: str, key: str, text: str) -> Any | None:
        try:
            return decode_value(text)
        except ValueCodingError:
            self.garbage += 1
            log.debug("record %s/%s does not decode and counts as absent", bucket, key)
            return None

    # -- the node

    async def summary(self) -> Summary:
        """Counts and our peer ID."""
        return cast("Summary", await self._call_shaped(dict, "GET", "/api/summary"))

    async def machines(self) -> list[MachineRecord]:
        """VPN nodes in the ledger."""
        return cast("list[MachineRecord]", await self._list("/api/machines"))

    async def nodes(self) -> list[NodeRecord]:
        """Nodes in the topic or with a young heartbeat."""
        return cast("list[NodeRecord]", await self._list("/api/nodes"))

    async def peerstore(self) -> list[NodeRecord]:
        """Every peer that the daemon knows."""
        return cast("list[NodeRecord]", await self._list("/api/peerstore"))

    async def peer_gate(self, on: bool | None = None) -> bool | None:
        """Switch the peer gate (None: only look) and return its state; None when the daemon has none."""
        method, path = ("GET", "") if on is None else ("PUT", "/enable" if on else "/disable")
        answer = await self._request(method, f"/api/peergate{path}")
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise _status_error(self.address, method, "/api/peergate", answer)
        return answer.body.strip() == b"true"

    async def dns(self) -> list[DnsEntry]:
        """Names on the mesh: pattern, and record type to text."""
        return [
            DnsEntry(Regex=str(each.get("Regex") or ""), Records=dict(each.get("Records") or {}))
            for each in await self._list("/api/dns")
        ]

    async def post_dns(self, regex: str, records: Mapping[str, str]) -> None:
        """Write the records of a pattern, in the place of those that it had."""
        body = json.dumps({"Regex": regex, "Records": dict(records)}).encode()
        await self._call_shaped(dict, "POST", "/api/dns", body)

    async def _list(self, path: str) -> list[dict[str, Any]]:
        value = await self._call("GET", path)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise PeerError(f"the daemon at {self.address} answers {path} with an unexpected shape")
        return value

    async def status(self) -> StatusDocument | None:
        """Our daemon's status document; None when the daemon is EdgeVPN's."""
        answer = await self._request("GET", "/api/v1/status")
        if answer.status == 404:
            self._native = False
            return None
        if answer.status != 200:
            raise _status_error(self.address, "GET", "/api/v1/status", answer)
        self._native = True
        try:
            value = json.loads(answer.body)
        except ValueError as error:
            raise PeerError(f"the daemon at {self.address} answers with something that is no JSON") from error
        if not isinstance(value, dict) or value.get("schema") != 1:
            raise PeerError(f"the daemon at {self.address} speaks another schema", hint="use tools of its own version")
        return cast("StatusDocument", value)

    # -- watching

    async def watch(
        self, buckets: Iterable[str], since: WatchCursor | None = None, timeout: float = 25.0
    ) -> WatchResult:
        """The state of ``buckets`` as soon as it differs from ``since``, at the latest after ``timeout`` seconds.

        Without a cursor it answers at once. After a time-out the cursor of the result equals ``since``.
        """
        names = tuple(dict.fromkeys(buckets))
        if not names:
            raise LocalError("watch needs at least one bucket")
        if self._native is not False:
            result = await self._watch_native(names, since, timeout)
            if result is not None:
                return result
            log.info("the daemon at %s has no /api/v1: polling every %g s", self.address, self._poll_interval)
        return await self._watch_polling(names, since, timeout)

    async def _watch_native(
        self, names: Sequence[str], since: WatchCursor | None, timeout: float
    ) -> WatchResult | None:
        query = "&".join(f"bucket={_quote_query(name)}" for name in names)
        if since is not None and since.instance:
            query += f"&instance={_quote_query(since.instance)}&since={since.revision}&timeout={timeout:g}"
        answer = await self._request("GET", f"/api/v1/watch?{query}", timeout=max(timeout, 0) + _LONG_POLL_SLACK)
        if answer.status == 404:
            self._native = False
            return None
        if answer.status != 200:
            raise _status_error(self.address, "GET", "/api/v1/watch", answer)
        self._native = True
        try:
            value = json.loads(answer.body)
            cursor = WatchCursor(str(value["instance"]), int(value["revision"]))
            found = value["buckets"]
            texts = {n: None if found.get(n) is None else _texts(found[n], self.address) for n in names}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PeerError(f"the daemon at {self.address} answers a watch with an unexpected shape") from error
        return WatchResult(cursor, texts)

    async def _watch_polling(self, names: Sequence[str], since: WatchCursor | None, timeout: float) -> WatchResult:
        seen = since.instance if since is not None else ""
        deadline = trio.current_time() + max(timeout, 0)
        while True:
            texts = {name: await self.bucket_texts(name) or None for name in names}
            # The cursor of a poll is what was seen, not a number: a Go daemon has no revisions.
            digest = "poll:" + _fingerprint(texts)
            left = deadline - trio.current_time()
            if digest != seen or left <= 0:
                revision = 0 if since is None else since.revision + (digest != seen)
                return WatchResult(WatchCursor(digest, revision), texts, native=False)
            await trio.sleep(min(self._poll_interval, left))

    async def wait_until_reachable(self, timeout: float = math.inf, interval: float = 0.1) -> None:
        """Wait until the daemon answers; raises the last UnreachableError when ``timeout`` seconds are over."""
        deadline = trio.current_time() + timeout
        while True:
            try:
                await self.summary()
            except (UnreachableError, TimeoutHostError, _NotYetError):
                if trio.current_time() + interval >= deadline:
                    raise
                await trio.sleep(interval)
            else:
                return


class _NotYetError(HostError):
    """The daemon answers with 500 or 503: it has not finished its start, or is overloaded."""


def _status_error(address: str, method: str, path: str, answer: Answer) -> Exception:
    """Which error a status other than 200 stands for."""
    what = f"the daemon at {address} answers {method} {_short(path)} with status {answer.status}"
    match answer.status:
        case 500 | 503:
            return _NotYetError(what, hint="it may not have finished its start; its log says more")
        case 413 | 414 | 431:
            return HostError(what, hint="the value is too large for the API (about 1 MB)")
        case 400 | 404 | 405:
            return LocalError(what)
        case _:
            return PeerError(what)


def _short(path: str) -> str:
    """A path without a value: the fourth segment of a PUT may be a join token."""
    return "/".join(path.partition("?")[0].split("/")[:5])


def _texts(value: Any, address: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise PeerError(f"the daemon at {address} answers a bucket with an unexpected shape")
    return {key: text for key, text in value.items() if isinstance(text, str)}


def _fingerprint(texts: Mapping[str, Mapping[str, str] | None]) -> str:
    import hashlib  # noqa: PLC0415 - only against a Go daemon

    return hashlib.blake2b(json.dumps(texts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _quote_query(text: str) -> str:
    from urllib.parse import quote  # noqa: PLC0415 - keeps the plugin's first import small

    return quote(text, safe="")
