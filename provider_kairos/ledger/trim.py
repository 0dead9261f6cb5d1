"""Shortens the JSON of an enormous block before it is parsed (spec/edgevpn.md 5.2, 5.3, 5.9).

A member may put a million records into every EdgeVPN node, and from then on each of these shows all of them in every
block. Parsing that takes several hundred megabytes; refusing it would make us deaf to every EdgeVPN node. So records in
the unsigned form are cut out of the text: of the largest buckets, as many as it takes; small buckets and signed records
stay whole. Only the text that Go's encoder writes is understood here (no spaces, fields in order): others write no such
blocks, or mean harm.

What is left is read by :mod:`provider_kairos.ledger.block`, which limits the number of records, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["Trimmed", "trim"]

_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_HEAD = re.compile(rb'\{"Index":-?\d+,"Timestamp":' + _TEXT + rb',"Storage":\{')
_TAIL = re.compile(rb'\},"Hash":' + _TEXT + rb',"PrevHash":' + _TEXT + rb"\}\s*\Z")
_BUCKET = re.compile(_TEXT + rb":\{")
# The engine remembers every repetition of a group, so that runs are bounded. It forgets them when the group is
# possessive, but until Python 3.13 at least it then ends in the middle of a repetition that fails: harmless above, where
# none can fail but at the end of the text, and wrong here.
_PLAIN = re.compile(rb"(?:" + _TEXT + rb":" + _TEXT + rb",?){1,1000}")
_OBJECTS = re.compile(rb"(?:" + _TEXT + rb':\{[^{}"]*+(?:' + _TEXT + rb'[^{}"]*+){0,64}\},?){1,1000}')

_PAIR = b'":"'

MAX_PIECES = 200_000
"""Runs of records, and buckets, that are looked at; an honest ledger has fewer records."""


@dataclass(slots=True)
class _Bucket:
    name: bytes
    pieces: list[tuple[int, int, bool]] = field(default_factory=list)  # start, end, whether it is unsigned
    unsigned: int = 0


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The shorter text, and about how many records were left out."""

    text: bytes = field(repr=False)
    dropped: int


def trim(text: bytes, most: int) -> Trimmed | None:
    """The block with at most ``most`` bytes; None when that cannot be had, or when the text is not as Go writes it."""
    scanned = _scan(text)
    if scanned is None:
        return None
    head, buckets, tail = scanned
    commas = max(len(buckets) - 1, 0)
    room = most - (head + len(text) - tail) - commas - sum(map(_fixed, buckets))
    if room < 0:
        return None
    out = [text[:head]]
    dropped = 0
    waiting = len(buckets)
    kept: dict[int, list[bytes]] = {}
    for number, bucket in sorted(enumerate(buckets), key=lambda each: each[1].unsigned):
        share = room // waiting
        waiting -= 1
        kept[number], used, lost = _cut(text, bucket, share)
        room -= used
        dropped += lost
    inner = []
    for number, bucket in enumerate(buckets):
        entries = b"".join(kept[number]).removesuffix(b",")
        if entries or not bucket.pieces:
            inner.append(bucket.name + entries + b"}")
    out += [b",".join(inner), text[tail:]]
    return Trimmed(b"".join(out), dropped)


def _fixed(bucket: _Bucket) -> int:
    return len(bucket.name) + 1 + sum(end - start for start, end, unsigned in bucket.pieces if not unsigned)


def _cut(text: bytes, bucket: _Bucket, share: int) -> tuple[list[bytes], int, int]:
    """The pieces that stay, bytes of unsigned ones among them, and how many records go."""
    kept, used, lost = [], 0, 0
    for start, end, unsigned in bucket.pieces:
        if unsigned and used + end - start > share:
            lost += text.count(_PAIR, start, end)
            continue
        used += (end - start) * unsigned
        kept.append(text[start:end])
    return kept, used, lost


def _scan(text: bytes) -> tuple[int, list[_Bucket], int] | None:
    """Where the buckets begin, what they are made of, and where they end."""
    head = _HEAD.match(text)
    if head is None:
        return None
    at = head.end()
    buckets: list[_Bucket] = []
    pieces = 0
    while not text.startswith(b"}", at):
        if buckets:
            if not text.startswith(b",", at):
                return None
            at += 1
        name = _BUCKET.match(text, at)
        pieces += 1
        if name is None or pieces > MAX_PIECES:
            return None
        bucket = _Bucket(name[0])
        at = name.end()
        while not text.startswith(b"}", at):
            plain = _PLAIN.match(text, at)
            run = plain or _OBJECTS.match(text, at)
            pieces += 1
            if run is None or pieces > MAX_PIECES:
                return None
            bucket.pieces.append((at, run.end(), plain is not None))
            bucket.unsigned += (run.end() - at) * (plain is not None)
            at = run.end()
        at += 1
        buckets.append(bucket)
    return (head.end(), buckets, at) if _TAIL.match(text, at) else None
