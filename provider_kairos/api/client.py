"""Typed client of a daemon's HTTP API, ours or EdgeVPN's own.

Specification: spec/edgevpn.md 11.2 to 11.4, spec/provider.md 4.1. Values are coded in three layers (``api.model``).
What other nodes wrote is not trusted: a text that does not decode counts as absent (:attr:`DaemonClient.garbage`).

``events`` and ``follow`` use the daemon's stream of events, ``watch`` its long poll, and all of them polling where the
daemon has neither, so that callers need not know which daemon they talk to. Logs name bucket and key, never a value: join tokens pass through here.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import trio

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
from provider_kairos.api.paths import quote_native, quote_segment
from provider_kairos.api.transport import NotYetError, Transport, short, status_error
from provider_kairos.api.watching import WatchCursor, WatchResult
from provider_kairos.errors import LocalError, PeerError, TimeoutHostError, UnreachableError

if TYPE_CHECKING:
    from provider_kairos.api.follow import BucketFollower, EventFollower

__all__ = ["DaemonClient", "WatchCursor", "WatchResult"]

log = logging.getLogger(__name__)

_LONG_POLL_SLACK = 10.0
"""Seconds that an answer of a long poll may come late."""


class DaemonClient(Transport):
    """Client of one daemon, ours or EdgeVPN's; several addresses are tried in order until one answers.

    Usable from several trio tasks at once. Cancelling a call drops its connection and nothing else.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        timeout: float = 5.0,
        poll_interval: float = 1.0,
        write_timeout: float = 15.0,
    ) -> None:
        super().__init__(address, timeout)
        self._write_timeout = write_timeout
        self._poll_interval = poll_interval
        self.garbage = 0
        """Values that did not decode and were taken as absent."""

    async def _call_shaped(self, kind: type, method: str, path: str, body: bytes = b"") -> Any:
        value = await self.call(method, path, body)
        if not isinstance(value, kind):
            raise PeerError(f"the daemon at {self.address} answers {short(path)} with an unexpected shape")
        return value

    # -- ledger

    async def get_text(self, bucket: str, key: str) -> str | None:
        """The ledger text of one record; None when absent."""
        path = f"/api/ledger/{quote_segment(bucket)}/{quote_segment(key)}"
        text = await self.call("GET", path)
        # A daemon prints "" for what is absent; null is tolerated.
        if text is None or text == "":
            return None
        if not isinstance(text, str):
            raise PeerError(f"the daemon at {self.address} answers {short(path)} with an unexpected shape")
        return text

    async def get(self, bucket: str, key: str) -> Any | None:
        """One decoded value; None when absent or when the text does not decode (counted)."""
        text = await self.get_text(bucket, key)
        return None if text is None else self._decode(bucket, key, text)

    async def bucket_texts(self, bucket: str) -> dict[str, str]:
        """Key to ledger text of a bucket; empty when it is absent."""
        value = await self.call("GET", f"/api/ledger/{quote_segment(bucket)}")
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
        answer = await self.call(method, path, timeout=self._write_timeout)
        if not isinstance(answer, dict) or answer.get("State") != "Announcing":
            raise PeerError(f"the daemon at {self.address} did not accept {method} {short(path)}")

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
        answer = await self.request(method, f"/api/peergate{path}")
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise status_error(self.address, method, "/api/peergate", answer)
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
        value = await self.call("GET", path)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise PeerError(f"the daemon at {self.address} answers {path} with an unexpected shape")
        return value

    async def status(self) -> StatusDocument | None:
        """Our daemon's status document; None when the daemon is EdgeVPN's."""
        value = await self.native_call("/v1/status", "/api/v1/status")
        if value is None:
            return None
        if not isinstance(value, dict) or value.get("schema") != 1:
            raise PeerError(f"the daemon at {self.address} speaks another schema", hint="use tools of its own version")
        return cast("StatusDocument", value)

    # -- following

    def events(
        self,
        *,
        kinds: Sequence[str] = (),
        buckets: Sequence[str] = (),
        keys: Sequence[str] = (),
        snapshot: bool = True,
        last_id: str = "",
    ) -> EventFollower:
        """What happens at the daemon, for ``async with`` and ``async for``; nothing is asked before.

        Args:
            kinds: Which kinds of events; none: all that the daemon has. An EdgeVPN tells of records only.
            buckets: Records of these buckets only.
            keys: Records of these keys only.
            snapshot: The present state first, then an event ``synced``.
            last_id: Go on after this event, where the daemon still knows it.

        Raises (within): UnreachableError, TimeoutHostError, PeerError; NotFoundError when the daemon has none of them.
        """
        from provider_kairos.api.follow import EventFollower  # noqa: PLC0415 - keeps a plain request's import small

        return EventFollower(
            self,
            self,
            kinds=kinds,
            buckets=buckets,
            keys=keys,
            snapshot=snapshot,
            last_id=last_id,
            poll_interval=self._poll_interval,
        )

    def follow(self, buckets: Sequence[str]) -> BucketFollower:
        """The state of buckets now and after every change, for ``async with`` and ``async for``."""
        from provider_kairos.api.follow import BucketFollower  # noqa: PLC0415 - likewise

        return BucketFollower(self, self, buckets)

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
            log.info("the daemon at %s has no /v1: polling every %g s", self.address, self._poll_interval)
        return await self._watch_polling(names, since, timeout)

    async def _watch_native(
        self, names: Sequence[str], since: WatchCursor | None, timeout: float
    ) -> WatchResult | None:
        query = "&".join(f"bucket={quote_native(name)}" for name in names)
        if since is not None and since.instance:
            query += f"&instance={quote_native(since.instance)}&since={since.revision}&timeout={timeout:g}"
        limit = max(timeout, 0) + _LONG_POLL_SLACK
        value = await self.native_call(f"/v1/watch?{query}", f"/api/v1/watch?{query}", timeout=limit)
        if value is None:
            return None
        try:
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
            except (UnreachableError, TimeoutHostError, NotYetError):
                if trio.current_time() + interval >= deadline:
                    raise
                await trio.sleep(interval)
            else:
                return


def _texts(value: Any, address: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise PeerError(f"the daemon at {address} answers a bucket with an unexpected shape")
    return {key: text for key, text in value.items() if isinstance(text, str)}


def _fingerprint(texts: Mapping[str, Mapping[str, str] | None]) -> str:
    import hashlib  # noqa: PLC0415 - only against a Go daemon

    return hashlib.blake2b(json.dumps(texts, sort_keys=True).encode(), digest_size=16).hexdigest()
