"""The block: an envelope around the whole snapshot, in Go's exact text and gzip form (spec/edgevpn.md 5.2-5.5, 17).

A block is no link of a validated chain: receivers merge or adopt its storage and never recompute its hash. Reading is
bounded: what unpacks beyond the limit, nests absurdly or holds numbers that Go would refuse is an error, not a crash.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from provider_kairos.ledger import entry as entries
from provider_kairos.ledger import gojson
from provider_kairos.ledger.entry import Entry, LedgerError
from provider_kairos.ledger.trim import trim

__all__ = [
    "GENESIS_HASH",
    "GZIP_HEADER",
    "MAX_BLOCK_BYTES",
    "Block",
    "BlockError",
    "Storage",
    "block_hash",
    "decode",
    "encode",
    "genesis",
    "go_timestamp",
    "pack",
    "unpack",
]

Storage = dict[str, dict[str, Entry]]
"""bucket -> key -> entry."""

GENESIS_HASH = "993c923422cd134b6aad0235ebfd4290a7b27b83d1bcd6b1fb2addc4b45b2fa6"
"""sha256 of ``0map[]``: the hash of an entirely empty block, the same on every node."""

GZIP_HEADER = bytes.fromhex("1f8b08000000000000ff")
"""What Go writes: deflate, no flags, no time, no extra flags, unknown operating system."""

MAX_BLOCK_BYTES = 16 * 1024 * 1024
MAX_MEMBERS = 16
"""Of a gzip stream; Go writes one, and looking for the next one costs a copy of the rest."""

MAX_UNSIGNED = 100_000
"""Unsigned records that are taken of a block when the caller sets no limit."""

MAX_INDEX = 2**62
"""Above this a block's index is hostile: one more doubling and Go's integer has no successor."""


class BlockError(LedgerError):
    """Bytes that are no block: not gzip, too large unpacked, not JSON, or fields of the wrong kind."""


@dataclass(frozen=True, slots=True)
class Block:
    """One snapshot. Treat ``storage`` as frozen: changes make a new block.

    ``surplus`` is how many unsigned records were left out when it was read.
    """

    index: int
    timestamp: str
    storage: Storage = field(repr=False)
    hash: str
    prev_hash: str
    surplus: int = 0


def genesis(unix_ns: int) -> Block:
    """The empty block that every node starts from."""
    return Block(0, go_timestamp(unix_ns), {}, GENESIS_HASH, "")


def go_timestamp(unix_ns: int) -> str:
    """``2024-05-06 07:08:09.123456789 +0000 UTC``: Go's text of a time, without trailing zeros of the fraction."""
    seconds, fraction = divmod(unix_ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    if fraction:
        text += f".{fraction:09d}".rstrip("0")
    return f"{text} +0000 UTC"


def block_hash(block: Block, legacy_form: bool = False) -> str:
    """SHA-256 over index, timestamp, Go's rendering of the storage, and the previous hash; no separators (spec 5.4).

    ``legacy_form`` is the rendering of v0.34 and older; both are fine on the wire, because nobody recomputes.
    """
    rendered = _render_map(
        {
            name: _render_map({key: entries.render(e, legacy_form) for key, e in bucket.items()})
            for name, bucket in block.storage.items()
        }
    )
    return hashlib.sha256(f"{block.index}{block.timestamp}{rendered}{block.prev_hash}".encode()).hexdigest()


def _render_map(items: Mapping[str, str]) -> str:
    return "map[" + " ".join(f"{key}:{items[key]}" for key in sorted(items)) + "]"


def encode(block: Block) -> bytes:
    """The block as Go's encoder prints it: fields in order, map keys sorted bytewise, no spaces."""
    buckets = ",".join(f"{gojson.quote(name)}:{_encode_bucket(block.storage[name])}" for name in sorted(block.storage))
    return (
        f'{{"Index":{block.index},"Timestamp":{gojson.quote(block.timestamp)},"Storage":{{{buckets}}},'
        f'"Hash":{gojson.quote(block.hash)},"PrevHash":{gojson.quote(block.prev_hash)}}}'
    ).encode()


def _encode_bucket(bucket: Mapping[str, Entry]) -> str:
    return "{" + ",".join(f"{gojson.quote(key)}:{entries.to_json(bucket[key])}" for key in sorted(bucket)) + "}"


def decode(data: bytes, held: Storage | None = None, most: int | None = None) -> Block:
    """Read a block's JSON. Raises BlockError; one unreadable entry makes the whole block unreadable, as in Go.

    ``most`` limits the unsigned records that are taken, of which anybody can make a million; ``held`` is what the
    reader has, which comes first.
    """
    try:
        fields = gojson.loads(data)
    except ValueError as error:
        raise BlockError(f"block is not JSON: {str(error)[:80]}") from None
    if not isinstance(fields, dict):
        raise BlockError("block is no JSON object")
    by_name = {name.lower(): value for name, value in fields.items() if value is not None}
    index = by_name.get("index", 0)
    if type(index) is not int or abs(index) > MAX_INDEX:
        raise BlockError("block index is not a sane integer")
    storage, surplus = _decode_storage(by_name.get("storage", {}), held or {}, MAX_UNSIGNED if most is None else most)
    return Block(
        index=index,
        timestamp=_text(by_name, "timestamp"),
        storage=storage,
        hash=_text(by_name, "hash"),
        prev_hash=_text(by_name, "prevhash"),
        surplus=surplus,
    )


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise BlockError(f"block field {name} is a {type(value).__name__}")
    return value


def _decode_storage(value: Any, held: Storage, most: int) -> tuple[Storage, int]:
    if not isinstance(value, dict):
        raise BlockError("block storage is no object")
    if not all(isinstance(bucket, dict | None) for bucket in value.values()):
        raise BlockError("a bucket is no object")
    buckets: dict[str, dict[str, Any]] = {name: bucket or {} for name, bucket in value.items()}
    surplus = 0
    if sum(map(len, buckets.values())) > most:
        buckets, surplus = _cut(buckets, held, most)
    try:
        storage = {
            name: {key: entries.from_json(item) for key, item in bucket.items()} for name, bucket in buckets.items()
        }
    except entries.EntryError as error:
        raise BlockError(f"block is unreadable: {error}") from None
    return storage, surplus


def _cut(buckets: dict[str, dict[str, Any]], held: Storage, most: int) -> tuple[dict[str, dict[str, Any]], int]:
    """At most so many unsigned records, and how many were left out.

    Small buckets are whole, large ones give way; in each of them what is held comes first.
    """
    unsigned = {name: sum(isinstance(item, str) for item in bucket.values()) for name, bucket in buckets.items()}
    kept: dict[str, dict[str, Any]] = {}
    surplus = 0
    waiting = len(buckets)
    for name in sorted(buckets, key=lambda name: (unsigned[name], name not in held)):
        share = -(-most // waiting)  # rounded up: the last of it goes to those that are held
        waiting -= 1
        if unsigned[name] <= share:
            kept[name] = buckets[name]
            most -= unsigned[name]
            continue
        part = _cut_bucket(buckets[name], held.get(name, {}), share, len(buckets[name]) - unsigned[name])
        most -= share
        surplus += len(buckets[name]) - len(part)
        if part:
            kept[name] = part
    return kept, surplus


def _cut_bucket(items: dict[str, Any], held: Mapping[str, Entry], most: int, signed: int) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key in itertools.chain((key for key in held if key in items), items):
        if key in kept:
            continue
        item = items[key]
        if not isinstance(item, str):
            signed -= 1
        elif most > 0:
            most -= 1
        elif signed:
            continue
        else:
            break
        kept[key] = item
    return kept


def pack(block: Block) -> bytes:
    """The block in gzip form, with Go's header."""
    return pack_text(encode(block))


def pack_text(text: bytes) -> bytes:
    """A gzip stream of bytes as Go begins and ends it."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(text) + deflate.flush()
    trailer = zlib.crc32(text).to_bytes(4, "little") + (len(text) & 0xFFFFFFFF).to_bytes(4, "little")
    return GZIP_HEADER + body + trailer


def unpack(data: bytes, limit: int = MAX_BLOCK_BYTES, held: Storage | None = None, most: int | None = None) -> Block:
    """Read a gzip stream; see :func:`decode` for ``held`` and ``most``. Raises BlockError.

    What is longer than half of ``limit`` is trimmed to that (:mod:`provider_kairos.ledger.trim`). Up to four times
    ``limit`` is unpacked for it, never more than ``limit`` is parsed.
    """
    text = unpack_text(data, 4 * limit)
    if len(text) <= limit // 2:
        return decode(text, held, most)
    trimmed = trim(text, limit // 2)
    if trimmed is not None:
        read = decode(trimmed.text, held, most)
        return replace(read, surplus=read.surplus + trimmed.dropped)
    if len(text) > limit:
        raise BlockError(f"block unpacks to more than {limit} bytes")
    return decode(text, held, most)


def unpack_text(data: bytes, limit: int = MAX_BLOCK_BYTES) -> bytes:
    """The unpacked bytes of a gzip stream (all members). Raises BlockError before more than ``limit`` bytes are made."""
    parts: list[bytes] = []
    left, rest = limit, data
    while rest or not parts:
        if len(parts) == MAX_MEMBERS:
            raise BlockError(f"block is made of more than {MAX_MEMBERS} gzip members")
        inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            parts.append(inflate.decompress(rest, left + 1))
        except zlib.error as error:
            raise BlockError(f"block is not gzip: {error}") from None
        left -= len(parts[-1])
        if left < 0:
            raise BlockError(f"block unpacks to more than {limit} bytes")
        if not inflate.eof:
            raise BlockError("block is cut off")
        rest = inflate.unused_data
    return b"".join(parts)
