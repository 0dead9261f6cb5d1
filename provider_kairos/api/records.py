"""A ledger entry as our own API shows it, and a value as it is to be stored (spec/edgevpn.md 5.3, 11.3).

Values come in two codings: tools store JSON in base64 in JSON, daemons write plain JSON. Which one a text is in can
only be seen from the text; the text itself is always shown beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

from provider_kairos.api.model import ValueCodingError, decode_value, ledger_text, plain_value
from provider_kairos.api.native_model import Encoding, Record, Refusal
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import Written
from provider_kairos.ledger.policy import derived_owner
from provider_kairos.token import gojson

__all__ = ["coded", "printable", "record", "refusals"]


DEEPEST = 64
"""Levels of a value that are shown; what nests deeper is seen as text only."""


def record(key: str, entry: Entry | None) -> Record:
    """What is shown of an entry; None stands for one that is gone without a trace."""
    deleted = entry is None or entry.deleted
    entry = entry or Entry("")
    value, encoding = _decoded("" if deleted else entry.value)
    return {
        "key": key,
        "value": value,
        "encoding": encoding,
        "text": entry.value,
        "author": entry.owner or None,
        "version": str(entry.version) if entry.version else None,
        "updated_at": entry.updated_at or None,
        "deleted": deleted,
        "signed": bool(entry.sig),
    }


def _decoded(text: str) -> tuple[Any, Encoding]:
    for read, encoding in _READERS:
        try:
            value = read(text)
        except ValueCodingError:
            continue
        return (value, encoding) if printable(value) else (None, "none")
    return None, "none"


_READERS: tuple[tuple[Callable[[str], Any], Encoding], ...] = ((decode_value, "base64"), (plain_value, "json"))


def printable(value: Any) -> bool:
    """Whether JSON can hold a value again: others write what they like, such as 1e999 or a thousand brackets."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        if any(isinstance(each, float) and not math.isfinite(each) for each in level):
            return False
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = list(chain.from_iterable(inner))
        if not level:
            return True
    return False


def coded(value: Any, encoding: str = "base64") -> str:
    """The ledger text of a value."""
    return ledger_text(value) if encoding == "base64" else gojson.dumps(value)


def refusals(written: Written, stored: Callable[[str, str], Entry | None]) -> list[Refusal]:
    """Records of a write that belong to somebody else; ``stored`` looks an entry up."""
    found: list[Refusal] = []
    for each in written.refused:
        entry = stored(each.bucket, each.key)
        owner = each.owner if entry is None else derived_owner(each.bucket, each.key, entry)
        found.append({"key": each.key, "owner": owner, "reason": each.reason})
    return found
