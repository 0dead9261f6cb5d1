"""ledger get, set, delete, watch: records through the API of this machine's daemon, ours or EdgeVPN's.

Values may be secrets: they are printed only because somebody asked for them, and can be given on standard input, where
no list of processes shows them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import trio

from provider_kairos.api.client import DaemonClient
from provider_kairos.api.ledger_client import LedgerClient
from provider_kairos.api.native_model import Record
from provider_kairos.cli.cluster import client
from provider_kairos.cli.output import print_json, print_table
from provider_kairos.clock import SystemClock
from provider_kairos.errors import ConfigError, NotFoundError, TimeoutHostError, UnreachableError

__all__ = ["Watch", "delete", "get", "set_record", "watch"]

T = TypeVar("T")
SHOWN = 60
"""Characters of a value in a table."""

AGAIN = 1.0


def _with(api: str | None, work: Callable[[LedgerClient], Awaitable[T]]) -> T:
    async def main() -> T:
        async with client(api) as daemon:
            return await work(LedgerClient(daemon))

    return trio.run(main)


# -- get


def get(api: str | None, bucket: str | None, key: str | None, *, deleted: bool, as_json: bool) -> None:
    """Print a value, a bucket, or the names of the buckets."""
    if bucket is None:
        _print_buckets(api, as_json=as_json)
    elif key is None:
        _print_bucket(api, bucket, deleted=deleted, as_json=as_json)
    else:
        _print_record(api, bucket, key, as_json=as_json)


def _print_buckets(api: str | None, *, as_json: bool) -> None:
    buckets = _with(api, lambda ledger: ledger.buckets())
    if as_json:
        print_json({"schema": 1, "buckets": buckets})
    else:
        rows = [(_safe(each["name"]), str(each["records"]), str(each["deleted"])) for each in buckets]
        print_table(("Bucket", "Records", "Deleted"), rows)


def _print_bucket(api: str | None, bucket: str, *, deleted: bool, as_json: bool) -> None:
    records = _with(api, lambda ledger: ledger.records(bucket, deleted=deleted))
    if not records:
        raise NotFoundError(f"there is no bucket {bucket!r}", hint="`kairos-p2p ledger get` lists the buckets")
    if as_json:
        print_json({"schema": 1, "bucket": bucket, "records": records})
        return
    now = SystemClock().now().unix_float
    rows = [
        (_safe(each["key"]), _cut(_value(each)), each["author"] or "-", _age(each["updated_at"], now))
        for each in records
    ]
    print_table(("Key", "Value", "Author", "Age"), rows)


def _print_record(api: str | None, bucket: str, key: str, *, as_json: bool) -> None:
    record = _with(api, lambda ledger: ledger.record(bucket, key))
    if as_json:
        print_json(record)
    else:
        print(_value(record))


def _value(record: Record | Mapping[str, Any]) -> str:
    """The value as people read it: a text as it is, anything else as JSON, what does not decode as it stands."""
    if record.get("deleted"):
        return "(deleted)"
    if record.get("encoding", "json") == "none":
        return str(record.get("text", ""))
    value = record.get("value")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    line = _safe(text)
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def _safe(text: str) -> str:
    """One line of a terminal, whatever other nodes wrote."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _age(then: int | None, now: float) -> str:
    if then is None:
        return "-"
    seconds = max(0, int(now - then))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


# -- set, delete


def set_record(api: str | None, bucket: str, key: str, value: str, *, as_json: bool, plain: bool) -> None:
    """Write a record."""
    text = _from_stdin() if value == "-" else value
    stored: Any = text
    if as_json:
        try:
            stored = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the value is no JSON: {error}", hint="without --json it is stored as a text") from None
    encoding = "json" if plain else "base64"
    _with(api, lambda ledger: ledger.put(bucket, key, stored, encoding=encoding))


def _from_stdin() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError("standard input is no UTF-8 text") from None
    return text.removesuffix("\n")


def delete(api: str | None, bucket: str, key: str | None) -> None:
    """Delete a record or a bucket; say what belongs to others."""
    for refusal in _with(api, lambda ledger: ledger.delete(bucket, key)):
        print(f"not deleted: {_safe(refusal['key'])} belongs to {refusal['owner']}", file=sys.stderr)


# -- watch


def watch(api: str | None, buckets: Sequence[str], *, as_json: bool) -> None:
    """Print records and changes until interrupted; a daemon that goes away is waited for."""

    async def main() -> None:
        async with client(api) as daemon:
            await Watch(daemon, buckets, _print_change if not as_json else _print_line).run()

    trio.run(main)


class Watch:
    """Follows the daemon through its restarts and tells each state of a record once."""

    def __init__(self, daemon: DaemonClient, buckets: Sequence[str], tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._daemon = daemon
        self._buckets = buckets
        self._tell = tell
        self._told: dict[tuple[str, str], str] = {}
        self._present: set[tuple[str, str]] | None = None
        self._last_id = ""

    async def run(self) -> None:
        """Until cancelled. Raises what the first attempt raises."""
        began = False
        while True:
            try:
                events = self._daemon.events(kinds=["ledger"], buckets=self._buckets, last_id=self._last_id)
                async with events:
                    async for event in events:
                        began = True
                        self.take(event.kind, event.data)
                        self._last_id = events.last_id
            except (UnreachableError, TimeoutHostError) as error:
                if not began:
                    raise
                print(f"waiting: {error.message}", file=sys.stderr)
                await trio.sleep(AGAIN)

    def take(self, kind: str, data: Mapping[str, Any]) -> None:
        """One event."""
        if kind in {"hello", "lost"}:
            # the state follows, unless we go on where we were
            self._present = None if data.get("resumed") else set()
        elif kind == "synced":
            for bucket, key in sorted(self._told.keys() - (self._present or set())):
                self._say({"bucket": bucket, "key": key, "text": "", "value": None, "deleted": True})
            self._present = None
        elif kind == "ledger":
            if self._present is not None and data.get("snapshot"):
                self._present.add((str(data.get("bucket")), str(data.get("key"))))
            self._say(data)

    def _say(self, data: Mapping[str, Any]) -> None:
        place = str(data.get("bucket")), str(data.get("key"))
        if data.get("deleted"):
            if self._told.pop(place, None) is None:
                return
        elif self._told.get(place) == data.get("text"):
            return
        else:
            self._told[place] = str(data.get("text"))
        self._tell(data)


def _print_change(data: Mapping[str, Any]) -> None:
    now = datetime.now(UTC).astimezone().strftime("%H:%M:%S")
    place = f"{_safe(str(data.get('bucket')))}/{_safe(str(data.get('key')))}"
    print(f"{now}  {place}  {_safe(_value(data))}", flush=True)


def _print_line(data: Mapping[str, Any]) -> None:
    print(json.dumps(data, ensure_ascii=False), flush=True)
